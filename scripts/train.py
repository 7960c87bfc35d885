"""Train a policy: the same job as `spi train`, for launchers that want a script.

accelerate launch scripts/train.py --task OfflineBallCircle-v0
torchrun --nproc_per_node 2 scripts/train.py --task OfflineBallCircle-v0

(`accelerate launch --cpu --num_processes 2` runs ONE process; on CPU use torchrun, or
`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2`.)
"""

import sys

from spi_diffusers.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
