"""Play a policy at several cost limits: `evaluate()`, and the whole job of `spi evaluate`.

Evaluation reads a finished policy. Nothing of what it measures may go back into training or calibration.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.simulators import SIMULATORS, package_versions
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.envs.make import check_seed
from spi_diffusers.evaluation import BASELINE_EXTRACTION, EXTRACTIONS, knows_limit
from spi_diffusers.evaluation.results import (
    EvaluationEntry,
    Results,
    TrainInfo,
    check_cost_limit,
    merge_results,
    read_results,
)
from spi_diffusers.evaluation.rollouts import PipelinePolicy, Policy, Rollout, check_episodes, rollout
from spi_diffusers.evaluation.summary import behavior_rows
from spi_diffusers.files import (
    CONFIG_FILE,
    EVALUATION_FOLDER,
    INFO_FILE,
    METRICS_FILE,
    REPLAY_FILE,
    RESULTS_FILE,
    PolicyError,
    find_local_policy,
)

if TYPE_CHECKING:
    from spi_diffusers.data.streaming import StreamedDataset
    from spi_diffusers.data.transitions import TransitionDataset
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

logger = logging.getLogger(__name__)

#: Called after each rollout with the name of the extraction and the episodes.
RolloutCallback = Callable[[str, Rollout], None]

_PACKAGES = ("torch", "diffusers", "numpy", "gymnasium")
#: What a simulator plays with besides the modules that it needs: a task's own one, or a chosen one.
_ALSO = {"safety_gymnasium": ("safety-gymnasium", "mujoco"), "dsrl": ("dsrl", "safety-gymnasium")}


@dataclass(frozen=True)
class EvaluationSpec:
    """How a policy is played; `evaluate` explains the fields.

    Raises:
        ValueError: A value is out of its range.
    """

    cost_limits: Iterable[float] | None = None
    episodes: int = 20
    seeds: Iterable[int] = (0,)
    extractions: Iterable[str] | None = None
    feedback: bool = True
    simulator: str = "auto"
    num_candidates: int | None = None
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        lists = {"cost_limits": check_cost_limit, "seeds": check_seed, "extractions": _check_extraction}
        for name, check in lists.items():
            values = getattr(self, name)
            if values is None and name != "seeds":
                continue
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise ValueError(f"{name} must be a list, got {values!r}")
            checked = tuple(check(value) for value in values)
            if not checked:
                raise ValueError(f"{name} is empty: give at least one")
            if len(set(checked)) < len(checked):
                raise ValueError(f"{name} holds the same value twice: {list(checked)}")
            object.__setattr__(self, name, checked)
        check_episodes(self.episodes)
        if not isinstance(self.feedback, bool):
            raise ValueError(f"feedback must be true or false, got {self.feedback!r}")
        for name in ("num_candidates", "num_inference_steps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")

    def ways(self, pipeline: Any) -> tuple[str, ...]:
        """The extractions to play a policy with; ValueError: a choice has no effect on this policy."""
        known: tuple[str, ...] | None = getattr(pipeline, "extractions", None)
        if known is None:  # what diffusers loads with trust_remote_code
            raise PolicyError(
                f"{type(pipeline).__module__}.{type(pipeline).__name__} has no training record: load the "
                "policy with spi_diffusers.SPIPolicyPipeline.from_pretrained"
            )
        chosen = known if self.extractions is None else tuple(self.extractions)
        sampling = (self.num_candidates, self.num_inference_steps)
        if len(known) == 1 and (chosen != known or not self.feedback or any(sampling)):
            raise ValueError(
                f"the policy is a baseline ({pipeline.config.algorithm}), which acts in one way: a "
                "choice of extraction, feedback or sampling has no effect on it"
            )
        if wrong := [name for name in chosen if name not in known]:
            raise ValueError(f"this policy has no extraction {wrong[0]!r}, only {' and '.join(known)}")
        if not (self.feedback or len(known) == 1 or any(map(knows_limit, chosen))):
            raise ValueError(f"feedback=False has no effect: extraction {chosen[0]!r} ignores the cost")
        return chosen

    def acting(self, pipeline: Any, extraction: str) -> PipelinePolicy:
        """A pipeline as the policy of a rollout."""
        return PipelinePolicy(
            pipeline,
            extraction,
            num_candidates=self.num_candidates,
            num_inference_steps=self.num_inference_steps,
        )


def _check_extraction(extraction: Any) -> str:
    if extraction not in (*EXTRACTIONS, BASELINE_EXTRACTION):
        raise ValueError(f"extraction must be 'safe' or 'reward' (Eq. 12), got {extraction!r}")
    return extraction


def evaluate(
    policy: "SPIPolicyPipeline | BaselinePolicyPipeline | str | os.PathLike[str]",
    task: str | Task | None = None,
    *,
    cost_limits: Iterable[float] | None = None,
    episodes: int = 20,
    seeds: Iterable[int] = (0,),
    extractions: Iterable[str] | None = None,
    feedback: bool = True,
    simulator: str = "auto",
    num_candidates: int | None = None,
    num_inference_steps: int | None = None,
    algorithm: str | None = None,
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
) -> Results:
    """Play a policy in its simulator at several cost limits.

    All arguments are checked before the first episode is played.

    Examples:
        >>> results = evaluate("outputs/ballcircle-seed0", cost_limits=[10, 20, 40], episodes=20)
        >>> print(results)

    Args:
        policy: A pipeline, the folder of a policy or of its run, or an id on the Hub. A baseline is played
            once and measured against every limit.
        task: The task or its name; None takes the policy's own.
        cost_limits: Limits per episode; None takes the task's defaults, for a baseline the one that it was
            trained for.
        episodes: Episodes per limit and evaluation seed; 20 is DSRL's protocol.
        seeds: Evaluation seeds; an entry takes the episodes of all of them together.
        extractions: "safe" and / or "reward" (the paper's Eq. 12, which is played once for all limits,
            because it knows none); None takes both. A baseline acts in one way, called "policy".
        feedback: With safe extraction, tell the policy at every step what is left of the limit.
        simulator: What plays the task, as `simulator` of `make_env`.
        num_candidates: Candidate actions per observation; None takes the policy's default.
        num_inference_steps: Denoising steps; None takes the policy's default.
        algorithm: What results call the algorithm; None takes the name in the policy's `training_record`.
            Without a record, or if the weights were changed since, results say that the training is unknown.
        progress: Show progress bars.
        on_rollout: Gets the name of the extraction and the episodes of every rollout.

    Returns:
        One entry per extraction and limit, sorted as in a results file.

    Raises:
        ValueError: The policy was trained for another task, or an argument is out of its range.
        FileNotFoundError: There is no such policy.
        SimulatorNotInstalledError: The task's simulator is missing.
    """
    spec = EvaluationSpec(
        cost_limits=cost_limits,
        episodes=episodes,
        seeds=seeds,
        extractions=extractions,
        feedback=feedback,
        simulator=simulator,
        num_candidates=num_candidates,
        num_inference_steps=num_inference_steps,
    )
    if isinstance(policy, str | os.PathLike):
        from spi_diffusers.pipelines.loading import load_pipeline

        policy = load_pipeline(policy)
    known = policy_task(policy, task)
    spec.ways(policy)
    info = training_of(policy)
    if info is None:
        logger.warning("The policy has no record of its training: its results say that it is unknown.")
        name = policy.config.get("algorithm") or "unknown"
        info = TrainInfo(name, 0, 0, 0.0, {"id": "unknown", "sha256": "unknown"})
    if algorithm is not None:
        info = replace(info, algorithm=algorithm)
    return _evaluate(policy, known, spec, info, progress, on_rollout)


def _evaluate(
    pipeline: "SPIPolicyPipeline | BaselinePolicyPipeline",
    task: Task,
    spec: EvaluationSpec,
    train_info: TrainInfo,
    progress: bool,
    on_rollout: RolloutCallback | None,
) -> Results:
    entries: list[EvaluationEntry] = []
    ways = spec.ways(pipeline)
    if spec.cost_limits is None and pipeline.default_limit is not None:
        spec = replace(spec, cost_limits=[pipeline.default_limit])
    for extraction in ways:
        policy = spec.acting(pipeline, extraction)
        entries += evaluate_policy(policy, task, spec, extraction, train_info, progress, on_rollout)
    return Results(sorted(entries, key=lambda entry: entry.key))


def evaluate_policy(
    policy: Policy,
    task: Task,
    spec: EvaluationSpec,
    extraction: str,
    train_info: TrainInfo,
    progress: bool = True,
    on_rollout: RolloutCallback | None = None,
) -> list[EvaluationEntry]:
    """Play any policy at several cost limits; one entry per limit, in the order of the limits.

    `extraction` names its way of acting. Only "safe" is told the limit; with others the same episodes are
    measured against every limit, and entries say `feedback=False`.
    """
    told = knows_limit(extraction)
    feedback = spec.feedback and told
    seeds = tuple(spec.seeds)
    simulators = (*_ALSO.get(task.simulator, ()), *_ALSO.get(spec.simulator, ()))
    versions = package_versions(*_PACKAGES, *SIMULATORS[task.simulator].packages, *simulators)

    def play(limit: float | None) -> list[Rollout]:
        how: dict[str, Any] = {"episodes": spec.episodes, "cost_limit": limit, "feedback": feedback}
        how |= {"simulator": spec.simulator, "progress": progress}
        rollouts = []
        for seed in seeds:
            rollouts.append(rollout(policy, task, seed=seed, **how))
            if on_rollout is not None:
                on_rollout(extraction, rollouts[-1])
        return rollouts

    without_limit = None if told else play(None)
    entries = []
    for limit in spec.cost_limits or task.cost_limits:
        rollouts = play(limit) if without_limit is None else without_limit
        steps, seconds = (sum(values) for values in zip(*map(_speed, rollouts), strict=True))
        entries.append(
            EvaluationEntry.from_episodes(
                task,
                np.concatenate([played.returns for played in rollouts]),
                np.concatenate([played.cost_returns for played in rollouts]),
                cost_limit=limit,
                train_info=train_info,
                extraction=extraction,
                feedback=feedback,
                eval_seeds=seeds,
                steps_per_second=steps / seconds,
                versions=versions,
            )
        )
    return entries


def _speed(played: Rollout) -> tuple[int, float]:
    return int(played.lengths.sum()), played.seconds


def training_of(pipeline: Any) -> TrainInfo | None:
    """Where a pipeline's weights come from; None without a record, or if it was changed since."""
    if pipeline.training_record is None or not pipeline.is_as_trained:
        return None
    try:
        return TrainInfo.from_dict(pipeline.training_record["info"])
    except ValueError as error:
        raise ValueError(f"the policy's {INFO_FILE}: {error}") from error


