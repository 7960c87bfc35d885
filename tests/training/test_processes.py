"""Threads of a process, and whether critics and policy are trained side by side."""

import dataclasses

import pytest
import torch
from training_factory import tiny_config

from spi_diffusers.config.validation import ConfigError
from spi_diffusers.training.processes import intra_op_threads, resolve_overlap
from spi_diffusers.training.trainer import Trainer, TrainingDivergedError


def test_threads_are_shared_out_and_restored(small_dataset, tmp_path):
    before = torch.get_num_threads()
    with intra_op_threads(tiny_config(tmp_path, threads=2), overlap=True):
        assert torch.get_num_threads() == 1
    with intra_op_threads(tiny_config(tmp_path, threads=2), overlap=False):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    trainer = Trainer(tiny_config(tmp_path, threads=1, learning_rate=1e30), small_dataset, progress=False)
    with pytest.raises(TrainingDivergedError):
        trainer.train()
    assert torch.get_num_threads() == before


def test_overlap_auto_needs_one_process_on_the_cpu_with_two_threads(tmp_path):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    two, one = tiny_config(tmp_path, threads=2), tiny_config(tmp_path, threads=1)
    assert resolve_overlap(two, 1, cpu) is True
    assert [resolve_overlap(*case) for case in ((one, 1, cpu), (two, 2, cpu), (two, 1, gpu))] == [False] * 3
    forced = tiny_config(tmp_path, overlap=True)
    assert resolve_overlap(forced, 1, cpu) is True
    with pytest.raises(ConfigError, match="overlap=true needs one process"):
        resolve_overlap(forced, 2, cpu)
    with pytest.raises(ConfigError, match="overlap=true has no effect on bc"):
        resolve_overlap(dataclasses.replace(forced, algorithm="bc", cost_limit=10.0), 1, cpu)
