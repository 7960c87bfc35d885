"""`spi data`, with local files and against a (loopback) Hub."""

import json
import re
import shlex
from pathlib import Path

import command_line
import h5py
import numpy as np
import pytest
from data_factory import make_columns, make_dataset, to_dsrl
from dataset_hub import point_client_at
from faulty_hub import FaultyHub, sha256

from spi_diffusers.cli import main
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, get_task
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.hub.datasets import find_files, published_card

BALL, CAR_RUN = get_task("ballcircle"), get_task("carrun")
REPOSITORY = Path(__file__).parents[2]


def fails(capsys, *arguments):
    return command_line.fails(capsys, "data", *arguments)


def test_convert_then_describe(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("ballcircle.npz", **to_dsrl(make_columns()))
    assert main(["data", "convert", "ballcircle.npz", "set", "--license", "mit", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "OfflineBallCircle-v0: 3 episodes, 9 transitions" in text
    assert "Next: spi data describe set --task OfflineBallCircle-v0" in text
    assert "--action-low" not in text
    assert load_transitions("set").sha256 == make_dataset().sha256
    assert main(["data", "convert", "ballcircle.npz", "set", "--keep-existing"]) == 0
    assert "OfflineBallCircle-v0: there already" in capsys.readouterr().out
    assert main(["data", "describe", "set", "--cost-limit", "0", "1", "--output", "out"]) == 0
    assert "OfflineBallCircle-v0: 3 episodes" in capsys.readouterr().out
    assert [e["cost_limit"] for e in json.loads(Path("out/description.json").read_text())["limits"]] == [0, 1]
    assert main(["data", "describe", "ballcircle.npz"]) == 0
    assert Path("outputs/data/ballcircle.npz/description.png").is_file()


def test_options_of_tables_reach_the_reader(tmp_path, capsys):
    log = tmp_path / "log.csv"
    rows = "1,2,.3,4,0,7,a 5,6,.7,8,1,7,a 9,9,.9,9,0,7,a 1,1,.1,1,0,7,b 2,2,.2,2,0,7,b"
    log.write_text("\n".join(["x,y,u,r,c,r2,run", *rows.split(), ""]))
    options = ["--observation-columns", "x", "y", "--action-columns", "u", "--reward-column", "r"]
    options += ["--cost-column", "c", "--episode-column", "run", "--name", "robot"]
    assert main(["data", "convert", str(log), str(tmp_path / "set"), *options]) == 0
    assert main(["data", "convert", str(log), str(tmp_path / "two"), *options, "--cost-column", "r2"]) == 0
    assert load_transitions(tmp_path / "two").cost_names == ("c", "r2")
    assert "warning: " in capsys.readouterr().err  # next observations are derived
    batch = load_transitions(tmp_path / "set").transitions
    assert batch.observation.tolist() == [[1, 2], [5, 6], [9, 9], [1, 1], [2, 2]]
    assert batch.next_observation.tolist() == [[5, 6], [9, 9], [9, 9], [2, 2], [2, 2]]
    assert batch.action.flatten().tolist() == pytest.approx([0.3, 0.7, 0.9, 0.1, 0.2])
    assert batch.truncated.tolist() == [False, False, True, False, True]


def test_describe_knows_the_task_by_the_files_name_as_convert_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arrays = to_dsrl(make_columns(observation_dim=11, action_dim=3))
    file = "OfflineHopperVelocityGymnasium-v1.npz"
    np.savez(file, **arrays)
    assert main(["data", "describe", file, "--output", "out"]) == 0
    described = json.loads(Path("out/description.json").read_text())
    assert described["task"] == "OfflineHopperVelocityGymnasium-v1"
    assert [entry["cost_limit"] for entry in described["limits"]] == [20, 40, 80]
    np.savez(file, **arrays | {"actions": 2 * np.ones((9, 3))})
    assert "--clip-actions" in fails(capsys, "describe", file)
    assert main(["data", "describe", file, "--clip-actions", "--output", "out"]) == 0


ROBOT = (
    "obs_0,obs_1,steer,gas,r,c,run\n"
    "1,2,30.0,4.0,5,0,a\n3,4,5.0,6.0,7,1,a\n5,6,7.0,8.0,9,0,a\n7,8,9.0,9.0,9,0,b\n9,8,7.0,6.0,5,1,b\n"
)
ROBOT_COLUMNS = [
    *("--observation-columns", "obs_*", "--action-columns", "steer", "gas", "--reward-column", "r"),
    *("--cost-column", "c", "--episode-column", "run"),
]


def test_data_of_no_task_goes_by_the_name_that_it_was_given(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(ROBOT)
    for name in ("robot1", "my robot"):
        assert main(["data", "convert", "log.csv", "set", "--name", name, *ROBOT_COLUMNS]) == 0
        text = capsys.readouterr().out
        assert "--dataset set --action-low LOW --action-high HIGH\n" in text  # nothing tells the range
        following = shlex.split(text.partition("Next: spi ")[2])
        assert following[-1] == name
        assert main([*following, "--output", "out"]) == 0
        assert f"set ({name})" in json.loads(Path("out/description.json").read_text())["source"]
    # What the card says, as it stands there.
    (call,) = re.findall(r"^dataset = (load_transitions.*)", Path("set/README.md").read_text(), re.MULTILINE)
    assert eval(call).source == "set (robot1)"
    assert main(["data", "convert", "set", "one", "--task", "robot1"]) == 0
    assert load_transitions("one").sha256 == load_transitions("set", "my robot").sha256
    assert main(["data", "convert", "set", "all"]) == 0
    assert load_transitions("all", "robot1").task is None
    for arguments in (["describe", "set"], ["convert", "set", "x"]):
        line = fails(capsys, *arguments, "--task", "robot2")
        assert "unknown task 'robot2'" in line
        assert "Nor is it a config of set, which has my robot, robot1" in line
    assert "has no config for task OfflineBallCircle-v0" in fails(
        capsys, "describe", "set", "--task", "ballcircle"
    )


@pytest.mark.parametrize("folder", ["data/tank", "tank", "dsrl/x", "deep/minari:x", 'data/a "b"'])
@pytest.mark.parametrize("absolute", [False, True])
def test_the_card_says_how_this_folder_is_loaded(tmp_path, monkeypatch, folder, absolute):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    target = tmp_path / "there" / folder if absolute else folder
    write_parquet_dataset(make_dataset(), target, config_name="tank")
    card = Path(target, "README.md").read_text()
    (call,) = re.findall(r"^dataset = (load_transitions.*)", card, re.MULTILINE)
    assert eval(call).sha256 == make_dataset().sha256
    published = published_card(find_files(Path(target)), "org/tank")
    assert 'load_transitions("org/tank", task="tank")' in published
    assert str(tmp_path) not in published


def test_csv_options_reach_the_reader(tmp_path, capsys):
    log = tmp_path / "log.csv"
    text = "höhe;gas;reward;cost;run\n1,234;0,5;1;0;a\n2,345;0,5;1;0;a\n"
    log.write_bytes(text.encode("latin-1"))
    arguments = [str(log), str(tmp_path / "set"), "--observation-columns", "h*", "--action-columns", "gas"]
    arguments += ["--episode-column", "run"]
    assert "log.csv: is not text in the encoding utf-8" in fails(capsys, "convert", *arguments)
    arguments += ["--encoding", "latin-1", "--delimiter", ";", "--decimal", ","]
    assert main(["data", "convert", *arguments]) == 0
    assert (
        load_transitions(tmp_path / "set").transitions.observation.tolist()
        == np.float32([[1.234], [2.345]]).tolist()
    )
    capsys.readouterr()  # a warning: next observations are derived
    assert "delimiter (--delimiter) must be" in fails(capsys, "convert", *arguments, "--delimiter", "ab")


def test_export_and_back(tmp_path, capsys):
    write_parquet_dataset(make_dataset(), tmp_path / "set", config_name="arm")
    target = str(tmp_path / "lerobot" / "arm")
    export = ["data", "export", str(tmp_path / "set"), target, "--to", "lerobot"]
    assert main([*export, "--license", "mit"]) == 0
    assert f"Written: {target}, 3 episodes, 9 transitions" in capsys.readouterr().out
    assert main(["data", "convert", target, str(tmp_path / "again")]) == 0
    assert load_transitions(tmp_path / "again", "arm").sha256 == make_dataset().sha256
    assert "license: mit" in (tmp_path / "again" / "README.md").read_text()
    assert "exists and is not empty" in fails(capsys, *export[1:])


def test_errors_are_one_line(tmp_path, capsys):
    assert "spi data: error: the following arguments are required: COMMAND" in fails(capsys)
    assert "required: SRC, DST" in fails(capsys, "convert")
    line = fails(capsys, "convert", "a", "b", "--tsk", "x")
    assert line.startswith("spi data convert: error: unknown argument --tsk; did you mean --task?")
    assert "unknown task 'balcircle'" in fails(capsys, "convert", "a", "b", "--task", "balcircle")
    assert "no such file or folder" in fails(capsys, "convert", "/nowhere", str(tmp_path / "x"))
    assert "not allowed with" in fails(capsys, "convert", "a", "b", "--overwrite", "--keep-existing")
    assert "nowhere.npz: no such file" in fails(capsys, "describe", "nowhere.npz")
    assert "finite number of at least 0" in fails(
        capsys, "describe", "embedded", "--cost-limit", "-1", "--output", str(tmp_path / "x")
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["describe", "--help"]])
def test_help_teaches(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["data", *arguments])
    assert "examples:" in capsys.readouterr().out


def test_dsrl_from_the_hub(tmp_path, monkeypatch, capsys, caplog):
    """Two tasks over a connection that breaks, from download to parquet; a second run fetches nothing."""
    contents = {}
    for task, size in ((BALL, 8), (CAR_RUN, 7)):
        with h5py.File(tmp_path / "file.hdf5", "w") as file:
            for name, values in to_dsrl(make_columns(observation_dim=size)).items():
                file.create_dataset(name, data=values)
        contents[task.dataset_file] = (tmp_path / "file.hdf5").read_bytes()
    convert = ["data", "convert", DSRL_DATASET_REPO]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSRL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    with FaultyHub({DSRL_DATASET_REPO: contents}) as hub:
        point_client_at(monkeypatch, hub.url)
        caplog.set_level("INFO", "spi_diffusers")
        hub.reset("drop@1000", "corrupt@1500")
        assert main([*convert, "set", "--task", "ballcircle", "carrun"]) == 0
        assert "2 files" in caplog.text
        assert hub.served[0] == 0
        assert len(hub.served) >= 4  # the drop, the corrupted rest, again from the start, the other file
        assert load_transitions(tmp_path / "set", BALL).sha256 == make_dataset().sha256
        assert load_transitions(tmp_path / "set", CAR_RUN).sha256 == make_dataset(observation_dim=7).sha256
        assert sha256(contents[BALL.dataset_file]) in (tmp_path / "set" / "README.md").read_text()
        hub.reset()
        assert main([*convert, "again", "--task", "ballcircle", "antrun"]) == 2
        said = capsys.readouterr().err
        assert "of OfflineAntRun-v0 cannot be downloaded: there is no such file" in said
        assert not (tmp_path / "again").exists()
        assert main([*convert, "again", "--task", "ballcircle"]) == 0
        assert hub.served == []