def policy_task(pipeline: Any, task: str | Task | None) -> Task:
    """The task to play a pipeline on: the one that is asked for, or the pipeline's own.

    ValueError: the pipeline was trained for another task, or none is known.
    """
    trained_for = pipeline.config.task
    if task is None:
        if not trained_for:
            raise ValueError(
                "the policy was trained on data without a DSRL task, so there is no simulator to play it in: "
                "call it in your own environment, pipe(observation, cost_limit=...), or name a task that has "
                "its observations and actions"
            )
        return get_task(trained_for)
    task = get_task(task)
    # Shapes do not tell: BallCircle and CarCircle have the same.
    if trained_for and get_task(trained_for).name != task.name:
        raise ValueError(f"the pipeline was trained for {trained_for}, it cannot be evaluated on {task.name}")
    return task


# ---- the whole job: results, plots and a video in a folder


def evaluate_to_folder(
    policy: str | os.PathLike[str],
    spec: EvaluationSpec | None = None,
    *,
    task: str | None = None,
    dataset: str | None = None,
    revision: str | None = None,
    output: str | os.PathLike[str] | None = None,
    plots: bool = True,
    video: bool = True,
    progress: bool = True,
) -> tuple[Results, list[Path]]:
    """Evaluate a policy and write results, plots and a video, as `spi evaluate` does.

    Args:
        policy: Folder of a policy or of its run, or an id on the Hub.
        spec: How it is played.
        task: The task; None takes the policy's own.
        dataset: Behavior data to compare with; None takes what the policy was trained on.
        revision: Branch, tag or commit on the Hub.
        output: Folder for the results; None takes `evaluation` in the run's folder, or in the policy's own
            where it is not in one, or `outputs/evaluation/<id>` for a policy from the Hub, with
            `@<revision>` where one is named. A chosen simulator has a folder of its own,
            `evaluation-<simulator>`, as a results file does not tell them apart.
        plots: Draw plots.
        video: Record an episode at the smallest limit.
        progress: Show progress bars.

    Returns:
        What was played, with the behavior data's own figures where they could be loaded, and the files that
        were written. Results already in the folder's results.json stay, unless they are of the same policy,
        limit and extraction, or of another training that has the same task, algorithm and seed: nothing else
        would tell the two apart.

    Raises:
        ValueError: The policy, the task or an argument cannot be used.
        SimulatorNotInstalledError: The simulator is missing.
        OSError: A file cannot be written.
    """
    from spi_diffusers.pipelines.loading import load_pipeline

    spec = spec or EvaluationSpec()
    pipeline = load_pipeline(policy, revision=revision)
    info = training_of(pipeline)
    if info is None:
        raise PolicyError(
            f"{policy}: has no {INFO_FILE} or no {CONFIG_FILE}, which training saves beside the weights: "
            "nothing says which training its results would be of."
        )
    known = policy_task(pipeline, task)
    spec.ways(pipeline)
    folder = find_local_policy(policy, revision)
    output = Path(output) if output else _default_output(str(policy), folder, spec.simulator, revision)
    # What cannot be used must show before anything is played, not after it.
    if output.is_file():
        raise FileExistsError(f"{output}: is a file; name a folder for the results.")
    if (output / RESULTS_FILE).exists():
        read_results(output / RESULTS_FILE)
    data = _behavior_data(dataset, pipeline, info, known)
    rollouts: list[tuple[str, Rollout]] = []
    results = _evaluate(pipeline, known, spec, info, progress, lambda *played: rollouts.append(played))
    shown = _merge(output / RESULTS_FILE, results)
    files = [output / RESULTS_FILE]
    limits = sorted({entry.cost_limit for entry in shown})
    behavior = behavior_rows(data, limits, known) if data is not None else []
    if plots:
        log = folder.parent / METRICS_FILE if folder else None
        files += _draw(output, Results(shown, behavior=behavior), data, rollouts, log)
    if video and (_to_record(shown) in results or not (output / REPLAY_FILE).exists()):
        files += _record(output, pipeline, _to_record(results), spec, progress)
    played = {entry.cost_limit for entry in results}
    results.behavior = [row for row in behavior if row.cost_limit in played]
    return results, files


