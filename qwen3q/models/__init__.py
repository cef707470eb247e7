"""What a Qwen3 is: config, catalog, tensors, tokenizer, and where a model comes from."""
