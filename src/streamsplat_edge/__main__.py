"""The command `streamsplat-edge`, and `python -m streamsplat_edge`: where both begin."""

import sys


def main() -> int:
    """Runs the command (`cli.main`); Ctrl-C while it is still being imported ends it without a word (130)."""
    try:
        from . import cli

        return cli.main()
    except KeyboardInterrupt:  # before there is a command that could say what it leaves
        return 130


if __name__ == "__main__":
    sys.exit(main())
