"""Output that cannot be written stops no work; the exit code says what the work came to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spi_diffusers.cli import main

ROOT = Path(__file__).parents[2]
# Prints more than a pipe holds, and does its work after that.
JOB = """
import os, sys
from spi_diffusers.cli import run_with_messages

def job():
    for number in range(20_000):
        print("line", number)
        print("progress", number, file=sys.stderr)
    child = [sys.executable, "-c", "import os; print('child'); os.write(1, b'x'); os.write(2, b'x')"]
    with open("work", "w") as file:
        file.write("done")
        import subprocess
        file.write(str(subprocess.run(child).returncode))
    return 3

sys.exit(run_with_messages(job, "job"))
"""


def shell(command, folder, **environment):
    return subprocess.run(
        [
            "bash",
            "-c",
            command.replace("job", '"$PYTHON" -c "$JOB"').replace("spi ", '"$PYTHON" -m spi_diffusers '),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "JOB": JOB} | environment,
        capture_output=True,
        text=True,
        errors="replace",
    )


@pytest.mark.parametrize(
    "command",
    [
        "job 2>&1 | head -c 100; exit ${PIPESTATUS[0]}",
        "job | true; exit ${PIPESTATUS[0]}",
        "job 2> >(true)",
        "job >&-",
        "job 2>&-",
        "job >&- 2>&- <&-",
        "job > /dev/full 2>&1",
    ],
)
def test_work_goes_on_without_its_output(tmp_path, command):
    result = shell(command, tmp_path)
    assert result.returncode == 3, result.stderr[-1000:]
    assert (tmp_path / "work").read_text() == "done0"
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize("where", ["2> >(true)", "2>&-", "2> /dev/full"])
def test_a_progress_bar_that_cannot_be_shown_stops_no_script(tmp_path, where):
    code = (
        "from spi_diffusers.progress import progress_bar\n"
        "with progress_bar(range(300), disable=False, mininterval=0, dynamic_ncols=True) as bar:\n"
        "    for number in bar: bar.set_postfix(number=number)\n"
        "print(number)\n"
    )
    (tmp_path / "script.py").write_text(code)
    result = shell(f'"$PYTHON" script.py {where}', tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "299\n", "")


def test_where_the_output_is_all_its_loss_is_an_error(tmp_path):
    result = shell("spi tasks --json > /dev/full", tmp_path)
    assert result.returncode == 1
    assert result.stderr == "spi tasks: error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("words", ["tasks", "tasks --json", "train --task balcircle"])
def test_a_closed_stream_is_no_error(tmp_path, words):
    result = shell(f"spi {words} >&- 2>&-", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2 if "train" in words else 0, "", "")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "+ x +- ? |"),
        ("latin-1", "+ x \xb1 \xfc |"),
        ("cp1252", "+ x \xb1 \xfc |"),
        ("utf-8", "✓ ✗ ± ü │"),
    ],
)
def test_characters_that_the_terminal_has_not_got_are_replaced(encoding, shown):
    code = (
        "from rich.table import Table; from rich import box\n"
        "from spi_diffusers.cli import run_with_messages\n"
        "from spi_diffusers.commands.output import print_tables\n"
        "def job():\n"
        "    table = Table(box=box.SQUARE, show_header=False)\n"
        "    table.add_row('✓ ✗ ± ü')\n"
        "    print_tables(table)\n"
        "raise SystemExit(run_with_messages(job))\n"
    )
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert shown in result.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("words", "program", "option"),
    [
        (["--seed", "1", "train"], "spi", "--seed"),
        (["--output_dir=a_b", "train", "--task", "ballcircle"], "spi", "--output-dir"),
        (["--token", "hf_SECRET123", "publish", "a", "b"], "spi", "--token"),
        (["--traceback", "tasks"], "spi", "--traceback"),
        (["data", "--task", "ballcircle", "describe", "x"], "spi data", "--task"),
    ],
)
def test_options_before_the_command_are_told_where_they_stand(capsys, words, program, option):
    with pytest.raises(SystemExit) as caught:
        main(words)
    message = f"{program}: error: {option} stands before the command; options come after it"
    assert (caught.value.code, message in capsys.readouterr().err) == (2, True)


def test_a_token_in_the_wrong_place_is_not_shown(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "outputs/run", "hf_SECRET123"])
    assert capsys.readouterr().err.startswith("spi evaluate: error: unknown argument <token>")
