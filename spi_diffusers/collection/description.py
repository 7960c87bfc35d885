"""What a dataset's card says about how it was collected."""

import importlib.metadata
import shlex
from dataclasses import asdict
from pathlib import Path

import spi_diffusers
from spi_diffusers.collection.config import CollectConfig, load_collect_config
from spi_diffusers.collection.processor import processor_name
from spi_diffusers.data.rounding import SIGNIFICANT_BITS
from spi_diffusers.data.simulators import SIMULATORS
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import TransitionDataset


def describe_collection(
    dataset: TransitionDataset,
    task: Task,
    config: CollectConfig,
    *,
    folder: Path,
    seed: int,
    max_bytes: int,
    full_precision: bool,
    episodes_kept: int,
    more: str = "",
) -> str:
    """Say how a dataset was collected.

    Args:
        dataset: The dataset.
        task: The task that was played.
        config: How it was collected.
        folder: The dataset's folder; only its name is told.
        seed: Of the collection.
        max_bytes: What the dataset was thinned to.
        full_precision: Whether all bits were kept.
        episodes_kept: From how many episodes those of the dataset were chosen.
        more: Further words, which come first.

    Returns:
        Paragraphs of Markdown.
    """
    simulator = SIMULATORS[task.simulator].title
    command = collect_command(
        task, config, folder, seed=seed, max_bytes=max_bytes, full_precision=full_precision
    )
    settings = _settings_beyond_the_command(task, config)
    beyond = f", with {', '.join(settings)}" if settings else ""
    episodes = dataset.episodes
    best, costliest = float(episodes.return_.max()), float(episodes.cost_return.max())
    versions = ", ".join(f"{name} {version}" for name, version in _versions(task).items())
    paragraphs = [
        more.strip(),
        f"Collected in the real simulator (`{task.env_id}` of {simulator}) by `{command}`{beyond}.",
        _behaviour(task, config),
        _precision(full_precision),
        f"{_choice(dataset.num_episodes, episodes_kept)} The highest return is {best:.0f}, "
        f"{best / task.reward_max:.0%} of DSRL's reference maximum of {task.reward_max:.0f}; the highest "
        f"cost return is {costliest:.0f}. Episodes have at most {task.max_episode_steps} steps.",
        f"Versions: {versions}. Processor: {processor_name()}. With other versions, or on another kind of "
        "processor, the same command may give other episodes.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def collect_command(
    task: Task, config: CollectConfig, folder: Path, *, seed: int, max_bytes: int, full_precision: bool
) -> str:
    """The command that makes a dataset again, as far as `spi data collect` has options for it.

    Args:
        task: The task.
        config: How it is collected.
        folder: The dataset's folder; only its name is told.
        seed: Of the collection.
        max_bytes: What the dataset is thinned to.
        full_precision: Whether all bits are kept.

    Returns:
        A shell command.
    """
    words = ["spi", "data", "collect", "--task", task.short_name, "--output", folder.resolve().name]
    words += ["--seed", str(seed), "--steps", str(config.steps), "--runs", str(config.runs)]
    if config.scripted_episodes or load_collect_config(task).scripted_episodes:
        words += ["--scripted-episodes", str(config.scripted_episodes)]
    words += ["--max-bytes", str(max_bytes), *(["--full-precision"] if full_precision else [])]
    return shlex.join(words)


def _settings_beyond_the_command(task: Task, config: CollectConfig) -> list[str]:
    by_command = load_collect_config(
        task, steps=config.steps, runs=config.runs, scripted_episodes=config.scripted_episodes
    )
    preset = asdict(by_command)
    return [f"`{name}={value!r}`" for name, value in asdict(config).items() if value != preset[name]]


def _behaviour(task: Task, config: CollectConfig) -> str:
    kinds = []
    if config.cost_targets:
        kinds.append(f"Lagrangian cost targets of {_list(config.cost_targets)}")
    if config.penalties:
        kinds.append(f"fixed penalties of {_list(config.penalties)}")
    if config.speed_targets:
        kinds.append(
            f"speed targets of {_list(config.speed_targets)} times the cost's threshold, beyond which speed "
            f"earned nothing and was penalised with a multiplier of {config.speed_penalty:g}"
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
        f"{chosen} of {kept} episodes kept while collecting were chosen by `spi_diffusers.data.thinning`: "
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
    names = ("gymnasium", *SIMULATORS[task.simulator].modules.values(), "numpy", "torch")
    versions = {"spi-diffusers": spi_diffusers.__version__}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # put on the path by hand
            continue
    return versions


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
