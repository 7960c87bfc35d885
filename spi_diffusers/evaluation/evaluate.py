"""Play a policy at several cost limits: `evaluate()`, and the whole job of `spi evaluate`.

Evaluation reads a finished policy. Nothing of what it measures may go back into training or calibration.
"""

import importlib.metadata
import logging
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import spi_diffusers
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.envs.wrappers import check_seed
from spi_diffusers.evaluation.loading import LoadedPolicy, load_policy
from spi_diffusers.evaluation.results import (
    BASELINE_EXTRACTION,
    EvaluationEntry,
    TrainInfo,
    check_cost_limit,
    merge_results,
    read_results,
)
from spi_diffusers.evaluation.rollouts import (
    BaselinePolicy,
    PipelinePolicy,
    Policy,
    Rollout,
    check_extraction,
    rollout,
)
from spi_diffusers.evaluation.summary import BehaviorRow, behavior_rows
from spi_diffusers.files import CONFIG_FILE, EVALUATION_FOLDER, REPLAY_FILE, RESULTS_FILE

if TYPE_CHECKING:
    from spi_diffusers.data.streaming import StreamedDataset
    from spi_diffusers.data.transitions import TransitionDataset
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline


#: Called after each rollout with the name of the extraction and the episodes.
RolloutCallback = Callable[[str, Rollout], None]

_SIMULATOR_PACKAGES = {
    "bullet": ("bullet-safety-gym", "pybullet"),
    "velocity": ("mujoco",),
    "safety_gymnasium": ("safety-gymnasium", "mujoco"),
    "metadrive": ("metadrive-simulator",),
}

#: What plays instead where it is asked for, as `simulator` of `make_vector_env`.
_CHOSEN_PACKAGES = {
    "safety_gymnasium": ("safety-gymnasium",),
    "dsrl": ("dsrl", "safety-gymnasium"),
}


def evaluate(
    pipeline: "SPIPolicyPipeline | BaselinePolicyPipeline",
    task: str | Task | None = None,
    *,
    train_info: TrainInfo,
    cost_limits: Iterable[float] | None = None,
    episodes: int = 20,
    seeds: Iterable[int] = (0,),
    extractions: Iterable[str] = ("safe", "reward"),
    feedback: bool = True,
    num_candidates: int | None = None,
    num_inference_steps: int | None = None,
    backend: str = "sync",
    simulator: str = "auto",
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
) -> list[EvaluationEntry]:
    """Evaluate a pipeline at several cost limits.

    All arguments are checked before the first episode is played.

    Args:
        pipeline: the policy. A baseline's is played once and measured against every limit.
        task: the task or its name; None takes the pipeline's own.
        train_info: where the weights come from.
        cost_limits: limits per episode; None takes the task's defaults, for a baseline the one it was
            trained for.
        episodes: episodes per evaluation seed; 20 is DSRL's protocol.
        seeds: evaluation seeds; an entry takes the episodes of all of them together.
        extractions: "safe" and / or "reward" (the paper's Eq. 12, which is played once for all limits,
            because it knows none).
        feedback: with safe extraction, tell the policy at every step what is left of the limit.
        num_candidates: candidate actions per observation; None takes the pipeline's default.
        num_inference_steps: denoising steps; None takes the pipeline's default.
        backend: see `make_vector_env`.
        simulator: see `make_vector_env`.
        progress: show progress bars.
        on_rollout: gets the episodes of every rollout, e.g. to plot them.

    Returns:
        One entry per extraction and limit, sorted as in a results file.

    Raises:
        ValueError: the pipeline was trained for another task, or an argument is out of its range.
        SimulatorNotInstalledError: the task's simulator is missing.
    """
    task = policy_task(pipeline, task)
    settings: dict[str, Any] = {
        "train_info": train_info,
        "episodes": episodes,
        "backend": backend,
        "simulator": simulator,
        "progress": progress,
        "on_rollout": on_rollout,
        "seeds": _listed("seeds", seeds),
    }
    if not is_spi(pipeline):
        return evaluate_policy(
            BaselinePolicy(pipeline),
            task,
            extraction=BASELINE_EXTRACTION,
            knows_limit=False,
            cost_limits=_listed("cost_limits", cost_limits, [pipeline.config.cost_limit]),
            **settings,
        )
    extractions = [check_extraction(name) for name in _listed("extractions", extractions)]
    cost_limits = _listed("cost_limits", cost_limits, task.cost_limits)
    entries: list[EvaluationEntry] = []
    for extraction in extractions:
        policy = PipelinePolicy(
            pipeline,
            extraction=extraction,
            num_candidates=num_candidates,
            num_inference_steps=num_inference_steps,
        )
        entries += evaluate_policy(
            policy,
            task,
            extraction=extraction,
            knows_limit=extraction == "safe",
            cost_limits=cost_limits,
            feedback=feedback,
            **settings,
        )
    return sorted(entries, key=lambda entry: entry.key)


