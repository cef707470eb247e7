"""What a quantization will write, tensor by tensor, before a weight is read."""
