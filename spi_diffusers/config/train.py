"""The configuration of a training run; how presets, files and options make one is in `config/layers.py`."""

import json
import math
import re
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from spi_diffusers.config.algorithm_settings import (
    BCConfig,
    BCQLagConfig,
    BEARLagConfig,
    CAPSConfig,
    CDTConfig,
    COptiDICEConfig,
    CPQConfig,
    DiffusionQLConfig,
    SPIConfig,
)
from spi_diffusers.config.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from spi_diffusers.config.validation import (
    Count,
    Even,
    Flag,
    NotNegative,
    Numbers,
    Positive,
    ShareBelowOne,
    Sizes,
    Whole,
    settings,
)
from spi_diffusers.data.tasks import TASKS, resolve_task
from spi_diffusers.files import OUTPUTS_FOLDER, local_path, nearest
from spi_diffusers.messages import shown


@settings
class NetworkConfig:
    """Sizes of the noise model and the critics.

    Attributes:
        hidden_dims: Width of each hidden layer, of the noise model and of both critics.
        activation: "silu" is fast on CPU; "mish" is Diffusion-QL's.
        time_embed_dim: Size of the diffusion time's embedding (even).
    """

    hidden_dims: Sizes = field(default_factory=lambda: [256, 256, 256])
    activation: Literal["silu", "mish", "gelu", "relu"] = "silu"
    time_embed_dim: Even = 16


def _known_algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        hint = nearest(name, ALGORITHMS)
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {shown(name)}{hint}")
    return name


def _refuse_fp16(value: Any) -> Any:
    if value == "fp16":
        raise ValueError(
            "mixed_precision=fp16 is not supported: the critics' values and their squared errors can leave "
            "its range; use bf16, which has the range of float32"
        )
    return value


