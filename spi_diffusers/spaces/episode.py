"""What the page plays: policies with their results, and an episode with what was decided at each step."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.evaluation.entries import EvaluationEntry, each
from spi_diffusers.evaluation.evaluate import policy_task
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.rollouts import PipelinePolicy
from spi_diffusers.evaluation.summary import keeps_limit
from spi_diffusers.evaluation.video import Replay, record_replay
from spi_diffusers.files import INDEX_FILE, RESULTS_FILE, PolicyError, local_path, read_json
from spi_diffusers.hub.policy_files import check_one_cost
from spi_diffusers.hub.publish_all import find_trained_policies
from spi_diffusers.hub.results import results_folders
from spi_diffusers.pipelines.loading import load_pipeline, pipeline_class, resolve_policy

#: How far limits to choose go beyond the largest known one.
BEYOND = 2.0


@dataclass(frozen=True)
class PolicyOnShow:
    """A policy that can be chosen: its folder, its task, and what it reached at each limit.

    Attributes:
        folder: With `model_index.json`.
        task: Its task; None for a policy of own data, which has no simulator.
        entries: Results of the policy told the limit and its running cost, of its own task; may be empty.
    """

    folder: Path
    task: Task | None
    entries: tuple[EvaluationEntry, ...]

    @classmethod
    def open(cls, policy: str | Path) -> "PolicyOnShow":
        """Look at a policy: its folder, the one of its run, or an id on the Hub.

        FileNotFoundError: no such policy; PolicyError: it is a baseline's or has several costs, or the Hub
        cannot be reached; ResultsFileError: its results cannot be read.
        """
        folder = resolve_policy(policy)
        if not pipeline_class(folder).publishable:
            raise PolicyError(f"{policy}: is a baseline's policy, which weighs no candidates against a limit")
        check_one_cost(folder)
        name = read_json(folder / INDEX_FILE).get("task")
        places = results_folders(folder)
        found = read_results(places[0] / RESULTS_FILE) if places else []
        told = [entry for entry in found if entry.extraction == "safe" and entry.feedback]
        entries = tuple(entry for entry in told if entry.task == name)
        return cls(folder, get_task(name) if name else None, entries)

    @property
    def limits(self) -> tuple[float, ...]:
        """Limits to begin with, increasing: those of the results, else the task's; empty without a task."""
        known: list[Any] = sorted({entry.cost_limit for entry in self.entries}, key=each)
        return tuple(known) or (self.task.cost_limits if self.task is not None else ())


def policies_on_show(names: Sequence[str | Path]) -> dict[str, str]:
    """Policies by what a menu calls them: task or name, with the place where the task alone is not enough.

    Each name is a policy's or a run's folder, a folder of several of them, or an id on the Hub.

    FileNotFoundError: a folder holds no policy; ValueError: one cannot be read.
    """
    places: list[tuple[str, str]] = []
    for name in names:
        folder = local_path(name)
        is_one = not folder.is_dir() or (folder / INDEX_FILE).is_file()
        if is_one:
            places.append((str(name), str(name)))
            continue
        found = find_trained_policies(folder)
        places += [(policy.task, str(policy.folder)) for policy in found.policies]
        places += [(path.name, str(path)) for path in found.unnamed]  # of own data: no task names them
    titles = [title for title, _ in places]
    return {title if titles.count(title) == 1 else f"{title}: {place}": place for title, place in places}


def limit_range(limits: Sequence[float]) -> tuple[float, float]:
    """The highest limit to choose where these are known, and the width of a step on the way to it."""
    highest = BEYOND * max(limits, default=0.0) or 1.0
    return highest, 10.0 ** math.floor(math.log10(highest / 50))


@dataclass(frozen=True)
class Decision:
    """What the policy saw at one step, N candidates from the boldest to the safest.

    Attributes:
        budget: What was left of the limit, in units of cost.
        steps_left: Steps left in the episode.
        weights: Safety weight of each, (N,).
        returns: Return that each expects over the steps left, (N,).
        costs: Cost that each expects over them, (N,).
        bounds: That cost with the margin for the risk, (N,).
        feasible: Which fit into the budget, bool (N,).
        chosen: Which one acted.
    """

    budget: float
    steps_left: int
    weights: np.ndarray
    returns: np.ndarray
    costs: np.ndarray
    bounds: np.ndarray
    feasible: np.ndarray
    chosen: int


