"""Loading from the Hub, by fresh client processes against a real (loopback) server."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_factory import make_columns, make_dataset, to_dsrl
from dataset_hub import COMMIT, DatasetHub, client_environment

from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import write_parquet_dataset

BALL, CAR_RUN = get_task("ballcircle"), get_task("carrun")
REPOSITORY = Path(__file__).parents[2]

# One process answers a list of calls: importing torch and datasets takes seconds.
CLIENT = """
import json, sys
from spi_diffusers.data.loading import load_transitions
answers = []
for arguments in json.loads(sys.argv[1]):
    try:
        data = load_transitions(**arguments)
        answers.append([data.sha256, data.source, data.task and data.task.name])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
print("ANSWERS" + json.dumps(answers))
"""


# What asks for the files themselves, without the pauses between attempts.
CLIENT_WITHOUT_A_HUB = """
import json, time
time.sleep = lambda seconds: None
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.parquet import ParquetRows
from spi_diffusers.data.streaming import exceeds_memory
try:
    ParquetRows(["hf://datasets/lab/set/rows.parquet"], source="lab/set")
except DatasetError as error:
    print("ANSWERS" + json.dumps([str(error), exceeds_memory("lab/set", "ballcircle")]))
"""


def run_client(program, arguments, environment):
    """The answers of a program in a process of its own, and what else it said."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "DSRL_"))}
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=clean | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ANSWERS" in run.stdout, run.stderr
    return json.loads(run.stdout.partition("ANSWERS")[2]), run.stderr


def ask(calls, environment):
    answers, _ = run_client(CLIENT, [json.dumps(calls)], environment)
    return answers


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "set"
    write_parquet_dataset(
        make_dataset(task=BALL), folder, source="a robot", license="mit", description="By *hand*."
    )
    write_parquet_dataset(make_dataset(task=CAR_RUN, observation_dim=7), folder)
    for name in ("robot1", "robot2"):
        write_parquet_dataset(make_dataset(action_dim=3), folder.with_name("robots"), config_name=name)
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    robots = folder.with_name("robots")
    damaged = dict(files)
    name = f"{BALL.name}/train-00000-of-00001.parquet"
    damaged[name] = files[name][:400] + bytes(40) + files[name][440:]
    hdf5 = folder.with_name("ball.hdf5")
    with h5py.File(hdf5, "w") as file:
        for column, values in to_dsrl(make_columns()).items():
            file.create_dataset(column, data=values)
    foreign = io.BytesIO()
    pq.write_table(pa.table({"state": [1.0], "force": [2.0], "gain": [3.0]}), foreign)
    repositories = {
        "lab/set": files,
        "lab/damaged": damaged,
        "lab/foreign": {"rows.parquet": foreign.getvalue()},
        "lab/plain": {
            "README.md": b"---\nlicense: apache-2.0\n"
            b"configs:\n- config_name: d\n  data_files: d/*.parquet\n---\n",
            "d/rows.parquet": files[name],
        },
        "lab/robots": {str(p.relative_to(robots)): p.read_bytes() for p in robots.rglob("*") if p.is_file()},
        "YYY-45/DSRL": {BALL.dataset_file: hdf5.read_bytes()},
    }
    with DatasetHub(repositories) as server:
        yield server