@settings
class TrainConfig:
    """Everything that decides a training run.

    Attributes:
        task: DSRL task, such as ballcircle; `spi tasks` lists them. For data without a DSRL task, the name of
            its config in the dataset. May be left out where the dataset says it.
        dataset: Hub id, parquet folder, or CSV, parquet, npz or HDF5 file; empty: the data in the package.
        revision: Branch, tag or commit of a Hub dataset.
        streaming: Read the data in parts while training, from parquet files or the Hub; "auto": if it would
            take more than half of the available memory.
        shuffle_buffer: Transitions in memory at a time when streaming; batches are mixed within them.
        clip_actions: Clip recorded actions outside the action range instead of refusing them.
        action_low: Smallest action of the environment, one number or one for each dimension; empty: what the
            data's source states, or -1, or the smallest in the data where it reaches beyond [-1, 1].
        action_high: Largest action of the environment, as action_low.
        max_episode_steps: Steps of an episode, over which a limit counts; empty: the task's, or found in the
            data.
        algorithm: What is trained, a key of `config.algorithms.ALGORITHMS`. spi-paper is the paper's SPI, and
            has two ablations; bc-safe imitates the episodes within the cost limit only; diffusion-ql knows no
            cost. Each has its own defaults.
        cost_limit: Cost per episode that a baseline is trained for; empty: the task's first limit. bc and
            diffusion-ql do not look at it, and need none. SPI, CDT and CAPS are told theirs when they act.
        seed: Decides weights and all randomness.
        holdout: Share of the episodes that SPI does not train on. They show by how much costs exceed what is
            expected, and `spi assess` judges the policy by them; 0: none, as with fewer than 20 episodes.
        output_dir: Folder of the run; empty: `outputs/TASK[-ALGORITHM]-seedN`.
        updates: Number of training updates. After them, SPI's evaluation critic makes four for every five.
        batch_size: Transitions per update, over all processes together.
        learning_rate: Adam's learning rate at the start; a baseline has its own.
        lr_schedule: "cosine" decays the learning rate to zero over `updates`; "constant" keeps it.
        max_grad_norm: Clip of the gradient's norm; 0 switches it off.
        network: Sizes of the networks.
        spi: SPI's own settings.
        bc: BC's own settings.
        bcq_lag: BCQ-Lag's own settings.
        bear_lag: BEAR-Lag's own settings.
        cpq: CPQ's own settings.
        coptidice: COptiDICE's own settings.
        diffusion_ql: Diffusion-QL's own settings.
        cdt: CDT's own settings.
        caps: CAPS's own settings.
        mixed_precision: Precision of products: bfloat16 (bf16) or float32 (no); auto takes bfloat16 where the
            device has units for it. Weights are float32.
        device: Where to train; auto takes a GPU if there is one.
        threads: CPU threads that training may use; empty: torch's setting.
        overlap: Train critics and policy side by side in two threads; "auto": on one process, on CPU, with
            two or more threads.
        log_every: Updates between two lines in metrics.jsonl.
        checkpoint_every: Updates between two checkpoints; the last update always makes one.
        keep_checkpoints: Number of newest checkpoints to keep.
        resume: Go on from the newest complete checkpoint in the output folder. The result is that of a run
            without a stop, bit for bit.
        trackers: Where metrics go besides metrics.jsonl.
    """

    task: str | None = None
    dataset: str | None = None
    revision: str | None = None
    streaming: Literal["auto"] | Flag = "auto"
    shuffle_buffer: Count = 500_000
    clip_actions: Flag = False
    action_low: Numbers | None = None
    action_high: Numbers | None = None
    max_episode_steps: Count | None = None
    algorithm: Annotated[str, AfterValidator(_known_algorithm)] = DEFAULT_ALGORITHM
    cost_limit: NotNegative | None = None
    seed: Whole = 0
    holdout: ShareBelowOne = 0.1
    output_dir: str | None = None
    updates: Count = 15_000
    batch_size: Count = 256
    learning_rate: Positive = 1e-3
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    max_grad_norm: NotNegative = 10.0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    spi: SPIConfig = field(default_factory=SPIConfig)
    bc: BCConfig = field(default_factory=BCConfig)
    bcq_lag: BCQLagConfig = field(default_factory=BCQLagConfig)
    bear_lag: BEARLagConfig = field(default_factory=BEARLagConfig)
    cpq: CPQConfig = field(default_factory=CPQConfig)
    coptidice: COptiDICEConfig = field(default_factory=COptiDICEConfig)
    diffusion_ql: DiffusionQLConfig = field(default_factory=DiffusionQLConfig)
    cdt: CDTConfig = field(default_factory=CDTConfig)
    caps: CAPSConfig = field(default_factory=CAPSConfig)
    mixed_precision: Annotated[Literal["auto", "bf16", "no"], BeforeValidator(_refuse_fp16)] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Count | None = None
    overlap: Literal["auto"] | Flag = "auto"
    log_every: Count = 100
    checkpoint_every: Count = 2_000
    keep_checkpoints: Count = 2
    resume: Flag = False
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("task", "dataset", "revision", "output_dir"):  # as an unset variable of a shell gives it
            if getattr(self, name) == "":
                setattr(self, name, None)
        if self.task is None and self.dataset is None:
            raise ValueError(
                "task or dataset must be given, for example --task ballcircle or --dataset my.csv"
            )
        if self.task is not None:
            self.task = resolve_task(self.task, self.dataset)[1]
        self._check_actions()
        known = None if self.task is None else TASKS.get(self.task)
        if known is not None and self.max_episode_steps not in (None, known.max_episode_steps):
            raise ValueError(
                f"max_episode_steps is {known.max_episode_steps} for {known.name}, got "
                f"{self.max_episode_steps}"
            )
        if self.shuffle_buffer < self.batch_size:
            raise ValueError(
                f"shuffle_buffer must be at least batch_size ({self.batch_size}), got {self.shuffle_buffer}"
            )
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers must not repeat, got {shown(self.trackers)}")
        self._check_algorithm()
        self.output_dir = str(local_path(self.output_dir or Path(OUTPUTS_FOLDER) / self._run_name()))
        return self

    def _check_actions(self) -> None:
        low, high = self.action_low, self.action_high
        if (low is None) != (high is None):
            raise ValueError("action_low and action_high are given together, or neither")
        if low is None or high is None:
            return
        lows, highs = (bound if isinstance(bound, list) else [bound] for bound in (low, high))
        size = max(len(lows), len(highs))
        lows, highs = (bound * size if len(bound) == 1 else bound for bound in (lows, highs))
        got = f"got {shown(low)} and {shown(high)}"
        if len(lows) != len(highs):
            raise ValueError(f"action_low and action_high must have as many numbers, {got}")
        if any(least >= largest for least, largest in zip(lows, highs, strict=True)):
            raise ValueError(f"action_low must lie below action_high, {got}")
        if self.task in TASKS and ({*lows}, {*highs}) != ({-1.0}, {1.0}):
            raise ValueError(f"action_low and action_high are -1 and 1 for {self.task}, {got}")

    def _check_algorithm(self) -> None:
        entry = ALGORITHMS[self.algorithm]
        if self.streaming is True and not entry.streams:
            raise ValueError(f"streaming=true: {self.algorithm} trains on data in memory only")
        if entry.limit == "acting" and self.cost_limit is not None:
            raise ValueError(
                f"cost_limit has no effect on training {self.algorithm}; pass the limit when the policy acts "
                f"(spi evaluate --cost-limit {self.cost_limit:g})"
            )
        known = None if self.task is None else TASKS.get(self.task)
        if entry.limit != "acting" and self.cost_limit is None and known is not None:
            self.cost_limit = float(known.cost_limits[0])
        if entry.limit == "training" and self.cost_limit is None:
            raise ValueError(
                f"{self.algorithm} needs cost_limit: this data has no DSRL task to take a default from"
            )
        for name, value in entry.fixed.items():  # results must be called what was trained
            if getattr(self.settings, name) != value:
                raise ValueError(
                    f"algorithm={self.algorithm} needs {self.group}.{name}={json.dumps(value)}; "
                    f"for other values use algorithm={self._fitting_algorithm()}"
                )

    def _fitting_algorithm(self) -> str:
        """The first algorithm of the group whose name fits the settings."""
        return next(
            name
            for name, entry in ALGORITHMS.items()
            if entry.group == self.group
            and all(getattr(self.settings, key) == value for key, value in entry.fixed.items())
        )

    def _run_name(self) -> str:
        name = self.task or Path(str(self.dataset)).stem
        name = TASKS[name].short_name if name in TASKS else re.sub(r"[/\\\0]", "-", name)
        variant = [] if self.algorithm == DEFAULT_ALGORITHM else [self.algorithm]
        return "-".join([name, *variant, f"seed{self.seed}"])

    @property
    def group(self) -> str:
        """Name of the field that holds the settings of the algorithm in use."""
        return ALGORITHMS[self.algorithm].group

    @property
    def settings(self) -> Any:
        """The settings of the algorithm in use."""
        return getattr(self, self.group)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data for JSON, which `--config` reads back.

        Settings of algorithms that are not used are left out.
        """
        unused = self.unused_settings()
        if ALGORITHMS[self.algorithm].limit == "acting":
            unused.add("cost_limit")
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def unused_settings(self) -> set[str]:
        """Settings, and groups of them, that belong to other algorithms."""
        used = {self.group, *ALGORITHMS[self.algorithm].uses}
        return {name for entry in ALGORITHMS.values() for name in (entry.group, *entry.uses)} - used

    def learning_rate_at(self, step: int, start: float | None = None) -> float:
        """Learning rate of update `step` (0 to updates - 1): a pure function, so resuming needs no state.

        Args:
            step: Number of updates before.
            start: Learning rate of the first update; None: `learning_rate`.
        """
        start = self.learning_rate if start is None else start
        if self.lr_schedule == "constant":
            return start
        return start * 0.5 * (1.0 + math.cos(math.pi * step / self.updates))
