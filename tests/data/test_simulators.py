"""What is installed, found without importing it; the tests install and remove by way of the path."""

import json
import subprocess
import sys

import pytest

from spi_diffusers.data import simulators
from spi_diffusers.data.loading import embedded_tasks
from spi_diffusers.data.simulators import (
    SIMULATORS,
    SimulatorStatus,
    install_command,
    list_tasks,
    mujoco_conflict,
    release_numbers,
    simulator_status,
    tasks_notes,
)
from spi_diffusers.data.tasks import TASKS, Task


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Run with a package folder in which only what the test puts there is installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in {module for simulator in SIMULATORS.values() for module in simulator.modules}:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def install(package, version, module=None):
        if module is not None:
            # Importing it would fail: the status must not try.
            (tmp_path / f"{module}.py").write_text("raise RuntimeError('imported')\n")
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")

    return install


def test_every_task_has_a_simulator_and_every_simulator_a_task():
    assert {task.simulator for task in TASKS.values()} == set(SIMULATORS)


def test_nothing_installed(site):
    bullet = simulator_status("bullet")
    assert not bullet.installed
    assert bullet.problem == "bullet-safety-gym and pybullet not installed"
    command = 'pip install "spi-diffusers[bullet]"'
    assert bullet.install == (command if sys.version_info < (3, 12) else None)  # later, there are no wheels
    assert simulator_status("velocity").install == 'pip install "spi-diffusers[mujoco]"'
    for name in ("safety_gymnasium", "metadrive"):
        status = simulator_status(name)
        assert not status.installed
        assert "not installed" in status.problem
        assert status.install is None  # there is no command that would work


def test_half_installed_names_the_missing_half(site):
    site("bullet-safety-gym", "1.4.0", "bullet_safety_gym")
    assert simulator_status("bullet").problem == "pybullet not installed"
    site("pybullet", "3.2.7", "pybullet")
    status = simulator_status("bullet")
    assert status.installed
    assert status.problem == ""
    assert status.install is None


def test_installed_versions_that_do_not_fit(site):
    site("gymnasium", "0.28.1")
    site("imageio", "2.38.1", "imageio")
    site("mujoco", "2.3.7", "mujoco")
    status = simulator_status("velocity")
    assert not status.installed
    assert "gymnasium 0.28.1 cannot run mujoco 2.3.7: install mujoco 2.3.3" in status.problem
    assert status.install == 'pip install "spi-diffusers[mujoco]"'


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pybullet has no wheels for this Python")
def test_bullet_beside_a_current_gymnasium_is_installed_without_taking_gymnasium_back(site):
    site("gymnasium", "1.4.0")
    command = install_command("bullet")
    assert command == "pip install pybullet && pip install --no-deps bullet-safety-gym"
    assert simulator_status("bullet").install == command


def test_safety_gymnasium_is_found(site):
    site("safety-gymnasium", "1.2.0", "safety_gymnasium")
    assert simulator_status("safety_gymnasium").installed


@pytest.mark.parametrize(
    ("python", "problem"), [((3, 11), "1.0.0 does not run on Python 3.11"), ((3, 10), "")]
)
def test_a_safety_gymnasium_that_imports_but_makes_nothing(site, monkeypatch, python, problem):
    site("safety-gymnasium", "1.0.0", "safety_gymnasium")
    monkeypatch.setattr(sys, "version_info", (*python, 0))
    assert simulator_status("safety_gymnasium").problem == (problem and f"safety-gymnasium {problem}")


def test_metadrive_is_never_called_runnable(site):
    site("metadrive-simulator", "0.2.6", "metadrive")
    site("dsrl", "0.1.0", "dsrl")
    assert simulator_status("metadrive").problem == "make_env does not run MetaDrive"


def test_module_without_a_spec_is_not_installed(monkeypatch):
    module = type(sys)("safety_gymnasium")
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "safety_gymnasium", module)
    assert not simulator_status("safety_gymnasium").installed