def evaluate_policy(
    policy: Policy,
    task: str | Task,
    *,
    train_info: TrainInfo,
    extraction: str,
    knows_limit: bool,
    cost_limits: Iterable[float] | None = None,
    episodes: int = 20,
    seeds: Iterable[int] = (0,),
    feedback: bool = True,
    backend: str = "sync",
    simulator: str = "auto",
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
) -> list[EvaluationEntry]:
    """Evaluate any policy at several cost limits.

    Args:
        policy: the policy.
        task: the task or its name.
        train_info: where the policy comes from.
        extraction: name of the way it picks its actions, for the entries.
        knows_limit: whether it is told the limit. Otherwise the same episodes are measured against every
            limit, and entries say `feedback=False`.
        cost_limits: as in `evaluate`.
        episodes: as in `evaluate`.
        seeds: as in `evaluate`.
        feedback: as in `evaluate`.
        backend: as in `evaluate`.
        simulator: as in `evaluate`.
        progress: as in `evaluate`.
        on_rollout: as in `evaluate`.

    Returns:
        One entry per limit, in the order of the limits.

    Raises:
        ValueError: an argument is out of its range.
        SimulatorNotInstalledError: the task's simulator is missing.
    """
    task = get_task(task)
    limits = [check_cost_limit(limit) for limit in _listed("cost_limits", cost_limits, task.cost_limits)]
    seeds = [check_seed(seed) for seed in _listed("seeds", seeds)]
    feedback = feedback and knows_limit
    versions = package_versions(task, simulator)

    def play(limit: float | None) -> list[Rollout]:
        rollouts = []
        for seed in seeds:
            played = rollout(
                policy,
                task,
                episodes=episodes,
                seed=seed,
                cost_limit=limit,
                feedback=feedback,
                backend=backend,
                simulator=simulator,
                progress=progress,
            )
            if on_rollout is not None:
                on_rollout(extraction, played)
            rollouts.append(played)
        return rollouts

    without_limit = None if knows_limit else play(None)
    entries = []
    for limit in limits:
        rollouts = play(limit) if without_limit is None else without_limit
        entries.append(
            EvaluationEntry.from_episodes(
                task,
                np.concatenate([played.returns for played in rollouts]),
                np.concatenate([played.cost_returns for played in rollouts]),
                cost_limit=limit,
                extraction=extraction,
                feedback=feedback,
                eval_seeds=seeds,
                steps_per_second=sum(int(played.lengths.sum()) for played in rollouts)
                / sum(played.seconds for played in rollouts),
                train_info=train_info,
                versions=versions,
            )
        )
    return entries


def package_versions(task: Task, simulator: str = "auto") -> dict[str, str]:
    """Versions of what an evaluation's numbers depend on; packages that are not installed are left out.

    Args:
        task: the task.
        simulator: what plays it, as in `make_vector_env`.
    """
    versions = {"python": platform.python_version(), "spi-diffusers": spi_diffusers.__version__}
    packages = (*_SIMULATOR_PACKAGES[task.simulator], *_CHOSEN_PACKAGES.get(simulator, ()))
    for name in ("torch", "diffusers", "numpy", "gymnasium", *packages):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def is_spi(pipeline: Any) -> bool:
    """Whether a pipeline is SPI's, which can be told a limit, and not a baseline's."""
    from spi_diffusers.pipelines import SPIPolicyPipeline

    return isinstance(pipeline, SPIPolicyPipeline)


def acting(pipeline: Any, extraction: str) -> Policy:
    """A pipeline as the policy of a rollout: SPI's with a way to extract actions, a baseline's as it is."""
    return PipelinePolicy(pipeline, extraction=extraction) if is_spi(pipeline) else BaselinePolicy(pipeline)


def check_choices(pipeline: Any, extractions: Sequence[str] | None = None, *, feedback: bool = True) -> None:
    """Refuse choices of how a policy acts that have no effect.

    Args:
        pipeline: The policy.
        extractions: What was chosen; None: nothing.
        feedback: Whether the running cost is fed back, which is what is done where nothing is said.

    Raises:
        ValueError: It is a baseline, or safe extraction is not among them and is to go without feedback.
    """
    if extractions is None and feedback:
        return
    if extractions is not None and "safe" not in extractions and not feedback and is_spi(pipeline):
        raise ValueError(
            "extraction by reward is told nothing of the cost anyway: that it is not fed back has no effect"
        )
    if not is_spi(pipeline):
        raise ValueError(
            f"the policy is a baseline ({pipeline.config.algorithm}), which acts in one way: a choice of "
            "extraction or feedback has no effect on it"
        )


