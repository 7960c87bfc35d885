"""What a dataset's card says about how it was collected."""

import platform
import shlex
from dataclasses import asdict
from pathlib import Path

from spi_diffusers.collection.config import CollectConfig, CollectionSpec, load_collect_config
from spi_diffusers.collection.episodes import SIGNIFICANT_BITS
from spi_diffusers.data.simulators import SIMULATORS, package_versions
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import TransitionDataset

#: Where Linux tells the processor's model; elsewhere it does not exist.
_CPUINFO = Path("/proc/cpuinfo")


def describe_collection(dataset: TransitionDataset, spec: CollectionSpec, *, episodes_kept: int) -> str:
    """Paragraphs of Markdown that say how a dataset was collected; of its folder only the name is told.

    `episodes_kept` is the number of episodes from which those of the dataset were chosen.
    """
    task, config = spec.task, spec.config
    simulator = SIMULATORS[task.simulator].title
    settings = _settings_beyond_the_command(task, config)
    beyond = f", with {', '.join(settings)}" if settings else ""
    episodes = dataset.episodes
    best, costliest = float(episodes.return_.max()), float(episodes.cost_return.max())
    versions = ", ".join(f"{name} {version}" for name, version in _versions(task).items())
    paragraphs = [
        spec.description.strip(),
        f"Collected in the real simulator (`{task.env_id}` of {simulator}) by `{collect_command(spec)}`"
        f"{beyond}.",
        _behavior(config),
        _precision(spec.full_precision),
        f"{_choice(dataset.num_episodes, episodes_kept)} The highest return is {best:.0f}, "
        f"{best / task.reward_max:.0%} of DSRL's reference maximum of {task.reward_max:.0f}; the highest "
        f"cost return is {costliest:.0f}. Episodes have at most {task.max_episode_steps} steps.",
        f"Versions: {versions}. Processor: {processor_name()}. With other versions, or on another kind of "
        "processor, the same command may give other episodes.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def collect_command(spec: CollectionSpec) -> str:
    """The shell command that makes a dataset again, as far as `spi data collect` has options for it."""
    config = spec.config
    words = ["spi", "data", "collect", "--task", spec.task.short_name, "--output", spec.folder.resolve().name]
    words += ["--seed", str(spec.seed), "--steps", str(config.steps), "--runs", str(config.runs)]
    if config.scripted_episodes or load_collect_config(spec.task).scripted_episodes:
        words += ["--scripted-episodes", str(config.scripted_episodes)]
    words += ["--max-bytes", str(spec.max_bytes), *(["--full-precision"] if spec.full_precision else [])]
    return shlex.join(words)


def _settings_beyond_the_command(task: Task, config: CollectConfig) -> list[str]:
    by_command = load_collect_config(
        task, steps=config.steps, runs=config.runs, scripted_episodes=config.scripted_episodes
    )
    preset = asdict(by_command)
    return [f"`{name}={value!r}`" for name, value in asdict(config).items() if value != preset[name]]


def _behavior(config: CollectConfig) -> str:
    kinds = []
    if config.cost_targets:
        kinds.append(f"Lagrangian cost targets of {_list(config.cost_targets)}")
    if config.penalties:
        kinds.append(f"fixed penalties of {_list(config.penalties)}")
    if config.speed_targets:
        kinds.append(
            f"speed targets of {_list(config.speed_targets)} times the cost's threshold, beyond which speed "
            f"earned nothing and was penalized with a multiplier of {config.speed_penalty:g}"
        )
    runs = "One run" if config.runs == 1 else f"{config.runs} runs with different seeds"
    each = "" if config.runs == 1 else " each"
    text = (
        f"{runs} of PPO-Lagrangian, {config.steps:,} steps{each}: one policy, conditioned on a budget that "
        f"is drawn anew for every episode ({' and '.join(kinds)}). The episodes come from the whole of "
        "training"
    )
    if config.num_probes:
        text += f"; {config.num_probes} of {config.num_envs} environments played with little or no noise"
    if config.scripted_episodes:
        text += (
            f". A scripted pure-pursuit driver played at least {config.scripted_episodes:,} more, with "
            "speed, path, noise and lapses drawn anew for every episode"
        )
    return f"{text}."


def _choice(chosen: int, kept: int) -> str:
    if chosen == kept:
        return f"These are all {kept} episodes that were kept while collecting."
    return (
        f"{chosen} of {kept} episodes kept while collecting were chosen to fit within the limit of bytes: "
        "the best within each cost limit, and the rest spread over the plane of cost return and return."
    )


def _precision(full_precision: bool) -> str:
    if full_precision:
        return "Actions were clipped to [-1, 1] before they were executed and stored."
    return (
        f"Actions were clipped to [-1, 1] and rounded to {SIGNIFICANT_BITS} significant bits before they "
        f"were executed and stored; observations were rounded to as many bits when they were stored. "
        "Rewards and costs are as the simulator gave them."
    )


def _versions(task: Task) -> dict[str, str]:
    """Versions of what the episodes depend on."""
    versions = package_versions("gymnasium", *SIMULATORS[task.simulator].modules.values(), "numpy", "torch")
    del versions["python"]
    return versions


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def processor_name() -> str:
    """The processor's model; if unknown, the architecture, e.g. `arm64`."""
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown"