class _Listener:
    """A pipeline that notes what it answers; everything else is the pipeline's."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.decisions: list[Decision] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def __call__(self, observation: Any, **how: Any) -> Any:
        output = self._pipeline(observation, **how)
        self.decisions.append(
            Decision(
                budget=float(how["cost_budget"][0]),
                steps_left=int(how["steps_left"][0]),
                weights=_row(output.safety_weights),
                returns=_row(output.expected_returns),
                costs=_row(output.expected_costs),
                bounds=_row(output.cost_bounds),
                feasible=_row(output.feasible),
                chosen=int(output.chosen[0]),
            )
        )
        return output


def _row(figures: Any) -> np.ndarray:
    """Figures of the only observation, (1, N) in torch, as (N,)."""
    row: np.ndarray = figures[0].cpu().numpy()
    return row


@dataclass(frozen=True)
class Episode:
    """An episode that was played: the video, a decision for each step, and pictures in between.

    Attributes:
        replay: The video with its return and cost.
        risk: Share of the episodes that might exceed the limit.
        seed: What decided the episode.
        decisions: One per step, in order.
        pictures: JPEG files by the number of steps done, in order.
    """

    replay: Replay
    risk: float
    seed: int
    decisions: tuple[Decision, ...]
    pictures: dict[int, bytes]

    def cost_before(self, step: int) -> float:
        """Cost of the first `step` steps."""
        spent: Any = self.replay.cost_return
        limit: Any = self.replay.cost_limit
        return spent if step >= len(self.decisions) else limit - self.decisions[step].budget

    def picture(self, step: int) -> np.ndarray:
        """The last picture that was taken by a step, (H, W, 3) uint8."""
        from PIL import Image

        taken = max(number for number in self.pictures if number <= step)
        with Image.open(io.BytesIO(self.pictures[taken])) as file:
            return np.asarray(file)

    def __str__(self) -> str:
        replay, decisions = self.replay, self.decisions
        verdict = "kept" if keeps_limit(replay.normalized_cost) else "exceeded"
        tight = sum(not decision.feasible.any() for decision in decisions)
        where = (
            f" At {tight} of {len(decisions)} steps nothing fitted, and the safest acted." if tight else ""
        )
        return (
            f"Return {replay.return_:.1f} (normalized {replay.normalized_reward:.2f}), cost "
            f"{replay.cost_return:g} of {replay.cost_limit:g}: limit {verdict}.{where}"
        )


def play(
    policy: str | Path,
    video: Path,
    *,
    cost_limit: float,
    risk: float,
    seed: int = 0,
    on_step: Callable[[int, int], Any] | None = None,
) -> Episode:
    """Play an episode, the one of `spi play` with these options, and keep what was decided.

    Args:
        policy: Its folder, or an id on the Hub. It is loaded here: callers share nothing.
        video: The .mp4 to write.
        cost_limit: Cost that the episode may have, in units of cost.
        risk: Share of the episodes that may exceed it, in (0, 1).
        seed: Decides the episode.
        on_step: Gets the steps done and an episode's, at each picture.

    Raises:
        ValueError: An argument is out of its range, the policy has no task, or cannot keep a limit.
        SimulatorNotInstalledError: The simulator is missing.
        OSError: The policy cannot be read, or the video not written.
    """
    pipeline = load_pipeline(policy)
    task, listener = policy_task(pipeline, None), _Listener(pipeline)
    pictures: dict[int, bytes] = {}

    def note(step: int, picture: np.ndarray) -> None:
        pictures[step] = _jpeg(picture)
        if on_step is not None:
            on_step(step, task.max_episode_steps)

    acting: Any = PipelinePolicy(listener, risk=risk)  # type: ignore[arg-type]  # it answers as a pipeline
    how: dict[str, Any] = {"cost_limit": cost_limit, "seed": seed, "progress": False, "on_picture": note}
    replay = record_replay(acting, task, video, **how)
    return Episode(replay, risk, seed, tuple(listener.decisions), pictures)


def _jpeg(picture: np.ndarray) -> bytes:
    """A picture as a file: a hundred of them take 3 MB, and 60 MB as they are."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=88)
    return file.getvalue()
