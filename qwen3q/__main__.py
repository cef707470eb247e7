"""``qwen3q`` and ``python -m qwen3q``."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Runs the command line; Ctrl-C while it is still imported is told as later on."""
    try:
        from qwen3q.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
