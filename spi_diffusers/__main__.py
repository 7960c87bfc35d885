"""`python -m spi_diffusers` is the `spi` command."""

import sys

from spi_diffusers.cli import main

if __name__ == "__main__":
    sys.exit(main())
