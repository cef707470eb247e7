"""safetensors in and out. Knows nothing of Qwen3."""
