"""Random-weight checkpoints shaped like any Qwen3: what memory and speed are measured on."""
