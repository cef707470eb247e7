"""Run Qwen3 on the hardware you own: estimate, quantize, measure, chat."""

__version__ = "0.1.0"
