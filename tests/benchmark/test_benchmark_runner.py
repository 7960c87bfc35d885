"""The runner on real processes, and what it refuses before it starts."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from benchmark_factory import entry, make_cells, steps_done, tiny_config

from spi_diffusers.benchmark.cells import (
    CellError,
    Outcome,
    read_outcome,
    resolve_configs,
    run_cell,
    write_cell,
    write_outcome,
)
from spi_diffusers.benchmark.runner import Benchmark, LocalExecutor
from spi_diffusers.benchmark.suites import Cell, algorithms_of
from spi_diffusers.cli import main
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry
from spi_diffusers.evaluation.results import ResultsFileError, read_results, write_results
from spi_diffusers.locks import FolderInUseError, held

DRAWN = next(iter(algorithms_of("sensitivity")))
TIMES = {"train_seconds", "steps_per_second"}


def tiny_cells(algorithm: str = "bc", updates: int = 20, **settings) -> list[Cell]:
    options = {"tasks": ["ballcircle"], "seeds": [0], "episodes": 2, "updates": {"": updates}}
    return make_cells(["table1"], algorithms=[algorithm], **(options | settings))


def refused(cells: list[Cell], output: Path, config: str | None = None) -> None:
    """Run with the expectation that it is refused: no process may start."""
    executor = LocalExecutor()
    executor.run = lambda folder: pytest.fail(f"{folder} was run")  # type: ignore[method-assign]
    Benchmark(cells, output, config).run(executor, progress=False)


def command(output: Path, config: str, *more: str) -> list[str]:
    words = ["benchmark", "--suite", "table1", "--tasks", "ballcircle", "--episodes", "2", "--config", config]
    return [*words, "--output", str(output), "--quiet", *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it."""
    words = [sys.executable, "-m", "spi_diffusers.cli", *arguments]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # A script's background job, as these tests may be, ignores Ctrl-C; what a terminal starts does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def in_this_process(monkeypatch):
    """Cells run here, where torch is imported already."""
    monkeypatch.setattr(LocalExecutor, "run", lambda executor, folder: run_cell(folder))


def figures(results: Path) -> list[dict]:
    """Entries without what depends on the speed of the machine."""

    def figures_of(one: EvaluationEntry) -> dict:
        return {key: value for key, value in one.to_dict().items() if key not in TIMES}

    return [figures_of(one) for one in read_results(results)]


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)


def test_trains_evaluates_gathers_and_skips_what_is_done(tmp_path, capsys, request):
    pytest.importorskip("bullet_safety_gym")
    arguments = command(tmp_path / "out", tiny_config(tmp_path), "--algorithms", "bc", "--seeds", "0")
    arguments += ["--updates", "20"]
    assert main(arguments) == 0
    assert "1 of 1 cells are done (0 had ended before)" in capsys.readouterr().out
    results = tmp_path / "out" / "results.json"
    (found,) = read_results(results)
    assert (found.algorithm, found.extraction, found.cost_limit) == ("bc", "policy", 10.0)
    assert (found.updates, found.episodes, found.eval_seeds) == (20, 2, (1000,))
    assert (tmp_path / "out" / "report" / "tables.md").is_file()
    # The results file is gathered anew from the cells, nothing is trained or played again.
    before = results.read_bytes()
    results.unlink()
    assert main(arguments) == 0
    assert "1 of 1 cells are done (1 had ended before)" in capsys.readouterr().out
    assert results.read_bytes() == before
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out == "ballcircle, bc, seed 0: 20 updates, done\n"
    request.getfixturevalue("in_this_process")
    # More episodes of the same policy are another evaluation, not another training.
    policy = tmp_path / "out" / "runs" / "ballcircle" / "bc" / "seed0" / "policy"
    trained = policy.stat().st_mtime_ns
    arguments[arguments.index("--episodes") + 1] = "3"
    assert main(arguments) == 0
    assert [one.episodes for one in read_results(results)] == [3]
    assert policy.stat().st_mtime_ns == trained
    # Fewer episodes are there already, and do not replace more.
    arguments[arguments.index("--episodes") + 1] = "1"
    assert main(arguments) == 0
    assert [one.episodes for one in read_results(results)] == [3]
    # What a run would refuse is not listed as done.
    capsys.readouterr()
    arguments[arguments.index("--updates") + 1] = "30"
    assert main([*arguments, "--dry-run"]) == 2
    assert "was trained with other settings: updates was 20, is 30" in capsys.readouterr().err


