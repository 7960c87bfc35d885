import json
import re
import resource
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from spi_diffusers.cli import main
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.evaluation.behaviour import behaviour_rows
from spi_diffusers.evaluation.plots import plot_limits
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.training.config_layers import make_train_config

HEAVY = ("torch", "numpy", "diffusers", "datasets", "accelerate", "matplotlib", "rich")
TINY = (
    *("--network.hidden_dims", "32", "32", "--batch_size", "32", "--threads", "1", "--device", "cpu"),
    *("--updates", "5", "--quiet"),
)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    batch = load_transitions(None, "ballcircle").select_episodes(torch.arange(4)).transitions
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path,
        observations=batch.observation.numpy(),
        next_observations=batch.next_observation.numpy(),
        actions=batch.action.numpy(),
        rewards=batch.reward.numpy(),
        costs=batch.cost.numpy(),
        terminals=batch.terminated.numpy().astype(np.float32),
        timeouts=batch.truncated.numpy().astype(np.float32),
    )
    return path


@pytest.fixture(scope="module")
def run_folder(small_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    code = main(
        ["train", "--task", "ballcircle", "--dataset", str(small_file), "--output_dir", str(folder), *TINY]
    )
    assert code == 0
    return folder


def fails(capsys, *arguments):
    """Run a command that must fail with exit code 2 and one line; return the line."""
    try:
        code = main(list(arguments))
    except SystemExit as error:
        code = error.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def run_timed(code):
    """Run Python code; how it ended, and the least processor time, in seconds, of three times.

    Not the clock's: on a busy machine that runs on while others work.
    """
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return result, min(seconds)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["tasks", "--help"]]
)
def test_help_answers_at_once_and_imports_nothing_heavy(arguments):
    code = (
        "import sys; from spi_diffusers.cli import main\n"
        f"try: main({arguments!r})\n"
        f"finally: print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    result, seconds = run_timed(code)
    assert result.stderr.strip() == ""
    assert "usage: spi" in result.stdout
    assert seconds < 0.5


def test_help_teaches(capsys):
    for command in ([], ["train"], ["evaluate"], ["tasks"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "examples:" in capsys.readouterr().out
    assert main([]) == 0
    assert "spi train --task ballcircle" in capsys.readouterr().out


def test_help_of_train_explains_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    config = make_train_config({"task": "ballcircle"}).to_dict()

    def check(settings, path=""):
        for name, value in settings.items():
            if isinstance(value, dict):
                check(value, f"{path}{name}.")
                continue
            # The option, its kind of value, and then at least a word of explanation.
            assert re.search(
                rf"^  --{re.escape(path + name)} \S+( \.\.\.\])?\s+\S*[A-Za-z]", text, re.MULTILINE
            ), path + name

    check(config)


def test_unknown_arguments_are_one_line_with_a_suggestion(capsys):
    line = fails(capsys, "train", "--task", "ballcircle", "--batchsize", "3")
    assert "unknown argument --batchsize; did you mean --batch" in line
    assert "invalid choice: 'trian'" in fails(capsys, "trian")
    assert "required: FOLDER_OR_HUB_ID" in fails(capsys, "evaluate")
    assert "--cost-limit" in fails(capsys, "evaluate", "x", "--cost-limit", "ten")


def test_known_errors_are_one_line(capsys, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("algorithm: {gama: 0.9}\n")
    assert "unknown task 'balcircle'" in fails(capsys, "train", "--task", "balcircle")
    assert "task or dataset must be given" in fails(capsys, "train")
    line = fails(capsys, "train", "--task", "ballcircle", "--config", str(broken))
    assert "broken.yaml: unknown key 'algorithm.gama'" in line
    assert "nowhere.yaml" in fails(capsys, "train", "--config", str(tmp_path / "nowhere.yaml"))
    line = fails(capsys, "train", "--task", "ballcircle", "--preset", "paper", "--algorithm.mu", "0.9")
    assert "eta + mu + phi must be 1" in line
    output = ("--output_dir", str(tmp_path / "new"))
    line = fails(capsys, "train", "--task", "ballcircle", "--dataset", str(tmp_path / "no.npz"), *output)
    assert "no.npz: no such file" in line
    assert "no dataset is embedded for OfflineCarCircle-v0" in fails(
        capsys, "train", "--task", "carcircle", *output
    )
    assert not (tmp_path / "new").exists()
    assert "unknown task" in fails(capsys, "evaluate", "x", "--task", "balcircle")
    assert "simulator must be one of bullet" in fails(capsys, "tasks", "--simulator", "chess")


def test_traceback_on_request(capsys, monkeypatch):
    assert main(["train", "--task", "balcircle", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SPI_TRACEBACK", "1")
    assert main(["train", "--task", "balcircle"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_tasks_lists_what_there_is(capsys):
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    assert all(f" {task.name} " in text and f" {task.short_name} " in text for task in TASKS.values())
    assert "Python 3.10" in text  # what safety-gymnasium needs
    assert main(["tasks", "--paper", "--simulator", "bullet"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "Offline" in line]
    assert len(rows) == 4
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]
    assert [row[-1] for row in cells] == ["yes", "", "", ""]  # data in the package
    assert cells[0][:8] == [
        *("ballcircle", "OfflineBallCircle-v0", "bullet", "200", "8/2", "0..881", "10 20 40", "10"),
    ]
    assert cells[0][8] == ("yes" if find_spec("bullet_safety_gym") else "no")


def test_tasks_in_detail(capsys):
    assert main(["tasks", "--paper", "--simulator", "bullet", "--verbose"]) == 0
    lines = capsys.readouterr().out.partition("YYY-45/DSRL")[2].splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if ".hdf5" in line]
    assert [row[0] for row in cells] == ["ballcircle", "carcircle", "carrun", "dronecircle"]
    assert cells[0] == ["ballcircle", "0..80", "SafetyBallCircle-v0-80-886.hdf5"]
    assert max(map(len, (line for line in lines if ".hdf5" in line))) <= 100


def test_a_reader_that_has_read_enough_is_no_error():
    for arguments, code in (("", 1), (" --json", 141)):  # tables are rich's, which ends with 1
        command = f"{sys.executable} -m spi_diffusers.cli tasks{arguments} | true"
        result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (code, "")


def test_tasks_as_json_and_only_what_is_installed(capsys):
    assert main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(TASKS)
    assert {row["dataset_repo"] for row in rows} == {"YYY-45/DSRL"}
    assert main(["tasks", "--json", "--installed"]) == 0
    installed = json.loads(capsys.readouterr().out)
    assert installed == [row for row in rows if row["simulator_installed"]]
    assert main(["tasks", "--installed", "--simulator", "metadrive"]) == 0
    assert "No task fits" in capsys.readouterr().out


def test_tasks_answers_at_once():
    code = (
        "import sys; from spi_diffusers.cli import main; main(['tasks'])\n"
        "print(*({'torch', 'numpy', 'gymnasium', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    result, seconds = run_timed(code)
    assert result.stderr.strip() == ""
    assert seconds < 0.5


def test_train_leaves_a_policy_that_loads_with_its_config_and_origin(run_folder, small_file):
    from spi_diffusers.pipelines import SPIPolicyPipeline

    policy = run_folder / "policy"
    pipeline = SPIPolicyPipeline.from_pretrained(str(policy))
    assert pipeline(
        np.zeros(8), cost_limit=10.0, generator=torch.Generator().manual_seed(0)
    ).actions.shape == (2,)
    assert pipeline.config.task == "OfflineBallCircle-v0"
    assert pipeline.config.gamma == 0.98
    config = json.loads((policy / "train_config.json").read_text())
    assert config == json.loads((run_folder / "train_config.json").read_text())
    assert make_train_config(config_file=policy / "train_config.json").to_dict() == config
    info = json.loads((policy / "train_info.json").read_text())
    assert (info["algorithm"], info["train_seed"], info["updates"]) == ("spi", 0, 5)
    assert info["dataset"] == {
        "id": str(small_file),
        "sha256": load_transitions(small_file, "ballcircle").sha256,
    }
    assert [line["step"] for line in map(json.loads, (run_folder / "metrics.jsonl").open())] == [5]
    assert not list(run_folder.rglob("*.pkl")) + list(run_folder.rglob("*.bin"))


def test_a_second_run_into_the_same_folder_is_refused(capsys, run_folder, small_file):
    line = fails(
        capsys,
        "train",
        "--task",
        "ballcircle",
        "--dataset",
        str(small_file),
        "--output_dir",
        str(run_folder),
        *TINY,
    )
    assert "holds a run already" in line


def test_the_settings_that_would_be_used_are_printed_and_nothing_is_made(capsys, tmp_path):
    words = ["train", "--task", "carrun", "--preset", "paper", "--output_dir", str(tmp_path / "run")]
    assert main([*words, "--algorithm.eta", "0.5", "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["task"], config["updates"]) == ("OfflineCarRun-v0", 15_000)
    assert (config["algorithm"]["conditioned"], config["algorithm"]["mu"]) == (False, 0.25)
    assert not (tmp_path / "run").exists()


def test_help_of_train_shows_the_defaults_that_are_used_and_the_presets(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    default = make_train_config({"task": "dronerun"})  # which has no preset of its own
    for name in ("updates", "learning_rate", "batch_size"):
        assert re.search(rf"--{name} \w+ [^(]*\(default: {getattr(default, name)}\)", text), name
    assert re.search(r"There are antvelocity, ballcircle, bc, .*coptidice, cpq, ", text)


def test_data_of_no_task_ends_in_a_policy_for_an_environment_of_ones_own(capsys, small_file, tmp_path):
    data = load_transitions(small_file, "ballcircle")
    write_parquet_dataset(data, tmp_path / "set", config_name="robot")
    words = [
        "train",
        "--task",
        "robot",
        "--dataset",
        str(tmp_path / "set"),
        "--calibrate",
        "false",
        "--quiet",
    ]
    assert main([*words, *TINY, "--output_dir", str(tmp_path / "run")]) == 0
    assert "Next: act with it in your own environment" in capsys.readouterr().out
    for command in ("evaluate", "play"):
        assert "there is no simulator to play it in" in fails(capsys, command, str(tmp_path / "run"))


def test_resuming_through_the_saved_config_is_a_finished_run(capsys, run_folder):
    before = (run_folder / "policy" / "train_info.json").read_bytes()
    (run_folder / "policy" / "notes.md").write_text("the user's own")
    assert main(["train", "--config", str(run_folder / "train_config.json"), "--resume", "--quiet"]) == 0
    assert "Trained 5 updates" in capsys.readouterr().out
    assert (run_folder / "policy" / "train_info.json").read_bytes() == before
    assert (run_folder / "policy" / "notes.md").read_text() == "the user's own"


def test_a_policy_that_replaces_another_does_not_inherit_its_results(run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "results.json").write_text("{}")
    words = [
        "train",
        "--config",
        str(run / "train_config.json"),
        "--output_dir",
        str(run),
        "--resume",
        "--quiet",
    ]
    assert main([*words, "--budget_reserve", "9"]) == 0
    assert not (run / "evaluation").exists()
    assert (run / "evaluation-replaced1" / "results.json").read_text() == "{}"


def test_an_argument_without_a_command_is_an_error(capsys):
    assert "unknown argument --bogus" in fails(capsys, "--bogus")


def test_evaluate_writes_results_plots_and_a_table(capsys, run_folder, tmp_path):
    pytest.importorskip("bullet_safety_gym")
    arguments = ["evaluate", str(run_folder), "--cost-limit", "10", "--episodes", "2", "--seeds", "3", "4"]
    arguments += [
        "--extraction",
        "safe",
        "--no-feedback",
        "--no-video",
        "--quiet",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "OfflineBallCircle-v0" in text
    assert "data, mean of 4" in text
    assert "data, best within" in text
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())["entries"]
    assert (entry["cost_limit"], entry["episodes"], entry["eval_seeds"]) == (10.0, 4, [3, 4])
    assert (entry["extraction"], entry["feedback"], entry["updates"]) == ("safe", False, 5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("results.json", "limits.png", "cost_return.png", "training.png"),
    }


def test_play_records_the_episode_that_the_seed_decides(capsys, run_folder, tmp_path):
    lines = []
    for name in ("one.mp4", "two.mp4"):
        arguments = ["play", str(run_folder), "--cost-limit", "40", "--seed", "5", "--quiet"]
        assert main([*arguments, "--output", str(tmp_path / name)]) == 0
        figures, written = capsys.readouterr().out.strip().splitlines()
        assert written == f"Written: {tmp_path / name}"
        lines.append(figures)
    assert lines[0] == lines[1]
    assert re.match(r"OfflineBallCircle-v0, seed 5, 200 steps: return -?[\d.]+ .*cost \d+ of 40", lines[0])
    assert (tmp_path / "one.mp4").stat().st_size > 1000


def test_play_refuses_another_file_type_and_another_task(capsys, run_folder, tmp_path):
    assert "replay is an .mp4 file" in fails(
        capsys, "play", str(run_folder), "--output", str(tmp_path / "x.gif")
    )
    assert "trained for OfflineBallCircle-v0" in fails(capsys, "play", str(run_folder), "--task", "carcircle")


def test_what_evaluate_cannot_use_shows_before_anything_is_played(capsys, run_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text('{"format_version": 1, "entr')
    for words, message in (
        (["--output", str(tmp_path / "file")], "file: is a file; name a folder for the results"),
        (["--output", str(tmp_path / "broken")], "results.json is not complete JSON"),
        (["--dataset", "typo.parquet", "--output", str(tmp_path / "new")], "typo.parquet"),
        (["--revision", "v9"], "is a folder, so a revision (v9) means nothing"),
    ):
        # A million episodes would not end: it is refused before they begin.
        assert main(["evaluate", str(run_folder), "--episodes", "1000000", "--quiet", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_plots_and_video_of_a_second_evaluation_show_both(run_folder, small_file, tmp_path):
    output = tmp_path / "both"
    words = ["evaluate", str(run_folder), "--episodes", "1", "--quiet", "--output", str(output)]
    assert main([*words, "--cost-limit", "10", "20", "--extraction", "safe"]) == 0
    first = {name: (output / name).read_bytes() for name in ("limits.png", "replay.mp4")}
    assert main([*words, "--cost-limit", "10", "--extraction", "safe", "--no-feedback"]) == 0
    assert (output / "replay.mp4").read_bytes() == first["replay.mp4"]  # with the cost fed back, as before
    expected = tmp_path / "expected.png"
    entries = read_results(output / "results.json")
    assert len(entries) == 3
    rows = behaviour_rows(load_transitions(small_file, "ballcircle"), [10.0, 20.0])
    plot_limits(entries, expected, rows)
    assert (output / "limits.png").read_bytes() == expected.read_bytes()


def test_evaluate_refuses_what_is_no_policy(capsys, run_folder, tmp_path):
    assert "no such folder" in fails(capsys, "evaluate", str(tmp_path / "nowhere" / "policy"))
    assert "holds no policy" in fails(capsys, "evaluate", str(tmp_path))
    assert "trained for OfflineBallCircle-v0" in fails(
        capsys, "evaluate", str(run_folder), "--task", "carcircle"
    )
    assert "a cost limit must be" in fails(capsys, "evaluate", str(run_folder), "--cost-limit", "-1")
    assert "'bullet', 'dsrl'; got 'gymnasium'" in fails(
        capsys, "evaluate", str(run_folder), "--simulator", "gymnasium"
    )
    assert "pip install dsrl" in fails(capsys, "evaluate", str(run_folder), "--simulator", "dsrl")
    assert "told nothing of the cost anyway" in fails(
        capsys, "evaluate", str(run_folder), "--extraction", "reward", "--no-feedback"
    )
    assert "got 'chess'" in fails(capsys, "evaluate", str(run_folder), "--simulator", "chess")


def test_results_of_a_chosen_simulator_are_kept_apart(capsys, run_folder):
    short = ["--cost-limit", "10", "--episodes", "1", "--extraction", "safe", "--no-plots", "--no-video"]
    assert main(["evaluate", str(run_folder), "--simulator", "bullet", *short]) == 0
    assert f"Written: {run_folder / 'evaluation-bullet' / 'results.json'}" in capsys.readouterr().out