def _default_output(policy: str, folder: Path | None, simulator: str, revision: str | None) -> Path:
    name = EVALUATION_FOLDER if simulator == "auto" else f"{EVALUATION_FOLDER}-{simulator}"
    if folder is None:
        return Path("outputs") / name / (policy if revision is None else f"{policy}@{revision}")
    in_a_run = (folder.parent / CONFIG_FILE).is_file()
    return (folder.parent if in_a_run else folder) / name


def _behavior_data(
    dataset: str | None, pipeline: Any, info: TrainInfo, task: Task
) -> "TransitionDataset | StreamedDataset | None":
    """The data to compare with. One that was asked for must load; the training data may be elsewhere."""
    from spi_diffusers.data.streaming import open_transitions

    if dataset is not None:
        return open_transitions(dataset, task)
    config = pipeline.training_record["config"]
    without = "Without the behavior data's own figures (name it with --dataset): %s"
    try:
        data = open_transitions(
            config.get("dataset"),
            task,
            revision=config.get("revision"),
            clip_actions=bool(config.get("clip_actions")),
        )
    except (ValueError, OSError, ImportError) as error:
        logger.warning(without, error)
        return None
    if info.dataset.get("sha256", data.sha256) != data.sha256:
        logger.warning(without, f"by its checksum, {data.source} is not what the policy was trained on.")
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
    return min(entries, key=lambda entry: (not entry.told_limit, not entry.feedback, entry.cost_limit))


def _draw(
    output: Path,
    results: Results,
    data: "TransitionDataset | StreamedDataset | None",
    rollouts: list[tuple[str, Rollout]],
    log: Path | None,
) -> list[Path]:
    from spi_diffusers.evaluation.plots import plot_cost_return, plot_training

    files = [output / "limits.png"]
    results.plot(files[0])
    if data is not None:
        files.append(output / "cost_return.png")
        plot_cost_return(data.episodes.cost_return, data.episodes.return_, files[-1], results, rollouts)
    if log is not None and log.is_file():
        files.append(output / "training.png")
        plot_training(log, files[-1])
    return files


def _record(
    output: Path, pipeline: Any, entry: EvaluationEntry, spec: EvaluationSpec, progress: bool
) -> list[Path]:
    from spi_diffusers.evaluation.video import record_replay

    try:
        replay = record_replay(
            spec.acting(pipeline, entry.extraction),
            entry.task,
            output / REPLAY_FILE,
            cost_limit=entry.cost_limit,
            seed=next(iter(spec.seeds)),
            feedback=entry.feedback,
            simulator=spec.simulator,
            progress=progress,
        )
    except ImportError as error:
        logger.warning("No replay video: %s", error)
        return []
    return [replay.path]
