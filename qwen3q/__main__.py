"""``qwen3q`` and ``python -m qwen3q``."""

import sys

from qwen3q.errors import Interrupted


def main() -> None:
    """Runs the command line; Ctrl-C while it is still imported is told as later on."""
    try:
        from qwen3q.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write(f"{Interrupted().message}\n")
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
