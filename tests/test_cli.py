import contextlib
import json
import re
import resource
import subprocess
import sys
from importlib.util import find_spec

import pytest
from command_line import fails

from spi_diffusers.cli import COMMANDS, main
from spi_diffusers.commands import data
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import leaf_types
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
    ("arguments", "heavy", "times"),
    [
        (["--help"], (*HEAVY, "pydantic", "yaml"), 1.5),
        (["train", "--help"], HEAVY, 5.0),
        (["train", "--help-all"], HEAVY, 5.0),
        (["evaluate", "--help"], (*HEAVY, "pydantic"), 1.5),
        (["tasks", "--help"], (*HEAVY, "pydantic"), 1.5),
        (["data", "convert", "--help"], (*HEAVY, "pydantic"), 1.5),
    ],
)
def test_help_answers_at_once_and_imports_nothing_heavy(arguments, heavy, times):
    """In processor time beside that of importing NumPy, on any machine."""
    code = (
        "import sys; from spi_diffusers.cli import main\n"
        f"try: main({arguments!r})\n"
        f"finally: print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)"
    )
    result, seconds = run_timed(code)
    assert result.stderr.strip() == ""
    assert "usage: spi" in result.stdout
    assert seconds < times * run_timed("import numpy")[1]


def help_of(capsys, *words):
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["", *COMMANDS, *(f"data {name}" for name in data.COMMANDS)])
def test_help_teaches(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys, *name.split())
    assert text.startswith(f"usage: spi {name}".rstrip())
    assert f"  spi {name}".rstrip() in text.partition("examples:\n")[2]
    options = text.partition("options:")[2].partition("examples:")[0]
    assert max(map(len, options.splitlines()), default=0) <= 80
    assert all(len(line) <= 80 or line.startswith("  ") for line in text.splitlines())
    assert "_" not in "".join(re.findall(r"--[\w.-]+", text.partition("torchrun")[0]))


def test_spi_alone_shows_its_help(capsys):
    assert main([]) == 0
    assert "spi train --task ballcircle" in capsys.readouterr().out


def test_help_of_train_shows_what_a_user_decides(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys, "train")
    assert len(text.splitlines()) <= 60
    for option in ("task", "dataset", "algorithm", "cost-limit", "updates", "seed", "output-dir", "resume"):
        assert f"  --{option} " in text
    assert all(f"  --{option} " in text for option in ("device", "mixed-precision", "spi.eta", "help-all"))
    assert "--bcq-lag." not in text


def test_help_of_train_with_an_algorithm_shows_its_own_settings(capsys):
    words = ["--algorithm", "bcq-lag"]
    for text in (
        help_of(capsys, "train", *words),
        (main(["train", "-h", *words]), capsys.readouterr().out)[1],
    ):
        assert all(f"  --bcq-lag.{name} " in text for name in ("gamma", "max-perturbation", "kl-weight"))
        assert "--spi.eta" not in text.partition("examples:")[0]
        assert "  --task " in text
        assert re.search(r"--updates N +Number of training updates \(default: 4500\)", text)


def test_all_help_of_train_explains_every_setting(capsys):
    assert main(["train", "--help-all"]) == 0
    text = capsys.readouterr().out
    for name in leaf_types(TrainConfig):
        option = re.escape(name.replace("_", "-"))
        # The option, its kind of value, and then at least a word of explanation.
        assert re.search(rf"^  --{option} \S+( \.\.\.\])?\s+\S*[A-Za-z]", text, re.MULTILINE), name


def test_options_are_spelled_with_dashes_or_as_their_keys(capsys):
    words = ["train", "--task", "ballcircle", "--print-config"]
    dashes = ["--output-dir", "a_b", "--spi.imitation-share=0.5", "--spi.cost-remap", "indicator"]
    assert main([*words, *dashes]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["output_dir"], config["spi"]["imitation_share"]) == ("a_b", 0.5)
    assert main([*words, *(word.replace("-", "_").replace("__", "--", 1) for word in dashes)]) == 0
    assert json.loads(capsys.readouterr().out) == config


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_options_and_names(capsys, shell):
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("evaluate", "spi.imitation-share", "ballcircle", "bcq-lag"))


def test_completion_in_bash(capsys, tmp_path):
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "spi").write_text(capsys.readouterr().out)
    (tmp_path / "folder").mkdir()
    asked = {
        ("spi", "tr"): "train",
        ("spi", "data", "de"): "describe",
        ("spi", "train", "--spi.im"): "--spi.imitation-share",
        ("spi", "train", "--algorithm", "bcq"): "bcq-lag",
        ("spi", "evaluate", "fol"): "folder",
    }
    for words, answer in asked.items():
        script = f"source ./spi; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_spi; "
        script += 'echo "${COMPREPLY[@]}"'
        result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert result.stdout.strip() == answer, (words, result.stderr)