def test_wrong_names_are_one_line(tmp_path, capsys):
    for words, message in (
        (["--suite", "tabel1"], "unknown suite 'tabel1'; did you mean table1?"),
        (
            ["--suite", "table1", "--algorithms", "bcsafe"],
            "unknown algorithm 'bcsafe'; did you mean bc-safe?",
        ),
        (["--suite", "table1", "--tasks", "balcircle"], "unknown task 'balcircle'. Did you mean ballcircle"),
        (["--suite", "table1", "--updates", "many"], "--updates: must be a whole number"),
        (["--suite", "table1", "--updates", "3", "4"], "'4': is given twice"),
        (["--suite", "table1", "--tasks", "carrun"], "carrun: its data is not in the package; name it"),
        (
            ["--suite", "table1", "--dataset", "nosuch"],
            "nosuch: no such file or folder (give",
        ),
        (
            ["--suite", "table1", "--dataset", "ballcircle=x.npz", "--dry-run", "--tasks", "ballcircle"],
            "x.npz: no",
        ),
        (["--report", str(tmp_path), "--tasks", "carrun", "--dry-run"], "leave --tasks, --dry-run out"),
        (["--report", str(tmp_path)], f"{tmp_path / 'results.json'} is missing"),
    ):
        assert main(["benchmark", *words, "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder_are_refused(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with (
        held(output, "benchmark"),
        pytest.raises(FolderInUseError, match=r"another benchmark \(process"),
    ):
        refused(tiny_cells(), output)


def test_a_broken_or_foreign_results_file_is_refused_and_left_alone(tmp_path):
    results = tmp_path / "results.json"
    write_results(results, [entry()])
    whole = results.read_text()
    for text, message in (
        (whole[:-30], "not complete JSON"),
        ('{"hello": 1}', "is not a results file"),
        (whole.replace('"format_version": 1', '"format_version": 99'), "reads up to 1"),
        (
            whole.replace('"entries"', '"diverged": [{"task": "x"}], "entries"'),
            "diverged run 0: missing fields",
        ),
    ):
        results.write_text(text)
        with pytest.raises(ResultsFileError, match=message):
            refused(tiny_cells(), tmp_path)
        assert results.read_text() == text
        assert not (tmp_path / "runs").exists()


def test_cells_of_other_settings_and_broken_files_are_refused(tmp_path):
    (cell,) = cells = tiny_cells()
    folder = tmp_path / cell.folder
    write_cell(folder, cell, resolve_configs(tiny_cells(updates=30))[tiny_cells(updates=30)[0]])
    with pytest.raises(CellError, match=r"other settings: updates was 30, is 20\. Choose another --output"):
        refused(cells, tmp_path)
    (folder / "cell.json").write_text('{"cell": {"task"')
    with pytest.raises(CellError, match="is not complete JSON"):
        refused(cells, tmp_path)
    (folder / "cell.json").write_text('{"some": "file"}')
    with pytest.raises(CellError, match="is not a cell of a benchmark"):
        refused(cells, tmp_path)
    write_cell(folder, cell, resolve_configs(cells)[cell])
    (folder / "outcome.json").write_text('{"format_version": 2}')
    with pytest.raises(CellError, match="is not a benchmark's outcome"):
        refused(cells, tmp_path)
    # What was trained by settings that nobody knows any more must not pass for what is asked for.
    (folder / "cell.json").unlink()
    (folder / "policy").mkdir()
    with pytest.raises(CellError, match=r"holds a training \(policy\), but no cell\.json"):
        refused(cells, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_a_cell_that_ran_while_its_starter_was_killed_is_gathered(tmp_path):
    (cell,) = cells = tiny_cells()
    write_cell(tmp_path / cell.folder, cell, resolve_configs(cells)[cell])
    found = entry(algorithm="bc", extraction="policy")
    write_outcome(tmp_path / cell.folder, Outcome("done", entries=(found,)))
    refused(cells, tmp_path)
    assert read_results(tmp_path / "results.json") == [found]


def test_results_of_an_earlier_run_of_a_cell_go(tmp_path):
    (cell,) = cells = tiny_cells("spi")
    task, other = get_task("ballcircle").name, entry(algorithm="bc", extraction="policy")
    old = [entry(reward=0.9), entry(algorithm="spi@50", updates=50), entry(seed=1), other]
    write_results(tmp_path / "results.json", old, [DivergedRun(task, "spi", None, 2, "nan")])
    write_cell(tmp_path / cell.folder, cell, resolve_configs(cells)[cell])
    write_outcome(tmp_path / cell.folder, Outcome("diverged", "step 7: loss is nan"))
    refused(cells, tmp_path)
    assert read_results(tmp_path / "results.json") == [other, entry(seed=1)]
    assert [run.train_seed for run in read_results(tmp_path / "results.json").diverged] == [0, 2]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_results(tmp_path):
    pytest.importorskip("bullet_safety_gym")
    config = tiny_config(tmp_path)
    more = ["--algorithms", "spi-paper", "bc-safe", "--seeds", "0", "--updates", "400"]
    assert start(command(tmp_path / "whole", config, *more)).wait() == 0
    output = tmp_path / "killed"
    paper, safe = (output / "runs/ballcircle" / name / "seed0" for name in ("spi-paper", "bc-safe-limit10"))
    for condition in (
        lambda: steps_done(paper) >= 100,
        lambda: steps_done(paper) >= 300,
        lambda: (paper / "policy").exists(),
        lambda: steps_done(safe) >= 100,
        lambda: (safe / "policy").exists(),
    ):
        process = start(command(output, config, *more))
        wait_for(condition, process)
        children = psutil.Process(process.pid).children()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        # Nobody is left to train on: the children notice and save a checkpoint.
        assert psutil.wait_procs(children, timeout=60)[1] == []
    assert start(command(output, config, *more)).wait() == 0
    assert figures(output / "results.json") == figures(tmp_path / "whole" / "results.json")
    resumed = (paper / "log.txt").read_text()
    assert "Resumed from" in resumed


@pytest.mark.slow
def test_a_worker_that_dies_is_tried_again_once_then_reported(tmp_path):
    pytest.importorskip("bullet_safety_gym")
    config, output = tiny_config(tmp_path), tmp_path / "out"
    more = ["--algorithms", "spi-paper", "--seeds", "0", "--updates", "2000"]
    folder = output / "runs/ballcircle/spi-paper/seed0"
    process = start(command(output, config, *more))

    def kill_worker_after(step: int) -> None:
        wait_for(lambda: steps_done(folder) >= step, process)
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()

    kill_worker_after(50)
    first = steps_done(folder)
    kill_worker_after(first + 50)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was ended by SIGKILL" in errors
    assert "(attempt 1 of 2)" in errors
    assert "failed: ballcircle, spi-paper, seed 0: " in errors
    assert not (output / "results.json").exists()
    # Later it goes on from its checkpoint, and this time one death is survived.
    process = start(command(output, config, *more))
    kill_worker_after(steps_done(folder) + 50)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "(attempt 1 of 2)" in errors
    assert [one.updates for one in read_results(output / "results.json")] == [2000]
    log = (folder / "log.txt").read_text()
    assert log.count("Resumed from") == 3  # the second process, and both of the second command


@pytest.mark.slow
def test_ctrl_c_as_a_terminal_sends_it_lets_the_cell_save_one_checkpoint(tmp_path):
    pytest.importorskip("bullet_safety_gym")
    config = tiny_config(tmp_path, checkpoint_every=100_000)
    words = command(tmp_path / "out", config, "--algorithms", "bc", "--seeds", "0", "--updates", "100000")
    process = start(words)
    cell = tmp_path / "out" / "runs" / "ballcircle" / "bc" / "seed0"
    wait_for(lambda: steps_done(cell) >= 100, process)
    workers = psutil.Process(process.pid).children()
    assert workers
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not any(worker.is_running() for worker in workers)
    assert len(list((cell / "checkpoints").glob("step-*"))) == 1


def test_points_of_a_learning_curve_are_played_again_for_more_episodes():
    (cell,) = make_cells(["sensitivity"], tasks=["ballcircle"], algorithms=[DRAWN], seeds=[0], episodes=2)
    end, point = (
        entry(algorithm=DRAWN, extraction="reward"),
        entry(algorithm=f"{DRAWN}@50", extraction="reward"),
    )
    point = replace(point, updates=50)
    assert Outcome("done", entries=(end, point)).covers(cell)
    assert not Outcome("done", entries=(end, replace(point, episodes=1))).covers(cell)
    assert not Outcome("done", entries=(replace(end, episodes=1), point)).covers(cell)


@pytest.mark.slow
def test_points_of_a_learning_curve_are_the_policies_of_shorter_trainings(tmp_path):
    pytest.importorskip("bullet_safety_gym")
    config = tiny_config(tmp_path, lr_schedule="constant")
    name = DRAWN

    def train(updates: int) -> list[EvaluationEntry]:
        output = tmp_path / str(updates)
        options = {"tasks": ["ballcircle"], "algorithms": [name], "seeds": [0], "episodes": 1}
        cells = make_cells(["sensitivity"], updates={"": updates}, **options)
        Benchmark(cells, output, config).run(LocalExecutor(), progress=False)
        return read_results(output / "results.json")

    # A tenth of 105 is 10: what is saved at 100 is not yet the end, and no point of its own either.
    curve = {one.algorithm: one for one in train(105)}
    assert sorted(one.updates for one in curve.values()) == [*range(10, 91, 10), 105]
    assert len({one.reward_mean for one in curve.values()}) > 5
    shorter = {one.algorithm: one for one in train(50)}[name]
    point = curve[f"{name}@50"]
    assert (point.reward_mean, point.cost_mean) == (shorter.reward_mean, shorter.cost_mean)


@pytest.mark.usefixtures("in_this_process")
def test_a_diverged_seed_is_recorded_reported_and_not_tried_again(tmp_path, capsys):
    pytest.importorskip("bullet_safety_gym")
    settings = {"learning_rate": 1e30, "max_grad_norm": 0, "mixed_precision": "no"}
    config = tiny_config(tmp_path, **settings, cpq={"hidden_dims": [16, 16], "learning_rate": 1e30})
    output = tmp_path / "out"
    arguments = command(output, config, "--algorithms", "spi-paper", "cpq", "--seeds", "0")
    assert main([*arguments, "--updates", "20"]) == 1
    runs = {run.algorithm: run for run in read_results(output / "results.json").diverged}
    assert {(name, run.task, run.train_seed) for name, run in runs.items()} == {
        (name, "OfflineBallCircle-v0", 0) for name in ("spi-paper", "cpq")
    }
    assert runs["spi-paper"].message.endswith(
        "Try a lower learning_rate, a smaller max_grad_norm or mixed_precision=no."
    )
    assert runs["cpq"].message.endswith("Try a lower cpq.learning_rate.")
    said = capsys.readouterr()
    for run in runs.values():
        assert run.message in said.out + said.err
    assert read_results(output / "results.json") == []
    for name in runs:
        (cell,) = tiny_cells(name)
        refused([cell], output, config)  # would fail if it ran
        outcome = read_outcome(output / cell.folder)
        assert outcome is not None
        assert outcome.status == "diverged"
