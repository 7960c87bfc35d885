"""Evaluate a policy: the same job as `spi evaluate`.

python scripts/evaluate.py outputs/ballcircle-seed0/policy --cost-limit 10 20 40 --episodes 20
"""

import sys

from spi_diffusers.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
