"""A policy folder and its evaluation, read for the card and for publishing."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from spi_diffusers.data.tasks import TASKS
from spi_diffusers.evaluation.assessment import Assessment
from spi_diffusers.evaluation.certificate import Certificate, own_certificate
from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry, cost_margin_of
from spi_diffusers.evaluation.results import read_results, read_train_info
from spi_diffusers.files import (
    ASSESSMENT_FILE,
    CERTIFICATE_FILE,
    CODE_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    INFO_FILE,
    REPLAY_FILE,
    RESULTS_FILE,
    PolicyError,
    find_policy_folder,
    local_path,
    read_json,
)
from spi_diffusers.hub.results import results_folders

logger = logging.getLogger(__name__)

#: Of the code that is shipped, and of the weights unless their owner says otherwise.
DEFAULT_LICENSE = "apache-2.0"
PLOTS = ("limits.png", "cost_return.png", "training.png")
EVAL_RESULTS_FOLDER, PLOTS_FOLDER = ".eval_results", "plots"


@dataclass(frozen=True)
class PolicyFiles:
    """A policy folder, read for publishing.

    `index` is `model_index.json` as published, naming the shipped code. `train_info` and `train_config` are
    empty without a record. `entries` and `diverged` are of this policy and of other training seeds of its
    kind. `assessment` is what `spi assess` expects of this policy, `certificate` what `spi certify` has
    shown.
    """

    folder: Path
    index: dict[str, Any]
    train_info: dict[str, Any]
    train_config: dict[str, Any]
    entries: tuple[EvaluationEntry, ...] = ()
    diverged: tuple[DivergedRun, ...] = ()
    plots: dict[str, Path] = field(default_factory=dict)
    replay: Path | None = None
    assessment: Assessment | None = None
    certificate: Certificate | None = None
    license: str = DEFAULT_LICENSE

    @property
    def task(self) -> str | None:
        """Name of the task, if known."""
        return self.index.get("task")

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """Library and class by component, without absent ones."""
        return {
            name: (entry[0], entry[1])
            for name, entry in self.index.items()
            if isinstance(entry, list) and not name.startswith("_") and isinstance(entry[0], str)
        }


def read_policy_files(folder: str | Path, evaluation: str | Path | None = None) -> PolicyFiles:
    """Read a policy folder (or its run's) and its evaluation.

    `evaluation` is the folder with `results.json`, plots and video; None looks where `spi evaluate` and the
    demo write them. FileNotFoundError: no policy or no evaluation there; ValueError: a file cannot be read,
    or the results are about other weights.
    """
    from spi_diffusers.pipelines.policy_folder import check_policy_folder
    from spi_diffusers.pipelines.saving import with_code

    policy = find_policy_folder(folder)
    if not is_publishable(policy):
        raise PolicyError(f"{policy}: is a baseline's policy; only SPI's are published.")
    check_policy_folder(str(policy))
    index, _ = with_code(read_json(policy / INDEX_FILE))
    check_one_cost(policy)
    info, config = (
        _without_local_paths(read_json(path)) if path.is_file() else {}
        for path in (policy / INFO_FILE, policy / CONFIG_FILE)
    )
    if info:
        read_train_info(policy / INFO_FILE)  # raises an error that names a field which is missing
    assessment = _own_assessment(policy, index, info)
    certificate = own_certificate(policy)
    where = _find_evaluation(policy, evaluation)
    if where is None:
        return PolicyFiles(policy, index, info, config, assessment=assessment, certificate=certificate)
    entries = _own_entries(where / RESULTS_FILE, index, info)
    kind = (index.get("task"), info["algorithm"])
    diverged = tuple(
        replace(run, message=run.message.partition(". ")[0])  # then comes advice, with paths of this machine
        for run in read_results(where / RESULTS_FILE).diverged
        if (run.task, run.algorithm) == kind
    )
    plots = {name: path for name in PLOTS for path in _first_file(where, name)}
    replay = next(_first_file(where, REPLAY_FILE), None)
    return PolicyFiles(policy, index, info, config, entries, diverged, plots, replay, assessment, certificate)


def is_publishable(folder: Path) -> bool:
    """Whether a policy's kind is published; True if unknown: whoever reads the policy then reports it."""
    from spi_diffusers.pipelines.loading import pipeline_class

    try:
        return pipeline_class(folder).publishable
    except (OSError, ValueError):
        return True


def is_ours(path: str, components: Sequence[str]) -> bool:
    """Whether publishing makes a file of a repository, so that an old one is removed. Everything in a
    component's folder counts: weights of another format left there could be loaded instead of the new ones.
    """
    top, _, rest = path.partition("/")
    if top == EVAL_RESULTS_FOLDER:  # others' evaluations lie there too
        return rest.removesuffix(".yaml") in TASKS
    if top == PLOTS_FOLDER:
        return rest in PLOTS
    if rest:
        return top in (*components, "evaluation_critic", "student")
    return path in (
        *(INDEX_FILE, CODE_FILE, RESULTS_FILE, REPLAY_FILE, ASSESSMENT_FILE, CERTIFICATE_FILE),
        *(INFO_FILE, CONFIG_FILE),
    )


def check_one_cost(folder: Path) -> None:
    """PolicyError: the policy keeps limits of several costs, which no card and no page shows yet."""
    path = folder / "evaluation_critic" / "config.json"
    names = read_json(path).get("cost_names") if path.is_file() else None
    if names:
        raise PolicyError(
            f"{folder}: the policy has the costs {', '.join(map(str, names))}; cards, publishing and the "
            "page know policies of one cost only so far"
        )


def _find_evaluation(policy: Path, evaluation: str | Path | None) -> Path | None:
    if evaluation is not None:
        if not (local_path(evaluation) / RESULTS_FILE).is_file():
            raise FileNotFoundError(f"{evaluation}: there is no {RESULTS_FILE}; `spi evaluate` writes it")
        return local_path(evaluation)
    found = results_folders(policy)
    if len({(place / RESULTS_FILE).read_bytes() for place in found}) > 1:
        raise PolicyError(
            f"{policy}: there are several evaluations, {' and '.join(str(place) for place in found)}: choose "
            "one with --evaluation"
        )
    return found[0] if found else None


def _own_entries(path: Path, index: dict[str, Any], info: dict[str, Any]) -> tuple[EvaluationEntry, ...]:
    """The entries about this task and algorithm; PolicyError if none is about this training seed, or they are
    about other weights.
    """
    entries = read_results(path)
    if not info:
        raise PolicyError(
            f"{path}: there is no {INFO_FILE} beside the policy, so nothing says that these results are "
            "its own"
        )
    if index.get("task") is None:
        tasks = ", ".join(sorted({entry.task for entry in entries}))
        raise PolicyError(
            f"{path}: has results on {tasks}, but the policy was trained for no task, and its card can only "
            "say what it does on its own. Name a folder elsewhere with `spi evaluate --output`, and move "
            "this one away"
        )
    same = [
        entry for entry in entries if (entry.task, entry.algorithm) == (index.get("task"), info["algorithm"])
    ]
    own = [entry for entry in same if entry.train_seed == info["train_seed"]]
    if not own:
        raise PolicyError(
            f"{path}: holds no result of this policy ({info['algorithm']} on {index.get('task')}, training "
            f"seed {info['train_seed']}): evaluate it with `spi evaluate`"
        )
    known = {**info, "cost_margin": cost_margin_of(index)}
    for entry in same:
        # Equal train_seconds identify the same training run; other seeds took another time.
        names = ("updates", "dataset") + (("train_seconds", "cost_margin") if entry in own else ())
        for name in names:
            theirs, ours = getattr(entry, name), known[name]
            if name == "dataset":
                theirs, ours = theirs.get("sha256"), ours.get("sha256")
            if theirs != ours:
                raise PolicyError(
                    f"{path}: the results of training seed {entry.train_seed} are of other weights: "
                    f"{name} is {theirs!r} there, {ours!r} in "
                    f"{INFO_FILE if name in info else INDEX_FILE}. Evaluate the policy again"
                )
    if len(same) < len(entries):
        logger.info("%s: %d entries about other policies are left out.", path, len(entries) - len(same))
    return tuple(EvaluationEntry.from_dict(_without_local_paths(entry.to_dict())) for entry in same)


def _own_assessment(policy: Path, index: dict[str, Any], info: dict[str, Any]) -> Assessment | None:
    """What was assessed of this policy; a warning tells of an assessment of other weights."""
    path = policy / ASSESSMENT_FILE
    if not path.is_file():
        return None
    found = Assessment.read(path)
    if not found.is_of(info, cost_margin_of(index)):
        logger.warning(
            "%s: is of other weights or another cost_margin, and is left out; `spi assess` makes it anew",
            path,
        )
        return None
    return replace(found, dataset=_without_local_paths({"dataset": found.dataset})["dataset"])


def _first_file(folder: Path, name: str) -> Iterator[Path]:
    """The file in an evaluation's folder, or where publishing puts it."""
    places = (folder / name, folder / PLOTS_FOLDER / name)
    yield from [path for path in places if path.is_file()][:1]


def _without_local_paths(values: dict[str, Any]) -> dict[str, Any]:
    """A copy in which absolute paths of this machine are only names: they mean nothing elsewhere."""
    changed = dict(values)
    if "output_dir" in changed:
        changed["output_dir"] = None
    if isinstance(changed.get("dataset"), str):
        changed["dataset"] = _name_only(changed["dataset"])
    elif isinstance(changed.get("dataset"), dict) and "id" in changed["dataset"]:
        changed["dataset"] = changed["dataset"] | {"id": _name_only(changed["dataset"]["id"])}
    return changed


def _name_only(path: str) -> str:
    is_absolute = Path(path).is_absolute() or PureWindowsPath(path).is_absolute() or path.startswith("~")
    return PureWindowsPath(path).name if is_absolute else path
