"""What each process of `test_distributed.py` runs under torchrun; not a test by itself.

Arguments: dataset file, output folder.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_factory import tiny_config

from spi_diffusers.data.loading import load_transitions
from spi_diffusers.training.trainer import Trainer


def train(config, dataset, save_as: Path | None = None) -> None:
    trainer = Trainer(config, dataset, progress=False)
    assert trainer.accelerator.num_processes == 2
    assert trainer.sampler.draw().action.shape[0] == config.batch_size // 2
    trainer = Trainer(config, dataset, progress=False)
    trainer.train()
    if save_as is not None:
        rank = trainer.accelerator.process_index
        modules = {name: getattr(trainer.algorithm, name) for name in ("noise_model", "critics")}
        weights = {f"{name}/{key}": v for name, m in modules.items() for key, v in m.state_dict().items()}
        save_file({key: v.contiguous() for key, v in weights.items()}, save_as.with_suffix(f".rank{rank}"))


def main() -> None:
    dataset_file, folder = sys.argv[1], Path(sys.argv[2])
    dataset = load_transitions(dataset_file, "ballcircle")
    exact = {"mixed_precision": "no", "lr_schedule": "constant"}
    agreeing = tiny_config(folder / "none", dataset_file, **exact, **{"spi.guidance_scale": "none"})
    train(agreeing, dataset)
    train(tiny_config(folder / "default", dataset_file), dataset, folder / "default-weights")
    # Stop half way and go on.
    parts = dataclasses.replace(agreeing, output_dir=str(folder / "parts"), updates=12)
    train(parts, dataset)
    train(dataclasses.replace(parts, updates=20, resume=True), dataset)
    torch.distributed.destroy_process_group()  # else a process may abort at its end


if __name__ == "__main__":
    main()
