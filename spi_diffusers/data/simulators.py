"""The simulators of the tasks: what each needs, what of that is installed, and how to install the rest.

Nothing is imported to find out (`importlib.util.find_spec` and package metadata), so a listing answers at
once, and a simulator that would fail to import does no harm.

The versions matter. bullet-safety-gym pins gymnasium ~=0.28.1 but runs on 1.x as well; MuJoCo's tasks run
with gymnasium 0.28.1 and mujoco 2.3.3, or gymnasium 1.x and mujoco 2.3.3 to 2.3.7.
"""

import dataclasses
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import spi_diffusers
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, EMBEDDED_FOLDER, TASKS


class SimulatorNotInstalledError(ImportError):
    """The simulator of a task is not installed; the message names the task and what to install."""


@dataclass(frozen=True)
class Simulator:
    """A simulator of DSRL and what it takes to run it.

    `modules` are what must be importable, each with its package's name; `extra` is the extra of this package
    that installs it, None where pip cannot.
    """

    name: str
    title: str
    modules: Mapping[str, str]
    extra: str | None
    note: str

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages that decide what an episode is; imageio only writes its pictures."""
        return tuple(package for package in self.modules.values() if package != "imageio")


@dataclass(frozen=True)
class SimulatorStatus:
    """Whether a simulator can run here: all packages are installed and their versions fit each other.

    `problem` says what does not (else empty), `install` the command that puts it right, if there is one.
    """

    installed: bool
    problem: str
    install: str | None


_ALL = (
    Simulator(
        name="bullet",
        title="bullet-safety-gym",
        modules={"bullet_safety_gym": "bullet-safety-gym", "pybullet": "pybullet"},
        extra="bullet",
        note="pybullet has wheels for Python 3.11, not for 3.12 and later",
    ),
    Simulator(
        name="velocity",
        title="gymnasium's MuJoCo robots",
        modules={"mujoco": "mujoco", "imageio": "imageio"},
        extra="mujoco",
        note="mujoco 2.3 has wheels for Python 3.11; a later mujoco simulates the tasks differently",
    ),
    Simulator(
        name="safety_gymnasium",
        title="safety-gymnasium",
        modules={"safety_gymnasium": "safety-gymnasium"},
        extra=None,
        note="safety-gymnasium's releases (1.0.0 and before) do not run on Python 3.11 and later (they do, "
        "as pinned, on Python 3.10)",
    ),
    Simulator(
        name="metadrive",
        title="MetaDrive with DSRL's task definitions",
        modules={"metadrive": "metadrive-simulator", "dsrl": "dsrl"},
        extra=None,
        note="MetaDrive's tasks are defined in the dsrl package, which does not install on Python 3.11 and "
        "later, and make_env does not run them",
    ),
)

#: All simulators by name.
SIMULATORS: Mapping[str, Simulator] = MappingProxyType({simulator.name: simulator for simulator in _ALL})


def simulator_status(name: str) -> SimulatorStatus:
    """Find out whether a simulator can run here, without importing it; ValueError if unknown."""
    if name not in SIMULATORS:
        raise ValueError(f"simulator must be one of {', '.join(SIMULATORS)}; got {name!r}")
    simulator = SIMULATORS[name]
    missing = [package for module, package in simulator.modules.items() if not _is_found(module)]
    problem = f"{' and '.join(missing)} not installed" if missing else ""
    if not missing and name == "velocity":
        problem = mujoco_conflict(_version("gymnasium"), _version("mujoco"))
    if not missing and name == "safety_gymnasium":
        problem = _safety_gymnasium_conflict(_version("safety-gymnasium"), sys.version_info[:2])
    if not missing and name == "metadrive":
        problem = "make_env does not run MetaDrive"
    return SimulatorStatus(not problem, problem, install_command(name) if problem else None)


def other_dynamics(name: str, versions: Mapping[str, str] | None = None) -> str:
    """What results are called whose episodes differ from those that DSRL's tasks are defined by; else empty.

    Args:
        name: The simulator.
        versions: Version by package; None: those that are installed.
    """
    versions = package_versions("mujoco") if versions is None else versions
    release = release_numbers(versions.get("mujoco", "0"))
    return f"mujoco{release[0]}" if name == "velocity" and release >= (3,) else ""


def install_command(name: str) -> str | None:
    """The command that installs a simulator beside the installed gymnasium; None if pip cannot install it."""
    extra = SIMULATORS[name].extra
    if extra == "bullet" and sys.version_info >= (3, 12):
        return None
    if extra == "bullet" and release_numbers(_version("gymnasium")) >= (1, 0):
        # The extra would take gymnasium back to 0.28.1, to which bullet-safety-gym is pinned.
        return "pip install pybullet && pip install --no-deps bullet-safety-gym"
    return None if extra is None else f'pip install "spi-diffusers[{extra}]"'


def mujoco_conflict(gymnasium: str, mujoco: str) -> str:
    """Say why versions of gymnasium and mujoco cannot simulate the Velocity tasks, or nothing.

    That mujoco 3 and later simulate differently is no conflict: `make_env` warns of it.
    """
    if release_numbers(gymnasium) < (1, 0) and release_numbers(mujoco) > (2, 3, 3):
        return (
            f"gymnasium {gymnasium} cannot run mujoco {mujoco}: install mujoco 2.3.3, or gymnasium 1.0 or "
            "later with mujoco 2.3.7"
        )
    return ""


def _safety_gymnasium_conflict(version: str, python: tuple[int, ...]) -> str:
    """Say why safety-gymnasium imports but makes no environment; empty for later versions."""
    if python >= (3, 11) and (0,) < release_numbers(version) <= (1, 0, 0):
        return f"safety-gymnasium {version} does not run on Python {python[0]}.{python[1]}"
    return ""


def release_numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, to compare versions by: (1, 0, 0) for `1.0.0a2`."""
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of Python, this package and others, in this order; those not installed are left out."""
    versions = {"python": platform.python_version(), "spi-diffusers": spi_diffusers.__version__}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # or put on the path by hand
            continue
    return versions


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: imported by hand, without a spec
        return False


def _version(package: str) -> str:
    return package_versions(package).get(package, "0")


def list_tasks(
    *, simulator: str | None = None, paper: bool = False, installed: bool = False
) -> list[dict[str, Any]]:
    """List tasks with what is installed and what is missing. Imports no simulator.

    Args:
        simulator: only the tasks of this simulator (`bullet`, `velocity`, `safety_gymnasium`, `metadrive`).
        paper: only the eight tasks of the SPI paper.
        installed: only the tasks that can be simulated in this installation.

    Returns:
        One dictionary per task, in DSRL's order, ready for JSON: the fields of `Task`, and
            `dataset_repo` (the Hub dataset that holds `dataset_file`), `simulator_installed` (bool),
            `simulator_problem` (what is missing, or empty), `install` (the command that puts it right, or
            None), `simulator_note`, `data_in_package` (bool).

    Raises:
        ValueError: there is no such simulator.
    """
    status = {name: simulator_status(name) for name in (SIMULATORS if simulator is None else [simulator])}
    return [
        {
            **dataclasses.asdict(task),
            "dataset_repo": DSRL_DATASET_REPO,
            "simulator_installed": status[task.simulator].installed,
            "simulator_problem": status[task.simulator].problem,
            "install": status[task.simulator].install,
            "simulator_note": SIMULATORS[task.simulator].note,
            "data_in_package": (EMBEDDED_FOLDER / task.name).is_dir(),
        }
        for task in TASKS.values()
        if task.simulator in status
        and (task.paper or not paper)
        and (status[task.simulator].installed or not installed)
    ]


def tasks_notes(rows: list[dict[str, Any]]) -> list[str]:
    """Say what is missing and which command installs it, a line per simulator, and explain the columns."""
    notes = []
    for name in dict.fromkeys(row["simulator"] for row in rows if not row["simulator_installed"]):
        row = next(row for row in rows if row["simulator"] == name)
        how = f"install: {row['install']}" if row["install"] else "pip cannot install it here"
        notes.append(f"{name}: {row['simulator_problem']}; {how} ({row['simulator_note']})")
    notes.append(
        "cost limits: DSRL's, which spi evaluate uses by default; paper's: the one of the SPI paper; data: "
        "yes = ships with this package, else name a --dataset"
    )
    return notes