def test_unknown_simulator():
    with pytest.raises(ValueError, match=r"one of bullet, velocity, .*'chess'"):
        simulator_status("chess")


@pytest.mark.parametrize(
    ("gymnasium", "mujoco", "fits"),
    [
        ("0.28.1", "2.3.3", True),
        ("0.28.1", "2.3.7", False),
        ("0.29.1", "3.1.0", False),
        ("1.4.0", "2.3.3", True),
        ("1.4.0", "2.3.7", True),
        ("1.4.0", "3.3.7", True),  # runs, with a warning
    ],
)
def test_pairs_of_versions(gymnasium, mujoco, fits):
    assert (mujoco_conflict(gymnasium, mujoco) == "") == fits


def test_release_numbers():
    assert release_numbers("2.3.7") > release_numbers("2.3.3") == (2, 3, 3)
    assert release_numbers("1.0.0a2") == (1, 0, 0)
    assert release_numbers("0.28.1") < (1, 0)


def test_finding_out_imports_nothing():
    names = sorted({module for simulator in SIMULATORS.values() for module in simulator.modules})
    code = (
        "import sys; from spi_diffusers.data.simulators import SIMULATORS, simulator_status\n"
        "[simulator_status(name) for name in SIMULATORS]\n"
        f"print([m for m in ('torch', 'numpy', 'gymnasium', *{names!r}) if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_version_of_a_module_without_metadata_is_zero():
    assert simulators._version("surely-not-installed") == "0"


# ---- the list of tasks


def test_all_tasks_in_order_with_what_is_known():
    rows = list_tasks()
    assert [row["name"] for row in rows] == list(TASKS)
    for row in rows:
        status = simulator_status(row["simulator"])
        assert row["simulator_installed"] == status.installed
        assert row["simulator_problem"] == status.problem
        assert row["install"] == status.install
        fields = {**row, "cost_limits": tuple(row["cost_limits"]), "aliases": tuple(row["aliases"])}
        assert Task(**{name: fields[name] for name in Task.__dataclass_fields__}) == TASKS[row["name"]]
    assert [row["name"] for row in rows if row["data_in_package"]] == embedded_tasks()
    assert json.loads(json.dumps(rows))[0]["cost_limits"] == [10, 20, 40]


def test_filters():
    assert len(list_tasks(paper=True)) == 8
    assert len(list_tasks(simulator="safety_gymnasium")) == 16
    assert [row["short_name"] for row in list_tasks(simulator="velocity", paper=True)] == [
        *("antvelocity", "halfcheetahvelocity", "hoppervelocity", "walker2dvelocity"),
    ]
    with pytest.raises(ValueError, match="simulator must be one of bullet"):
        list_tasks(simulator="chess")


def test_installed_only(monkeypatch):
    here = {
        name: SimulatorStatus(name == "bullet", "" if name == "bullet" else "gone", None)
        for name in SIMULATORS
    }
    monkeypatch.setattr("spi_diffusers.data.simulators.simulator_status", here.__getitem__)
    assert {row["simulator"] for row in list_tasks(installed=True)} == {"bullet"}
    assert list_tasks(installed=True, simulator="metadrive") == []


def test_notes_say_what_is_missing_once_per_simulator(monkeypatch):
    here = {name: SimulatorStatus(False, "it is not installed", None) for name in SIMULATORS}
    here["bullet"] = SimulatorStatus(True, "", None)
    here["velocity"] = SimulatorStatus(False, "mujoco not installed", "pip install it")
    monkeypatch.setattr("spi_diffusers.data.simulators.simulator_status", here.__getitem__)
    notes = tasks_notes(list_tasks())
    assert [note.partition(":")[0] for note in notes[:-1]] == ["safety_gymnasium", "velocity", "metadrive"]
    assert notes[1].startswith("velocity: mujoco not installed; install: pip install it (")
    assert "pip cannot install it here" in notes[0]
    assert "Python 3.10" in notes[0]
    assert notes[-1].startswith("cost limits: DSRL's")
