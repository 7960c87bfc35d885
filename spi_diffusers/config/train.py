"""The configuration of a training run, as plain dataclasses that import nothing heavy.

How presets, a `--config` file and the command line become one of these is in `config/layers.py`.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spi_diffusers.config.algorithms import (
    BASELINES,
    SPI_METHOD,
    BCConfig,
    BCQLagConfig,
    BEARLagConfig,
    COptiDICEConfig,
    CPQConfig,
    DiffusionQLConfig,
    SPIConfig,
    check_method,
)
from spi_diffusers.data.tasks import TASKS, resolve_task

TRACKERS = ("tensorboard", "trackio", "wandb")
#: Settings outside its groups that only SPI looks at.
SPI_SETTINGS = (
    "learning_rate",
    "max_grad_norm",
    "calibrate",
    "budget_reserve",
    "reserve_decay",
    "selection",
)


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the field, and the file where there is one."""


@dataclass
class NetworkConfig:
    """Sizes of the noise model and the critics.

    Attributes:
        hidden_dims: Width of each hidden layer, of the noise model and of both critics.
        activation: "silu" is fast on CPU; "mish" is Diffusion-QL's.
        time_embed_dim: Size of the diffusion time's embedding (even).
    """

    hidden_dims: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: Literal["silu", "mish", "gelu", "relu"] = "silu"
    time_embed_dim: int = 16

    def __post_init__(self) -> None:
        sizes = self.hidden_dims
        if not isinstance(sizes, list | tuple) or not sizes or not all(_is_count(size) for size in sizes):
            raise ConfigError(f"network.hidden_dims must be one or more sizes of at least 1, got {sizes!r}.")
        self.hidden_dims = list(sizes)
        _check_choice("network.activation", self.activation, ("silu", "mish", "gelu", "relu"))
        if not _is_count(self.time_embed_dim) or self.time_embed_dim % 2:
            raise ConfigError(
                f"network.time_embed_dim must be even and positive, got {self.time_embed_dim!r}."
            )


