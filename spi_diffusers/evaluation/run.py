"""The whole evaluation job, as `spi evaluate` and `scripts/evaluate.py` run it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.tasks import Task
from spi_diffusers.evaluation.behaviour import BehaviourRow, behaviour_rows
from spi_diffusers.evaluation.evaluate import acting, check_choices, evaluate, policy_task
from spi_diffusers.evaluation.loading import LoadedPolicy, load_policy
from spi_diffusers.evaluation.metrics import EvaluationEntry
from spi_diffusers.evaluation.results import merge_results, read_results
from spi_diffusers.evaluation.rollouts import Rollout
from spi_diffusers.files import CONFIG_FILE, EVALUATION_FOLDER, REPLAY_FILE, RESULTS_FILE

if TYPE_CHECKING:
    from spi_diffusers.data.streaming import StreamedDataset
    from spi_diffusers.data.transitions import TransitionDataset

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
    behaviour: list[BehaviourRow]
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
    behaviour = behaviour_rows(data, limits, known) if data is not None else []
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
    behaviour: list[BehaviourRow],
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