def test_python_runs_the_package():
    command = [sys.executable, "-m", "spi_diffusers", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("spi-diffusers ")


def test_interrupted_anywhere_is_one_line(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for place in ("spi_diffusers.cli.make_parser", "spi_diffusers.data.simulators.list_tasks"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            assert main(["tasks"]) == 130
        assert re.fullmatch(r"spi( tasks)?: interrupted\n", capsys.readouterr().err)


def test_unknown_arguments_are_one_line_with_a_suggestion(capsys):
    line = fails(capsys, "train", "--task", "ballcircle", "--batchsize", "3")
    assert "unknown argument --batchsize; did you mean --batch" in line
    assert "unknown argument --eta; did you mean --spi.eta?" in fails(capsys, "train", "--eta", "0.3")
    assert "unknown 'trian'; did you mean train?" in fails(capsys, "trian")
    assert "unknown 'convrt'; did you mean convert?" in fails(capsys, "data", "convrt")
    assert "unknown 'saef'; did you mean safe?" in fails(capsys, "evaluate", "x", "--extraction", "saef")
    assert "required: POLICY" in fails(capsys, "evaluate")
    assert "--cost-limit" in fails(capsys, "evaluate", "x", "--cost-limit", "ten")


def test_an_option_that_took_what_stands_for_itself_is_named(capsys):
    hint = "--cost-column takes all words up to the next option: write SRC DST before it, or behind a --"
    for words in (["--cost-column", "a", "b", "x.csv", "out"], ["x.csv", "--cost-column", "a", "out"]):
        assert hint in fails(capsys, "data", "convert", *words)
    line = fails(capsys, "evaluate", "--cost-limit", "10", "20", "outputs/run")
    assert "a limit is a number, or of several costs a list such as 20,300, got 'outputs/run'; " in line
    assert "--cost-limit takes all words up to the next option: write POLICY before it" in line
    assert "takes all" not in fails(capsys, "evaluate", "x", "--cost-limit", "ten")
    line = fails(capsys, "data", "convert", "--cost-column", "a", "b", "--", "x.csv", "out")
    assert "x.csv: no such file" in line


def test_known_errors_are_one_line(capsys, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("spi: {gama: 0.9}\n")
    assert "unknown task 'balcircle'" in fails(capsys, "train", "--task", "balcircle")
    for words in ([], ["--dataset", ""], ["--task", "", "--dataset="]):
        message = "task or dataset must be given, for example --task ballcircle or --dataset my.csv"
        assert message in fails(capsys, "train", *words)
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


def cells_of(line):
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]


def test_tasks_fit_80_columns(capsys):
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    rows = {cells[0]: cells for line in text.splitlines() if len(cells := cells_of(line)) == 6}
    assert list(rows) == ["task", *(task.short_name for task in TASKS.values())]
    assert "Python 3.10" in " ".join(text.split())  # what safety-gymnasium needs
    installed = "yes" if find_spec("bullet_safety_gym") else "no"
    assert rows["ballcircle"] == ["ballcircle", "bullet", "200", "10 20 40", installed, "yes"]
    assert rows["carcircle"] == ["carcircle", "bullet", "300", "10 20 40", installed, ""]


def test_tasks_in_detail(capsys):
    assert main(["tasks", "--wide"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.partition("cost limits: DSRL's")[0].splitlines()[:40])) <= 160
    assert all(f" {task.name} " in text and f" {task.short_name} " in text for task in TASKS.values())
    assert main(["tasks", "--paper", "--simulator", "bullet", "--wide"]) == 0
    table, _, files = capsys.readouterr().out.partition("YYY-45/DSRL")
    (first, *_) = rows = [cells_of(line) for line in table.splitlines() if "Offline" in line]
    assert len(rows) == 4
    assert first[:8] == [
        *("ballcircle", "OfflineBallCircle-v0", "bullet", "200", "8/2", "0..881", "10 20 40", "10"),
    ]
    files = [cells_of(line) for line in files.splitlines() if ".hdf5" in line]
    assert [row[0] for row in files] == ["ballcircle", "carcircle", "carrun", "dronecircle"]
    assert files[0] == ["ballcircle", "0..80", "SafetyBallCircle-v0-80-886.hdf5"]


def test_a_reader_that_has_read_enough_is_no_error():
    for arguments in ("", " --json"):
        command = f"{sys.executable} -m spi_diffusers.cli tasks{arguments} | true"
        result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")


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