@dataclass
class TrainConfig:
    """Everything that decides a training run.

    Attributes:
        task: DSRL task, as `OfflineBallCircle-v0` or `ballcircle`; for data of no DSRL task, the name of its
            config in `dataset`. May be left out where `dataset` says it.
        dataset: Hub dataset id, local parquet folder, DSRL `.hdf5` or `.npz`; empty: the data in the package.
        revision: Branch, tag or commit of a Hub dataset.
        streaming: Read the data in parts while training, from parquet files or the Hub; "auto": if it would
            take more than half of the available memory.
        shuffle_buffer: Transitions in memory at a time when streaming; batches are mixed within them.
        clip_actions: Clip recorded actions outside the action range instead of refusing them.
        action_low: Smallest action of the environment (every component); DSRL's is -1.
        action_high: Largest action of the environment (every component); DSRL's is 1.
        method: Algorithm: "spi", or a baseline: "bc", "bc-safe" (the episodes within the cost limit only),
            "bcq-lag", "bear-lag", "cpq", "coptidice" or "diffusion-ql" (knows no cost).
        cost_limit: Cost of an episode that a baseline is trained for; empty: the task's smallest usual limit.
            SPI is told its limit when it acts.
        preset: Variant on top of the task's preset, such as `paper`, `paper-no-safety` or `bc`.
        seed: Decides initial weights and all randomness of training.
        output_dir: Folder of the run; empty: outputs/<task>[-<preset>]-seed<seed>.
        updates: Number of training updates.
        batch_size: Transitions per update, over all processes together.
        learning_rate: Adam's learning rate at the start; a baseline has its own.
        lr_schedule: "cosine" decays the learning rate to zero over `updates`; "constant" keeps it.
        max_grad_norm: Clip of the gradient's norm; 0 switches it off.
        network: Sizes of the networks.
        algorithm: SPI's own settings.
        bc: BC's own settings.
        bcq_lag: BCQ-Lag's own settings.
        bear_lag: BEAR-Lag's own settings.
        cpq: CPQ's own settings.
        coptidice: COptiDICE's own settings.
        diffusion_ql: Diffusion-QL's own settings.
        mixed_precision: "bf16" computes in bfloat16 and keeps float32 weights; "no" computes in float32.
        device: "auto", "cpu", "cuda" or "mps".
        threads: CPU threads that training may use; empty: torch's setting.
        overlap: Train critics and policy side by side in two threads; "auto": on one process, on CPU, with
            two or more threads.
        calibrate: After training, measure offline what cost the extracted policy has, and allow less where a
            limit that is not fed back would be exceeded; only with algorithm.predict_cost.
        budget_reserve: Part of a fed-back cost budget that the policy keeps back, in units of cost.
        reserve_decay: How the policy lets go of it: it keeps budget_reserve * (share of the episode that is
            left) ** reserve_decay. 0 keeps it to the end.
        selection: What the policy's safe extraction compares: "candidate", single actions; or "weight", the
            policies of the safety weights, which does not seek out the critics' errors.
        log_every: Updates between two lines in metrics.jsonl.
        checkpoint_every: Updates between two checkpoints; the last update always makes one.
        keep_checkpoints: Number of newest checkpoints to keep.
        resume: Go on from the newest complete checkpoint in `output_dir`, bit for bit.
        trackers: Any of "tensorboard", "trackio", "wandb"; metrics.jsonl is always written.
    """

    task: str | None = None
    dataset: str | None = None
    revision: str | None = None
    streaming: Literal["auto"] | bool = "auto"
    shuffle_buffer: int = 500_000
    clip_actions: bool = False
    action_low: float = -1.0
    action_high: float = 1.0
    method: str = SPI_METHOD
    cost_limit: float | None = None
    preset: str | None = None
    seed: int = 0
    output_dir: str | None = None
    updates: int = 20_000
    batch_size: int = 256
    learning_rate: float = 3e-4
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    max_grad_norm: float = 10.0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    algorithm: SPIConfig = field(default_factory=SPIConfig)
    bc: BCConfig = field(default_factory=BCConfig)
    bcq_lag: BCQLagConfig = field(default_factory=BCQLagConfig)
    bear_lag: BEARLagConfig = field(default_factory=BEARLagConfig)
    cpq: CPQConfig = field(default_factory=CPQConfig)
    coptidice: COptiDICEConfig = field(default_factory=COptiDICEConfig)
    diffusion_ql: DiffusionQLConfig = field(default_factory=DiffusionQLConfig)
    mixed_precision: str = "bf16"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = None
    overlap: Literal["auto"] | bool = "auto"
    calibrate: bool = True
    budget_reserve: float = 3.0
    reserve_decay: float = 0.0
    selection: Literal["candidate", "weight"] = "candidate"
    log_every: int = 100
    checkpoint_every: int = 2_000
    keep_checkpoints: int = 2
    resume: bool = False
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.task is None and self.dataset is None:
            raise ConfigError("task or dataset must be given, for example task=ballcircle.")
        if self.task is not None:
            self.task = resolve_task(self.task, self.dataset)[1]
        self._check_method()
        for name in ("updates", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if not _is_count(getattr(self, name)):
                raise ConfigError(
                    f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}."
                )
        if self.threads is not None and not _is_count(self.threads):
            raise ConfigError(f"threads must be a whole number of at least 1, got {self.threads!r}.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed!r}.")
        if not (_is_number(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate must be positive and finite, got {self.learning_rate!r}.")
        if not (_is_number(self.max_grad_norm) and self.max_grad_norm >= 0):
            raise ConfigError(f"max_grad_norm must be finite and at least 0, got {self.max_grad_norm!r}.")
        low, high = self.action_low, self.action_high
        if not (_is_number(low) and _is_number(high) and low < high):
            raise ConfigError(
                f"action_low must lie below action_high, both finite; got {low!r} and {high!r}."
            )
        if self.task in TASKS and (low, high) != (-1.0, 1.0):
            raise ConfigError(
                f"action_low and action_high are -1 and 1 for {self.task}; got {low} and {high}."
            )
        for name in ("budget_reserve", "reserve_decay"):
            value = getattr(self, name)
            if not (_is_number(value) and value >= 0):
                raise ConfigError(f"{name} must be finite and at least 0, got {value!r}.")
        for name in ("clip_actions", "resume", "calibrate"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        for name in ("overlap", "streaming"):
            value = getattr(self, name)
            if value != "auto" and not isinstance(value, bool):
                raise ConfigError(f"{name} must be auto, true or false, got {value!r}.")
        if not _is_count(self.shuffle_buffer) or self.shuffle_buffer < self.batch_size:
            raise ConfigError(
                f"shuffle_buffer must be a whole number of at least batch_size ({self.batch_size}), got "
                f"{self.shuffle_buffer!r}."
            )
        _check_choice("selection", self.selection, ("candidate", "weight"))
        _check_choice("lr_schedule", self.lr_schedule, ("constant", "cosine"))
        _check_choice("device", self.device, ("auto", "cpu", "cuda", "mps"))
        if self.mixed_precision == "fp16":
            raise ConfigError(
                "mixed_precision=fp16 is not supported: the critics' values and their squared errors can "
                "leave its range, and it would need loss scaling; use bf16, which has the range of float32."
            )
        _check_choice("mixed_precision", self.mixed_precision, ("bf16", "no"))
        for tracker in self.trackers:
            _check_choice("trackers", tracker, TRACKERS)
        if len(set(self.trackers)) < len(self.trackers):
            raise ConfigError(f"trackers must not repeat, got {self.trackers}.")
        if not self.output_dir:
            self.output_dir = str(Path("outputs") / self._run_name())

    def _check_method(self) -> None:
        try:
            check_method(self.method)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.method == SPI_METHOD:
            if self.cost_limit is not None:
                raise ConfigError(
                    f"cost_limit={self.cost_limit}: SPI is told its limit when it acts; only baselines are "
                    "trained for one."
                )
            return
        if self.streaming is True:
            raise ConfigError(f"streaming=true: {self.method} trains on data in memory only.")
        if self.cost_limit is None:
            if self.task is None or self.task not in TASKS:
                raise ConfigError(f"{self.method} without a DSRL task needs the cost_limit to train for.")
            self.cost_limit = float(TASKS[self.task].cost_limits[0])
        if not (_is_number(self.cost_limit) and self.cost_limit >= 0):
            raise ConfigError(f"cost_limit must be finite and at least 0, got {self.cost_limit!r}.")

    def _run_name(self) -> str:
        name = self.task or Path(str(self.dataset)).stem
        name = TASKS[name].short_name if name in TASKS else name
        variant = self.preset or (None if self.method == SPI_METHOD else self.method)
        return "-".join([name, *([variant] if variant else []), f"seed{self.seed}"])

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data for JSON, which `--config` reads back.

        Settings of algorithms that are not used are left out.
        """
        used = asdict(self)
        unused = self.unused_settings()
        if self.method == SPI_METHOD:
            unused |= {"method", "cost_limit"}
        return {name: value for name, value in used.items() if name not in unused}

    def unused_settings(self) -> set[str]:
        """Settings, and groups of them, that belong to other algorithms."""
        groups = {entry.settings for entry in BASELINES.values()}
        if self.method == SPI_METHOD:
            return groups
        return {*groups, "algorithm", "network", *SPI_SETTINGS} - {BASELINES[self.method].settings}

    @property
    def settings(self) -> Any:
        """The settings of the algorithm in use."""
        return getattr(self, "algorithm" if self.method == SPI_METHOD else BASELINES[self.method].settings)

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


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
