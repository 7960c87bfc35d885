"""Policies along a training run."""

import dataclasses
import os
import signal

from training_factory import tiny_config

from spi_diffusers.benchmark.checkpoints import policies_along_training
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.training.trainer import Trainer


def test_what_an_interruption_saved_is_no_point_of_the_curve(tmp_path):
    config = tiny_config(tmp_path, updates=12, checkpoint_every=5, keep_checkpoints=9)
    data = load_transitions(None, "ballcircle")
    trainer = Trainer(config, data, progress=False)
    update = trainer.algorithm.update

    def update_and_interrupt(*inputs):
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*inputs)

    trainer.algorithm.update = update_and_interrupt
    assert trainer.train().step == 7
    resumed = Trainer(dataclasses.replace(config, resume=True), data, progress=False)
    resumed.train()
    assert resumed.checkpoints.steps() == [5, 7, 10, 12]
    found = [(step, info.updates) for step, _, info in policies_along_training(config)]
    assert found == [(5, 5), (10, 10), (12, 12)]
