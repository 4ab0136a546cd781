"""`python -m ift`."""

import sys

from ift.cli import main

if __name__ == "__main__":
    sys.exit(main())
