"""Loading from the Hub, by fresh client processes against a real (loopback) server."""

import io
import json
import socket

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_factory import make_columns, make_dataset, to_dsrl
from dataset_hub import COMMIT, DatasetHub, client_environment
from hub_client import run_client

from spi_diffusers.data.lerobot import write_lerobot_dataset
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import write_parquet_dataset

TRAIN = ["train", "--updates", "2", "--batch-size", "8", "--network.hidden-dims", "8", "--quiet"]
OWN = [*TRAIN, "--max-episode-steps", "4"]  # its episodes have different lengths
BALL, CAR_RUN = get_task("ballcircle"), get_task("carrun")

# One process answers a list of calls: importing torch and datasets takes seconds.
CLIENT = """
import json, sys
from spi_diffusers.cli import main
from spi_diffusers.data.loading import load_transitions
answers = []
for arguments in json.loads(sys.argv[1]):
    if isinstance(arguments, list):  # a command
        answers.append(main(arguments))
        continue
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
from spi_diffusers.data.parquet_rows import ParquetRows
from spi_diffusers.data.streaming import exceeds_memory
try:
    ParquetRows(["hf://datasets/lab/set/rows.parquet"], source="lab/set")
except DatasetError as error:
    print("ANSWERS" + json.dumps([str(error), exceeds_memory("lab/set", "ballcircle")]))
"""


