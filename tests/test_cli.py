import json
import re
import resource
import subprocess
import sys
from importlib.util import find_spec

import pytest
from command_line import fails

from spi_diffusers.cli import main
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.tasks import TASKS

HEAVY = ("torch", "numpy", "diffusers", "datasets", "accelerate", "matplotlib", "rich")


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
    broken.write_text("spi: {gama: 0.9}\n")
    assert "unknown task 'balcircle'" in fails(capsys, "train", "--task", "balcircle")
    assert "task or dataset must be given" in fails(capsys, "train")
    line = fails(capsys, "train", "--task", "ballcircle", "--config", str(broken))
    assert "unknown setting spi.gama; did you mean spi.gamma? (" in line
    assert line.strip().endswith("broken.yaml)")
    assert "nowhere.yaml" in fails(capsys, "train", "--config", str(tmp_path / "nowhere.yaml"))
    line = fails(capsys, "train", "--task", "ballcircle", "--algorithm", "spi-paper", "--spi.mu", "0.9")
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


def test_an_argument_without_a_command_is_an_error(capsys):
    assert "unknown argument --bogus" in fails(capsys, "--bogus")
