"""What a quantization cost, measured."""