def ask(calls, environment):
    answers, _ = run_client(CLIENT, environment, None, json.dumps(calls))
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
    write_lerobot_dataset(make_dataset(terminated=(1,)), folder.with_name("arm"), license="mit")
    arm = folder.with_name("arm")
    columns = make_columns()
    own = {f"s{i}": values for i, values in enumerate(columns["observation"].T)}
    own |= {f"t{i}": values for i, values in enumerate(columns["next_observation"].T)}
    own |= {"u": list(columns["action"]), "gain": columns["reward"], "harm": columns["cost"]}
    own |= {"run": np.repeat(["x", "y", "z"], (3, 2, 4))}
    names = io.BytesIO()
    pq.write_table(pa.table(own), names)
    secret = folder.with_name("secret.parquet")
    secret.write_bytes((folder / BALL.name / "train-00000-of-00001.parquet").read_bytes())
    evil = "---\nconfigs:\n- config_name: d\n  data_files: {}\n---\n"
    foreign = io.BytesIO()
    pq.write_table(pa.table({"state": [1.0], "force": [2.0], "gain": [3.0]}), foreign)
    repositories = {
        "lab/set": files,
        "lab/damaged": damaged,
        "lab/bare": {"data/train-0.parquet": files[name], "data/test-0.parquet": b"no rows"},
        "lab/arm": {str(p.relative_to(arm)): p.read_bytes() for p in arm.rglob("*") if p.is_file()},
        "lab/names": {"rows.parquet": names.getvalue()},
        "lab/evil": {"README.md": evil.format(secret).encode(), "d/rows.parquet": files[name]},
        "lab/wicked": {"README.md": evil.format(f"file://{secret}").encode(), "d/rows.parquet": files[name]},
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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home") / "exp [v2] {a}*"  # no cache's folder is a pattern
    home.mkdir()
    return home


@pytest.fixture(scope="module")
def environment(hub, home):
    return hub.environment(home / "hub") | {"DSRL_DATASET_DIR": str(home / "dsrl")}


@pytest.fixture(scope="module")
def answers(environment, home):
    """What one process gets from the Hub, by the name of the question."""
    calls = {
        "by_task": {"dataset": "lab/set", "task": "ballcircle"},
        "by_commit": {"dataset": "lab/set", "task": "ballcircle", "revision": COMMIT},
        "other": {"dataset": "lab/set", "task": "carrun"},
        "no_config": {"dataset": "lab/set", "task": "carcircle"},
        "no_task": {"dataset": "lab/set"},
        "no_repository": {"dataset": "lab/nothing", "task": "ballcircle"},
        "no_revision": {"dataset": "lab/set", "task": "ballcircle", "revision": "v9"},
        "damaged": {"dataset": "lab/damaged", "task": "ballcircle"},
        "dsrl": {"dataset": "YYY-45/DSRL", "task": "ballcircle"},
        "dsrl_short": {"dataset": "dsrl", "task": "ballcircle"},
        "dsrl_missing": {"dataset": "dsrl", "task": "carrun"},
        "dsrl_no_task": {"dataset": "dsrl"},
        "by_name": {"dataset": "lab/robots", "task": "robot2"},
        "several": {"dataset": "lab/robots"},
        "unknown": {"dataset": "lab/robots", "task": "robot3"},
        "foreign": {"dataset": "lab/foreign"},
        "bare": {"dataset": "lab/bare"},
        "evil": {"dataset": "lab/evil"},
        "wicked": {"dataset": "lab/wicked"},
        "arm": {"dataset": "lab/arm"},
        "arm_set": ["data", "convert", "lab/arm", str(home / "arm")],
        "names": [
            *("data", "convert", "lab/names", str(home / "names"), "--name", "mine"),
            *("--observation-columns", "s*", "--next-observation-columns", "t*", "--action-columns", "u"),
            *("--reward-column", "gain", "--cost-column", "harm", "--episode-column", "run"),
        ],
        "set": ["data", "convert", "lab/set", str(home / "set")],
        "plain": ["data", "convert", "lab/plain", str(home / "plain")],
    }
    return dict(zip(calls, ask(list(calls.values()), environment), strict=True))


def test_parquet_and_dsrl_repositories(hub, environment, answers, home):
    ball, car = make_dataset().sha256, make_dataset(observation_dim=7).sha256
    assert answers["by_task"] == answers["by_commit"] == [ball, f"lab/set@{COMMIT} ({BALL.name})", BALL.name]
    assert answers["other"] == [car, f"lab/set@{COMMIT} ({CAR_RUN.name})", CAR_RUN.name]
    assert answers["no_config"][0] == "DatasetError"
    assert (
        "no config for task OfflineCarCircle-v0. Available: OfflineBallCircle-v0, OfflineCarRun-v0"
        in answers["no_config"][1]
    )
    assert "several tasks; say which one: OfflineBallCircle-v0, OfflineCarRun-v0" in answers["no_task"][1]
    assert (
        answers["no_repository"][0]
        == answers["no_revision"][0]
        == answers["damaged"][0]
        == answers["dsrl_missing"][0]
        == answers["dsrl_no_task"][0]
        == "DatasetError"
    )
    assert "lab/nothing: cannot be loaded from the Hub (revision 'main')" in answers["no_repository"][1]
    assert "lab/set: cannot be loaded from the Hub (revision 'v9'): Rev" in answers["no_revision"][1]
    assert "train-00000-of-00001.parquet: is cut off or damaged: " in answers["damaged"][1]
    assert "lab--damaged" in answers["damaged"][1]  # the client's copy, for who wants to remove it
    assert answers["dsrl"][0] == answers["dsrl_short"][0] == ball
    assert answers["dsrl"][1].endswith(BALL.dataset_file)
    assert (
        f"YYY-45/DSRL: {CAR_RUN.dataset_file} of OfflineCarRun-v0 cannot be downloaded"
        in answers["dsrl_missing"][1]
    )
    assert "say which task" in answers["dsrl_no_task"][1]

    # What is cached stays usable without the network; what DSRL itself has downloaded is found as well.
    (home / "dsrl").mkdir()
    with h5py.File(home / "dsrl" / CAR_RUN.dataset_file, "w") as file:
        for column, values in to_dsrl(make_columns(observation_dim=7)).items():
            file.create_dataset(column, data=values)
    before = sum(hub.requests.values())
    cached, alone, named, other, downloaded, unknown, *codes = ask(
        [
            {"dataset": "lab/set", "task": "ballcircle"},
            {"dataset": "lab/plain"},
            {"dataset": "lab/set", "task": "ballcircle", "revision": "main"},
            {"dataset": "lab/set", "task": "ballcircle", "revision": "v9"},
            {"dataset": "dsrl", "task": "carrun"},
            {"dataset": "lab/other", "task": "ballcircle"},
            ["data", "convert", "lab/set", str(home / "again")],
            ["data", "describe", "lab/plain"],
            [*OWN, "--dataset", "lab/plain", "--output-dir", str(home / "run")],
            [*OWN, "--dataset", "lab/plain", "--output-dir", str(home / "streamed"), "--streaming", "true"],
        ],
        environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert sum(hub.requests.values()) == before
    assert cached == named == answers["by_task"]
    assert alone[:2] == [ball, f"lab/plain@{COMMIT} (d)"]
    assert "(revision 'v9'): the Hub cannot be reached (HF_HUB_OFFLINE is set), and the cache" in other[1]
    assert downloaded[0] == car
    assert (
        "lab/other: cannot be loaded from the Hub (revision 'main'): the Hub cannot be reached (HF"
        in unknown[1]
    )
    assert codes == [0, 0, 0, 0]
    first, again = ((home / name / BALL.name / "stats.json").read_text() for name in ("set", "again"))
    assert first == again


def test_data_of_no_task(answers):
    assert answers["by_name"] == [make_dataset(action_dim=3).sha256, f"lab/robots@{COMMIT} (robot2)", None]
    assert "say which one: robot1, robot2" in answers["several"][1]
    assert answers["unknown"][0] == "UnknownTaskError"
    assert "unknown task 'robot3'" in answers["unknown"][1]
    assert "Nor is it a config of lab/robots, which has robot1, robot2" in answers["unknown"][1]
    assert answers["bare"] == [make_dataset().sha256, f"lab/bare@{COMMIT} (default)", None]
    assert "lab/foreign@" in answers["foreign"][1]
    assert "no column with a usual name for the action (--action-columns)" in answers["foreign"][1]
    assert "It has 'state', 'force', 'gain'" in answers["foreign"][1]


def test_parquet_with_other_names_and_lerobot(answers, home):
    data = make_dataset(terminated=(1,))
    assert answers["arm"][0] == data.sha256
    assert (answers["arm_set"], answers["names"]) == (0, 0)
    stats = json.loads((home / "arm" / "arm" / "stats.json").read_text())
    assert (stats["sha256"], stats["license"]) == (data.sha256, "mit")
    assert stats["source"] == f"LeRobot dataset lab/arm, commit {COMMIT}"
    stats = json.loads((home / "names" / "mine" / "stats.json").read_text())
    assert stats["sha256"] == make_dataset().sha256


@pytest.mark.parametrize("name", ["evil", "wicked"])
def test_a_card_on_the_hub_cannot_name_files_of_this_machine(answers, name):
    assert answers[name][0] == "DatasetError"
    assert f"lab/{name}: config 'd' takes rows from " in answers[name][1]


def test_without_a_connection_a_file_is_named_and_data_is_taken_to_fit_into_memory(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening, so that connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (error, exceeds), said = run_client(CLIENT_WITHOUT_A_HUB, client_environment(url, tmp_path / "home"))
    assert error.startswith("hf://datasets/lab/set/rows.parquet: cannot be reached (ConnectError: ")
    assert said.count("Opening hf://datasets/lab/set/rows.parquet failed (ConnectError: ") == 3
    assert exceeds is False


def test_converting_keeps_licence_description_and_source_with_the_commit(answers, home):
    assert (answers["set"], answers["plain"]) == (0, 0)
    ball, plain = (
        json.loads((home / config / "stats.json").read_text()) for config in (f"set/{BALL.name}", "plain/d")
    )
    assert ball["sha256"] == plain["sha256"] == make_dataset().sha256
    assert (ball["license"], ball["description"]) == ("mit", "By *hand*.")
    assert ball["source"] == f"a robot; by way of lab/set, commit {COMMIT}"
    assert (plain["license"], plain["description"]) == ("apache-2.0", "")
    assert plain["source"] == f"lab/plain, commit {COMMIT}"