def policy_task(pipeline: Any, task: str | Task | None) -> Task:
    """The task to play a pipeline on: the one that is asked for, or the pipeline's own.

    Raises:
        ValueError: The pipeline was trained for another task, or none is known.
    """
    trained_for = pipeline.config.task
    if task is None:
        if not trained_for:
            raise ValueError(
                "the policy was trained on data of none of DSRL's tasks, so there is no simulator to play it "
                "in: call it in your own environment, pipe(observation, cost_limit=...), or name a task that "
                "has its observations and actions"
            )
        return get_task(trained_for)
    task = get_task(task)
    # Shapes do not tell: BallCircle and CarCircle have the same.
    if trained_for and get_task(trained_for).name != task.name:
        raise ValueError(f"the pipeline was trained for {trained_for}, it cannot be evaluated on {task.name}")
    return task


def _listed(name: str, values: Iterable | None, default: Sequence = ()) -> list:
    listed = list(default if values is None else values)
    if not listed:
        raise ValueError(f"{name} is empty: give at least one")
    if len(set(listed)) < len(listed):
        raise ValueError(f"{name} holds the same value twice: {listed}")
    return listed


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found and wrote.

    Attributes:
        entries: One per extraction and cost limit.
        behaviour: The behaviour data's own figures at these limits; empty where it could not be loaded.
        files: What was written.
    """

    entries: list[EvaluationEntry]
    behaviour: list[BehaviorRow]
    files: list[Path]


def run_evaluation(
    policy: str | Path,
    task: str | None = None,
    *,
    cost_limits: Sequence[float] | None = None,
    episodes: int = 20,
    seeds: Sequence[int] = (0,),
    extractions: Sequence[str] | None = None,
    feedback: bool = True,
    simulator: str = "auto",
    dataset: str | None = None,
    revision: str | None = None,
    output: str | Path | None = None,
    plots: bool = True,
    video: bool = True,
    progress: bool = True,
) -> EvaluationResult:
    """Evaluate a policy and write results, plots and a video.

    Args:
        policy: Folder or id on the Hub, as in `load_policy`.
        task: The task; None takes the policy's own.
        cost_limits: Limits per episode; None takes the task's own, or the one a baseline was trained for.
        episodes: Episodes per limit and seed.
        seeds: Evaluation seeds.
        extractions: "safe" and / or "reward"; None takes both. A baseline acts in one way only.
        feedback: Tell the policy at every step what is left of the limit.
        simulator: What plays the task, as `backend` of `make_env`.
        dataset: Behaviour data to compare with; None takes what the policy was trained on.
        revision: Branch, tag or commit on the Hub.
        output: Folder for the results; None takes `evaluation` in the run's folder, or in the policy's own
            where it is not in one, or `outputs/evaluation/<id>` for a policy from the Hub, with
            `@<revision>` where one is named. A chosen simulator has a folder of its own,
            `evaluation-<simulator>`, as a results file does not tell them apart.
        plots: Draw plots.
        video: Record an episode at the smallest limit.
        progress: Show progress bars.

    Returns:
        Entries and the files that hold them. Results already in the folder's results.json stay, unless
        they are of the same policy, limit and extraction, or of another training that has the same task,
        algorithm and seed: nothing else would tell the two apart.

    Raises:
        ValueError: The policy, the task or an argument cannot be used.
        SimulatorNotInstalledError: The simulator is missing.
        OSError: A file cannot be written.
    """
    loaded = load_policy(policy, revision=revision)
    known = policy_task(loaded.pipeline, task)
    check_choices(loaded.pipeline, extractions, feedback=feedback)
    output = Path(output) if output else _default_output(policy, loaded.folder, simulator, revision)
    # What cannot be used must show before anything is played, not after it.
    if output.is_file():
        raise FileExistsError(f"{output}: is a file; name a folder for the results.")
    if (output / RESULTS_FILE).exists():
        read_results(output / RESULTS_FILE)
    data = _behaviour_data(dataset, loaded, known)
    rollouts: list[tuple[str, Rollout]] = []
    entries = evaluate(
        loaded.pipeline,
        known,
        train_info=loaded.train_info,
        cost_limits=cost_limits,
        episodes=episodes,
        seeds=seeds,
        extractions=("safe", "reward") if extractions is None else extractions,
        feedback=feedback,
        simulator=simulator,
        progress=progress,
        on_rollout=lambda extraction, played: rollouts.append((extraction, played)),
    )
    shown = _merge(output / RESULTS_FILE, entries)
    files = [output / RESULTS_FILE]
    limits = sorted({entry.cost_limit for entry in shown})
    behaviour = behavior_rows(data, limits, known) if data is not None else []
    if plots:
        files += _draw(output, loaded, shown, behaviour, data, rollouts)
    if video and (_to_record(shown) in entries or not (output / REPLAY_FILE).exists()):
        files += _record(output, loaded.pipeline, _to_record(entries), simulator, seeds[0], progress)
    played = {entry.cost_limit for entry in entries}
    return EvaluationResult(entries, [row for row in behaviour if row.cost_limit in played], files)


def _default_output(policy: str | Path, folder: Path | None, simulator: str, revision: str | None) -> Path:
    name = EVALUATION_FOLDER if simulator == "auto" else f"{EVALUATION_FOLDER}-{simulator}"
    if folder is None:
        return Path("outputs") / name / (str(policy) if revision is None else f"{policy}@{revision}")
    in_a_run = (folder.parent / CONFIG_FILE).is_file()
    return (folder.parent if in_a_run else folder) / name


def _behaviour_data(
    dataset: str | None, loaded: LoadedPolicy, task: Task | None
) -> "TransitionDataset | StreamedDataset | None":
    """The data to compare with. One that was asked for must load; the training data may be elsewhere."""
    from spi_diffusers.data.streaming import open_transitions

    config = loaded.train_config
    if dataset is not None:
        return open_transitions(dataset, task)
    try:
        data = open_transitions(
            config.get("dataset"),
            task,
            revision=config.get("revision"),
            clip_actions=bool(config.get("clip_actions")),
        )
    except (ValueError, OSError, ImportError) as error:
        logger.warning("Without the behaviour data's own figures (name it with --dataset): %s", error)
        return None
    expected = loaded.train_info.dataset.get("sha256")
    if expected is not None and data.sha256 != expected:
        logger.warning(
            "Without the behaviour data's own figures (name it with --dataset): by its checksum, %s is not "
            "what the policy was trained on.",
            data.source,
        )
        return None
    return data


def _merge(file: Path, entries: list[EvaluationEntry]) -> list[EvaluationEntry]:
    """Put the entries into the file; returns all in it of the policy, by earlier evaluations too."""
    ours = entries[0]

    def same_name(entry: EvaluationEntry) -> bool:
        return (entry.task, entry.algorithm, entry.train_seed) == (ours.task, ours.algorithm, ours.train_seed)

    lost = []

    def outdated(entry: EvaluationEntry) -> bool:
        training = (entry.updates, entry.train_seconds, entry.dataset)
        if not same_name(entry) or training == (ours.updates, ours.train_seconds, ours.dataset):
            return False
        lost.append(entry)
        return True

    merged = merge_results(file, entries, outdated=outdated)
    if lost:
        logger.warning("%s: %d results of another training of the same name are replaced.", file, len(lost))
    return [entry for entry in merged if same_name(entry)]


def _to_record(entries: list[EvaluationEntry]) -> EvaluationEntry:
    """What the video shows: the best way to act, at the smallest limit."""
    return min(entries, key=lambda entry: (entry.extraction != "safe", not entry.feedback, entry.cost_limit))


def _draw(
    output: Path,
    loaded: LoadedPolicy,
    entries: list[EvaluationEntry],
    behaviour: list[BehaviorRow],
    data: "TransitionDataset | StreamedDataset | None",
    rollouts: list[tuple[str, Rollout]],
) -> list[Path]:
    from spi_diffusers.evaluation.plots import plot_cost_return, plot_limits, plot_training

    files = [plot_limits(entries, output / "limits.png", behaviour)]
    if data is not None:
        table = data.episodes
        files.append(
            plot_cost_return(table.cost_return, table.return_, output / "cost_return.png", entries, rollouts)
        )
    log = loaded.folder.parent / "metrics.jsonl" if loaded.folder else None
    if log is not None and log.is_file():
        files.append(plot_training(log, output / "training.png"))
    return files


def _record(
    output: Path,
    pipeline: Any,
    entry: EvaluationEntry,
    simulator: str,
    seed: int,
    progress: bool,
) -> list[Path]:
    from spi_diffusers.evaluation.video import record_replay

    try:
        replay = record_replay(
            acting(pipeline, entry.extraction),
            entry.task,
            output / REPLAY_FILE,
            cost_limit=entry.cost_limit,
            seed=seed,
            feedback=entry.feedback,
            simulator=simulator,
            progress=progress,
        )
    except ImportError as error:
        logger.warning("No replay video: %s", error)
        return []
    return [replay.path]
