"""Training steps that take turns in one process, so that other work on the machine slows all down alike."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WARMUP_UPDATES = 10


class MeasuredTraining:
    """One variant's training, ready to go on whenever it is its turn.

    Args:
        overrides: What the configuration has over BallCircle's own.
        dataset_name: As `--dataset` of `spi train`; None: the embedded data.
    """

    def __init__(self, overrides: dict[str, Any], dataset_name: str | None):
        import torch

        from spi_diffusers.config.layers import make_train_config
        from spi_diffusers.data.loading import load_transitions
        from spi_diffusers.training.build import (
            build_algorithm,
            build_normalizer,
            build_sampler,
            training_episodes,
        )
        from spi_diffusers.training.runtime import resolve_overlap

        self.config = config = make_train_config({"task": "ballcircle", **overrides})
        dataset = training_episodes(config, load_transitions(dataset_name, config.task))
        self.overlap = resolve_overlap(config, 1, torch.device("cpu"))
        self.algorithm = build_algorithm(config, dataset, overlap=self.overlap)
        self.sampler = build_sampler(config, dataset, build_normalizer(dataset))
        with self.threads():
            self.inputs = self.algorithm.prepare(self.sampler.draw())
            self.run(updates=WARMUP_UPDATES)

    @contextmanager
    def threads(self) -> Iterator[int]:
        """Torch's threads per operation as the trainer sets them; yields how many."""
        import torch

        from spi_diffusers.training.runtime import intra_op_threads

        with intra_op_threads(self.config, self.overlap):
            yield torch.get_num_threads()

    def run(self, seconds: float = 0.0, updates: int = 1) -> float:
        """Train for at least so long and so many updates; returns updates per second."""
        import torch

        done, started = 0, time.perf_counter()
        while done < updates or time.perf_counter() - started < seconds:
            metrics, self.inputs = self.algorithm.update(self.inputs, self.sampler.draw())
            values = torch.stack(list(metrics.values())).tolist()  # as the trainer reads them
            done += 1
        elapsed = time.perf_counter() - started
        if not all(abs(value) < float("inf") for value in values):
            raise ArithmeticError(f"training diverged: {dict(zip(metrics, values, strict=True))}")
        return done / elapsed


def take_turns(
    trainings: Mapping[str, MeasuredTraining], rounds: int, seconds: float, label: str
) -> dict[str, list[float]]:
    """Updates per second of every training in every round; each round goes in the other direction.

    Args:
        trainings: By name.
        rounds: How many turns each has.
        seconds: How long a turn lasts at least.
        label: What the progress on stderr begins with.
    """
    rates: dict[str, list[float]] = {name: [] for name in trainings}
    for round_index in range(rounds):
        order = list(trainings)
        for name in order if round_index % 2 == 0 else reversed(order):
            with trainings[name].threads():
                trainings[name].run(updates=2)  # let the one before leave the caches
                rates[name].append(trainings[name].run(seconds=seconds))
        shown = ", ".join(f"{name} {rates[name][-1]:.1f}" for name in trainings)
        print(f"{label}, round {round_index + 1}: {shown}", file=sys.stderr, flush=True)
    return rates
