"""The training loop, from a dataset to trained networks, read top-down.

What makes a resumed run equal an uninterrupted one: all randomness comes from the sampler's generator, the
learning rate is a function of the step, and a checkpoint holds every tensor that the next update reads.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from spi_diffusers.algorithms.base import Inputs
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.files import CHECKPOINTS_FOLDER, METRICS_FILE
from spi_diffusers.leftovers import remove_leftovers
from spi_diffusers.progress import progress_bar
from spi_diffusers.signals import StopSignals
from spi_diffusers.training.build import (
    Dataset,
    build_algorithm,
    build_normalizer,
    build_sampler,
    build_units,
    check_fit,
    training_episodes,
)
from spi_diffusers.training.checkpoint import (
    CheckpointStore,
    first_non_finite,
    load_training_tensors,
    training_tensors,
)
from spi_diffusers.training.export import make_policy
from spi_diffusers.training.metrics import MetricsLog, MetricsWindow
from spi_diffusers.training.processes import (
    any_process,
    average_gradients,
    gather_inputs,
    intra_op_threads,
    make_accelerator,
    newest_checkpoint,
    resolve_overlap,
    scatter_inputs,
    start_trackers,
    training_versions,
)
from spi_diffusers.training.run_folder import (
    RunFolderError,
    check_new_run,
    check_restart,
    check_same_run,
    saved_config,
    write_config,
)
from spi_diffusers.training.settle import settle

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

logger = logging.getLogger(__name__)


class TrainingDivergedError(ArithmeticError):
    """A loss or a weight is no longer finite; nothing was saved after it."""


@dataclass(frozen=True)
class TrainingResult:
    """How a call of `Trainer.train` ended.

    Attributes:
        step: Updates done in total.
        seconds: Wall-clock time of training in total, over all resumed parts.
        metrics: The last logged metrics.
        stopped_by: Number of the signal that stopped training before its end, or None.
    """

    step: int
    seconds: float
    metrics: dict[str, float]
    stopped_by: int | None


@dataclass
class TrainingProgress:
    """Where training stands, for the callback of `Trainer.train`.

    Attributes:
        step: Updates done in total.
        updates: Updates to do in total.
        seconds: Wall-clock time of training in total, over all resumed parts.
        metrics: Means of the metrics since the callback's last call.
    """

    step: int
    updates: int
    seconds: float
    metrics: dict[str, float]
    _trainer: "Trainer" = field(repr=False)
    _stops: bool = field(default=False, init=False, repr=False)

    def policy(self) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
        """The policy as it is now, as a pipeline that shares no memory with training.

        It acts by the paper's extraction: what keeps a limit is learned after training.
        """
        return self._trainer.policy()

    def stop(self) -> None:
        """End training after this update, with a checkpoint; `resume` goes on from there."""
        self._stops = True


class Trainer:
    """Trains an algorithm on a dataset, in memory or streamed.

    Args:
        config: The run's configuration.
        dataset: The data.
        accelerator: Processes and device; by default made from the configuration.
        progress: Whether to show a progress bar.
        temporary: The run's folder goes away with the run, so errors do not point to what is in it.

    Raises:
        ValueError: The configuration does not fit the data, the machine or the number of processes.
        ImportError: A tracker is not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        *,
        accelerator: Accelerator | None = None,
        progress: bool = True,
        temporary: bool = False,
    ):
        self.accelerator = accelerator or make_accelerator(config)
        check_fit(config, dataset, self.accelerator.device.type)
        self.config = config = settle(config, dataset, self.accelerator.device)
        self.dataset = dataset
        self.output_dir = Path(str(config.output_dir))
        self.overlap = resolve_overlap(config, self.accelerator.num_processes, self.accelerator.device)
        self.learned_from = training_episodes(config, dataset)
        self.normalizer = build_normalizer(self.learned_from)
        self.units = build_units(config, self.learned_from)
        self.sampler = build_sampler(
            config,
            self.learned_from,
            self.normalizer,
            self.units,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.algorithm = build_algorithm(
            config,
            dataset,
            device=self.accelerator.device,
            overlap=self.overlap,
            reduce_gradients=(
                partial(average_gradients, self.accelerator) if self.accelerator.num_processes > 1 else None
            ),
        )
        self._optimizers = [
            (optimizer, optimizer.param_groups[0]["lr"]) for optimizer in self.algorithm.optimizers().values()
        ]
        self.checkpoints = CheckpointStore(self.output_dir / CHECKPOINTS_FOLDER, config.keep_checkpoints)
        self.metrics_log = MetricsLog(self.output_dir / METRICS_FILE)
        self.step = 0  # updates done in total, and the time they took
        self.seconds = 0.0
        self._window = MetricsWindow()
        self._unread: list[Tensor] = []  # metrics of the updates since they were last read
        self._progress = progress
        self.temporary = temporary

    def train(self, callback: Callable[[TrainingProgress], None] | None = None) -> TrainingResult:
        """Train until the end of the configured updates, or until it is stopped.

        Args:
            callback: Called after every `log_every` updates and after the last one, on every process. What
                it raises, also a KeyboardInterrupt, ends training with a checkpoint and reaches the caller.

        Returns:
            How it ended. Weights are in `algorithm`; `policy` gives them as a pipeline.

        Raises:
            TrainingDivergedError: A loss or weight is not finite any more.
            RunFolderError: The folder holds a run and `resume` is off, or another one than this.
            CheckpointError: No checkpoint in the folder can be read.
            CheckpointWriteError: A checkpoint cannot be written.
        """
        config = self.config
        with StopSignals() as signals, intra_op_threads(config, self.overlap):
            inputs = self._start()
            first_step, started, seconds_before = self.step, time.perf_counter(), self.seconds
            stopped_by, stops = None, False
            with self._progress_bar() as bar:
                while self.step < config.updates and stopped_by is None and not stops:
                    self._set_learning_rates()
                    upcoming = self.sampler.draw()
                    metrics, inputs = self.algorithm.update(inputs, upcoming)
                    self.step += 1
                    self._unread.append(torch.stack(list(metrics.values())))
                    stopped_by = any_process(self.accelerator, signals.received or 0) or None
                    done = self.step == config.updates
                    logs = self.step % config.log_every == 0 or done
                    saves = self.step % config.checkpoint_every == 0 or done or stopped_by is not None
                    if logs or saves:
                        self._read_metrics(list(metrics))
                    bar.update()
                    seconds = time.perf_counter() - started
                    self.seconds = seconds_before + seconds
                    if logs:
                        self._log(bar, (self.step - first_step) / seconds)
                        if callback is not None:
                            stops = self._call(callback, inputs, signals)
                            started = time.perf_counter() - seconds  # its own time is not training's
                    if saves or stops:
                        self._save_checkpoint(inputs)
            for tracker in self.accelerator.trackers:
                tracker.finish()
        if self.step == config.updates:
            stopped_by = None  # it came too late to stop anything
        return TrainingResult(self.step, self.seconds, dict(self._window.last), stopped_by)

    def _call(
        self, callback: Callable[[TrainingProgress], None], inputs: Inputs, signals: StopSignals
    ) -> bool:
        """Call the callback; returns whether it stops training."""
        updates, metrics = self.config.updates, dict(self._window.last)
        progress = TrainingProgress(self.step, updates, self.seconds, metrics, self)
        try:
            with signals.interrupting():
                callback(progress)
        except BaseException:
            if self.accelerator.num_processes == 1:  # several would wait for each other
                self._save_checkpoint(inputs)
            raise
        return bool(any_process(self.accelerator, progress._stops))

    def describe(self) -> str:
        """One line about what will run and where."""
        config, accelerator = self.config, self.accelerator
        precision = "bfloat16" if config.mixed_precision == "bf16" else "float32"
        return (
            f"{config.updates} updates of {config.batch_size} transitions in {precision}, on "
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}"
            f"{', critics and policy side by side' if self.overlap else ''}; output in {self.output_dir}"
        )

    def policy(self) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
        """The policy as it is now, as a pipeline that shares no memory with training."""
        return make_policy(self)

    # ---- start and resume

    def _start(self) -> Inputs:
        """Prepare the folder, resume if asked to, and return the first update's inputs."""
        config, accelerator = self.config, self.accelerator
        inputs = self._resume() if config.resume else None
        if inputs is None:
            if config.resume:
                check_restart(self.output_dir, config)
            else:
                check_new_run(self.output_dir)
            inputs = self.algorithm.prepare(self.sampler.draw())
        accelerator.wait_for_everyone()  # every process has looked at the folder before it changes
        if accelerator.is_main_process:
            write_config(self.output_dir, config)
            for folder in (self.output_dir, self.checkpoints.folder):
                remove_leftovers(folder)
            self.metrics_log.truncate_after(self.step)
        start_trackers(accelerator, config, self.step)
        return inputs

    def _resume(self) -> Inputs | None:
        """Load the newest complete checkpoint; None if there is none yet."""
        checkpoint = newest_checkpoint(self.accelerator, self.checkpoints)
        if checkpoint is None:
            logger.info("%s: no checkpoint yet, starting at update 0.", self.checkpoints.folder)
            return None
        state = checkpoint.state
        check_same_run(checkpoint.folder, state, self.config, self.dataset.sha256, self.dataset.source)
        if checkpoint.step > self.config.updates:
            raise RunFolderError(
                f"{checkpoint.folder}: has made {checkpoint.step} updates already, more than updates="
                f"{self.config.updates}; ask for as many at least."
            )
        pending, generator_state = load_training_tensors(self.algorithm, checkpoint.tensors)
        self.sampler.set_state(generator_state)
        self.step = self.algorithm.updates = checkpoint.step
        self.seconds = state["train_seconds"]
        self._window.load_state(state)
        self._warn_if_inexact(state)
        if self.accelerator.is_main_process:
            logger.info("Resumed from %s.", checkpoint.folder)
        return scatter_inputs(self.accelerator, pending, self.sampler.draws)

    def _warn_if_inexact(self, state: Mapping[str, Any]) -> None:
        now = self._circumstances()
        changed = [f"{key} {state.get(key)} -> {now[key]}" for key in now if state.get(key) != now[key]]
        if changed and self.accelerator.is_main_process:
            logger.warning(
                "Since the checkpoint, this changed: %s. Results can differ from an uninterrupted run in "
                "their last digits.",
                "; ".join(changed),
            )

    def _circumstances(self) -> dict[str, Any]:
        """What does not change the result by intention, but can change its rounding."""
        return {
            "versions": training_versions(),
            "num_processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "threads": torch.get_num_threads(),
        }

    # ---- one update

    def _set_learning_rates(self) -> None:
        for optimizer, start in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate_at(self.step, start)

    def _read_metrics(self, names: Sequence[str]) -> None:
        """Take the means over processes of all that is unread; until then a GPU need not be waited for."""
        unread = torch.stack(self._unread)
        if self.accelerator.num_processes > 1:
            unread = self.accelerator.reduce(unread, reduction="mean")
        self._unread = []
        for step, row in enumerate(unread.tolist(), start=self.step - len(unread) + 1):
            values = dict(zip(names, row, strict=True))
            for name, value in values.items():
                if not math.isfinite(value):
                    raise self._diverged(f"{name} is {value}", step)
            self._window.add(values)

    def _diverged(self, what: str, step: int) -> TrainingDivergedError:
        steps = self.checkpoints.steps()
        kept = f" The checkpoint of step {steps[-1]} is intact." if steps else " No checkpoint was made."
        kept = "" if self.temporary else kept
        advice = "Try a lower learning_rate, a smaller max_grad_norm or mixed_precision=no."
        if hasattr(self.config.settings, "learning_rate"):  # an algorithm with its own
            advice = f"Try a lower {self.config.group}.learning_rate."
        return TrainingDivergedError(f"Training diverged: {what} after update {step}.{kept} {advice}")

    # ---- logging

    def _progress_bar(self) -> Any:
        return progress_bar(
            total=self.config.updates,
            initial=self.step,
            unit=" updates",
            desc="training",
            dynamic_ncols=True,
            disable=not (self._progress and self.accelerator.is_main_process),
        )

    def _log(self, bar: Any, updates_per_second: float) -> None:
        """Write the metrics' means since the last log to metrics.jsonl, the trackers and the bar."""
        means = self._window.close()
        if not self.accelerator.is_main_process:
            return
        values = {
            "lr": self._optimizers[0][0].param_groups[0]["lr"],
            **means,
            "updates_per_second": round(updates_per_second, 2),
            "seconds": round(self.seconds, 3),
        }
        self.metrics_log.write({"step": self.step, **values})
        self.accelerator.log(values, step=self.step)
        losses = {
            name.removesuffix("_loss"): f"{value:.3g}" for name, value in means.items() if "loss" in name
        }
        bar.set_postfix({name.partition("/")[2]: text for name, text in losses.items()}, refresh=False)

    # ---- checkpoints

    def _save_checkpoint(self, pending: Inputs) -> None:
        tensors = training_tensors(
            self.algorithm,
            gather_inputs(self.accelerator, pending, self.sampler.draws),
            self.sampler.get_state(),
        )
        broken = first_non_finite(tensors)
        if broken is not None:
            raise self._diverged(f"{broken} holds values that are not finite", self.step)
        if self.accelerator.is_main_process:
            self.checkpoints.save(
                self.step,
                tensors,
                {
                    "train_seconds": self.seconds,
                    **self._window.state(),
                    "config": saved_config(self.config),
                    "dataset_sha256": self.dataset.sha256,
                    **self._circumstances(),
                },
            )
        self.accelerator.wait_for_everyone()
