import json

import pytest

from spi_diffusers.data.catalogue import list_tasks, tasks_notes
from spi_diffusers.data.loading import embedded_tasks
from spi_diffusers.data.simulators import SIMULATORS, SimulatorStatus, simulator_status
from spi_diffusers.data.tasks import TASKS, Task


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
    monkeypatch.setattr("spi_diffusers.data.catalogue.simulator_status", here.__getitem__)
    assert {row["simulator"] for row in list_tasks(installed=True)} == {"bullet"}
    assert list_tasks(installed=True, simulator="metadrive") == []


def test_notes_say_what_is_missing_once_per_simulator(monkeypatch):
    here = {name: SimulatorStatus(False, "it is not installed", None) for name in SIMULATORS}
    here["bullet"] = SimulatorStatus(True, "", None)
    here["velocity"] = SimulatorStatus(False, "mujoco not installed", "pip install it")
    monkeypatch.setattr("spi_diffusers.data.catalogue.simulator_status", here.__getitem__)
    notes = tasks_notes(list_tasks())
    assert [note.partition(":")[0] for note in notes[:-1]] == ["safety_gymnasium", "velocity", "metadrive"]
    assert notes[1].startswith("velocity: mujoco not installed; install: pip install it (")
    assert "pip cannot install it here" in notes[0]
    assert "Python 3.10" in notes[0]
    assert notes[-1].startswith("cost limits: DSRL's")
