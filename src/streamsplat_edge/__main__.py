"""`python -m streamsplat_edge` is the command `streamsplat-edge`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
