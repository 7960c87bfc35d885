"""The whole job of `spi evaluate`: results, plots and a video in a folder."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.simulators import other_dynamics
from spi_diffusers.data.tasks import Task
from spi_diffusers.evaluation.entries import EvaluationEntry, TrainInfo, each
from spi_diffusers.evaluation.evaluate import (
    EvaluationSpec,
    costs_of,
    evaluate_pipeline,
    limits_for,
    policy_task,
    training_of,
)
from spi_diffusers.evaluation.results import Results, check_dynamics, merge_results, read_results
from spi_diffusers.evaluation.rollouts import Rollout
from spi_diffusers.evaluation.summary import behavior_rows
from spi_diffusers.files import (
    CONFIG_FILE,
    EVALUATION_FOLDER,
    INFO_FILE,
    METRICS_FILE,
    OUTPUTS_FOLDER,
    REPLAY_FILE,
    RESULTS_FILE,
    PolicyError,
    find_local_policy,
    local_path,
)
from spi_diffusers.locks import held

if TYPE_CHECKING:
    from spi_diffusers.data.streaming import Dataset

logger = logging.getLogger(__name__)


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
            `evaluation-<simulator>`, as a results file does not tell them apart; so has a mujoco that
            simulates the task differently, `evaluation-mujoco4`.
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
        FolderInUseError: Another evaluation works in the folder.
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
    limits_for(pipeline, spec.cost_limits, known.cost_limits)
    folder = find_local_policy(policy, revision)
    dynamics = other_dynamics(known.simulator)
    apart = [name for name in (spec.simulator, dynamics) if name not in ("auto", "")]
    output = local_path(output) if output else _default_output(str(policy), folder, apart, revision)
    # What cannot be used must show before anything is played, not after it.
    with held(output, "evaluation"):
        if (output / RESULTS_FILE).exists():
            check_dynamics(output / RESULTS_FILE, known.name, dynamics, read_results(output / RESULTS_FILE))
        data = _behavior_data(dataset, pipeline, info, known)
        rollouts: list[tuple[str, Rollout]] = []
        results = evaluate_pipeline(
            pipeline, known, spec, info, progress, lambda *played: rollouts.append(played)
        )
        shown = _merge(output / RESULTS_FILE, results)
        files = [output / RESULTS_FILE]
        names = costs_of(pipeline)
        shown = [entry for entry in shown if len(each(entry.cost_limit)) == len(names)]
        limits = sorted({entry.cost_limit for entry in shown}, key=each)
        has_costs = data is not None and len(data.cost_names) == len(names)
        behavior = behavior_rows(data, limits, known) if data is not None and has_costs else []
        if plots:
            log = folder.parent / METRICS_FILE if folder else None
            files += _draw(output, Results(shown, behavior=behavior), data, rollouts, spec.risk, log)
        if video and (_to_record(shown) in results or not (output / REPLAY_FILE).exists()):
            files += _record(output, pipeline, _to_record(results), spec, progress)
        played = {entry.cost_limit for entry in results}
        results.behavior = [row for row in behavior if row.cost_limit in played]
        return results, files


def _default_output(policy: str, folder: Path | None, apart: Sequence[str], revision: str | None) -> Path:
    name = "-".join([EVALUATION_FOLDER, *apart])
    if folder is None:
        return Path(OUTPUTS_FOLDER) / name / (policy if revision is None else f"{policy}@{revision}")
    in_a_run = (folder.parent / CONFIG_FILE).is_file()
    return (folder.parent if in_a_run else folder) / name


def _behavior_data(dataset: str | None, pipeline: Any, info: TrainInfo, task: Task) -> "Dataset | None":
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
        names = ("updates", "train_seconds", "dataset", "cost_margin")
        if not same_name(entry) or all(getattr(entry, name) == getattr(ours, name) for name in names):
            return False
        lost.append(entry)
        return True

    merged = merge_results(file, entries, outdated=outdated)
    if lost:
        logger.warning(
            "%s: %d results of another training of the same name, or with another cost_margin, are replaced.",
            *(file, len(lost)),
        )
    return [entry for entry in merged if same_name(entry)]


def _to_record(entries: list[EvaluationEntry]) -> EvaluationEntry:
    """What the video shows: the best way to act, at the smallest limit and risk."""
    return min(
        entries, key=lambda one: (not one.told_limit, not one.feedback, each(one.cost_limit), one.risk or 0.0)
    )


def _draw(
    output: Path,
    results: Results,
    data: "Dataset | None",
    rollouts: list[tuple[str, Rollout]],
    risk: float,
    log: Path | None,
) -> list[Path]:
    from spi_diffusers.evaluation.plots import plot_cost_return, plot_training

    files = [output / "limits.png"]
    results.plot(files[0])
    if data is not None and len(data.cost_names) == 1:
        files.append(output / "cost_return.png")
        episodes = data.episodes
        plot_cost_return(episodes.cost_return, episodes.return_, files[-1], results, rollouts, risk)
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
            seed=spec.seeds[0],
            feedback=entry.feedback,
            simulator=spec.simulator,
            progress=progress,
            costs=costs_of(pipeline),
        )
    except ImportError as error:
        logger.warning("No replay video: %s", error)
        return []
    return [replay.path]