def test_parquet_and_dsrl_repositories(hub, tmp_path):
    environment = hub.environment(tmp_path / "home") | {"DSRL_DATASET_DIR": str(tmp_path / "dsrl")}
    ball, car = make_dataset().sha256, make_dataset(observation_dim=7).sha256
    (
        by_task,
        by_commit,
        other,
        no_config,
        no_task,
        no_repository,
        no_revision,
        damaged,
        dsrl,
        dsrl_short,
        dsrl_missing,
        dsrl_no_task,
    ) = ask(
        [
            {"dataset": "lab/set", "task": "ballcircle"},
            {"dataset": "lab/set", "task": "ballcircle", "revision": COMMIT},
            {"dataset": "lab/set", "task": "carrun"},
            {"dataset": "lab/set", "task": "carcircle"},
            {"dataset": "lab/set"},
            {"dataset": "lab/nothing", "task": "ballcircle"},
            {"dataset": "lab/set", "task": "ballcircle", "revision": "v9"},
            {"dataset": "lab/damaged", "task": "ballcircle"},
            {"dataset": "YYY-45/DSRL", "task": "ballcircle"},
            {"dataset": "dsrl", "task": "ballcircle"},
            {"dataset": "dsrl", "task": "carrun"},
            {"dataset": "dsrl"},
        ],
        environment,
    )
    assert by_task == by_commit == [ball, f"lab/set@{COMMIT} ({BALL.name})", BALL.name]
    assert other == [car, f"lab/set@{COMMIT} ({CAR_RUN.name})", CAR_RUN.name]
    assert no_config[0] == "DatasetError"
    assert (
        "'OfflineCarCircle-v0' not found. Available: ['OfflineBallCircle-v0', 'OfflineCarRun-v0']"
        in no_config[1]
    )
    assert "several tasks; say which one: OfflineBallCircle-v0, OfflineCarRun-v0" in no_task[1]
    assert (
        no_repository[0]
        == no_revision[0]
        == damaged[0]
        == dsrl_missing[0]
        == dsrl_no_task[0]
        == "DatasetError"
    )
    assert "lab/nothing: config 'OfflineBallCircle-v0' cannot be loaded from the Hub" in no_repository[1]
    assert "Revision 'v9' doesn't exist" in no_revision[1]
    assert "lab/damaged: config 'OfflineBallCircle-v0' cannot be loaded" in damaged[1]
    assert dsrl[0] == dsrl_short[0] == ball
    assert dsrl[1].endswith(BALL.dataset_file)
    assert f"YYY-45/DSRL: {CAR_RUN.dataset_file} of OfflineCarRun-v0 cannot be downloaded" in dsrl_missing[1]
    assert "say which task" in dsrl_no_task[1]

    # What is cached stays usable without the network; what DSRL itself has downloaded is found as well.
    (tmp_path / "dsrl").mkdir()
    with h5py.File(tmp_path / "dsrl" / CAR_RUN.dataset_file, "w") as file:
        for column, values in to_dsrl(make_columns(observation_dim=7)).items():
            file.create_dataset(column, data=values)
    before = sum(hub.requests.values())
    cached, named, other, downloaded, unknown = ask(
        [
            {"dataset": "lab/set", "task": "ballcircle"},
            {"dataset": "lab/set", "task": "ballcircle", "revision": "main"},
            {"dataset": "lab/set", "task": "ballcircle", "revision": "v9"},
            {"dataset": "dsrl", "task": "carrun"},
            {"dataset": "lab/other", "task": "ballcircle"},
        ],
        environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert sum(hub.requests.values()) == before
    assert cached == named == by_task
    assert "lab/set: the Hub cannot be reached, and what is cached is of commit" in other[1]
    assert "not of revision 'v9'" in other[1]
    assert downloaded[0] == car
    assert "lab/other: config 'OfflineBallCircle-v0' cannot be loaded from the Hub" in unknown[1]


def test_data_of_no_task(hub, tmp_path):
    by_name, several, unknown, foreign = ask(
        [
            {"dataset": "lab/robots", "task": "robot2"},
            {"dataset": "lab/robots"},
            {"dataset": "lab/robots", "task": "robot3"},
            {"dataset": "lab/foreign"},
        ],
        hub.environment(tmp_path / "home"),
    )
    assert by_name == [make_dataset(action_dim=3).sha256, f"lab/robots@{COMMIT} (robot2)", None]
    assert "say which one: robot1, robot2" in several[1]
    assert unknown[0] == "UnknownTaskError"
    assert "unknown task 'robot3'" in unknown[1]
    assert "Nor is it a config of lab/robots, which has robot1, robot2" in unknown[1]
    assert "'observation' is missing; the file has 'state', 'force', 'gain'" in foreign[1]


def test_without_a_connection_a_file_is_named_and_data_is_taken_to_fit_into_memory(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening, so that connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (error, exceeds), said = run_client(
            CLIENT_WITHOUT_A_HUB, [], client_environment(url, tmp_path / "home")
        )
    assert error.startswith("hf://datasets/lab/set/rows.parquet: cannot be reached (ConnectError: ")
    assert said.count("Opening hf://datasets/lab/set/rows.parquet failed (ConnectError: ") == 3
    assert exceeds is False
    assert "Assumed to fit into memory, as its size cannot be found out: ConnectionError: " in said
    assert "'lab/set'" in said.rpartition("cannot be found out")[2]


def test_converting_keeps_licence_description_and_source_with_the_commit(hub, tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "DSRL_"))}
    code = "import sys; from spi_diffusers.cli import main; " + "".join(
        f"assert main(['data', 'convert', {repo!r}, {target!r}]) == 0; "
        for repo, target in (("lab/set", "set"), ("lab/plain", "plain"))
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": str(REPOSITORY)} | hub.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    ball, plain = (
        json.loads((tmp_path / config / "stats.json").read_text())
        for config in (f"set/{BALL.name}", "plain/d")
    )
    assert ball["sha256"] == plain["sha256"] == make_dataset().sha256
    assert (ball["license"], ball["description"]) == ("mit", "By *hand*.")
    assert ball["source"] == f"a robot; by way of lab/set, commit {COMMIT}"
    assert (plain["license"], plain["description"]) == ("apache-2.0", "")
    assert plain["source"] == f"lab/plain, commit {COMMIT}"
