"""``python -m qwen3q``."""

from qwen3q.cli.app import main

if __name__ == "__main__":
    main()
