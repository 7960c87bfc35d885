"""`spi data collect` as a user meets it."""

import argparse
import shlex
import subprocess
import sys

import command_line
import pytest

from spi_diffusers.cli import main
from spi_diffusers.collection.config import CollectionSpec, load_collect_config
from spi_diffusers.collection.description import collect_command
from spi_diffusers.commands import data_collect
from spi_diffusers.data.loading import load_transitions

HEAVY = ("torch", "numpy", "gymnasium", "pybullet", "safetensors")


def fails(capsys, *arguments):
    line = command_line.fails(capsys, "data", "collect", *arguments)
    assert line.startswith("spi data collect: error: ")
    return line


def test_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys; from spi_diffusers.cli import main\n"
        "try: main(['data', 'collect', '--help'])\n"
        f"finally: print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == ""
    assert "examples:" in result.stdout
    assert "goes on when the same command is given again" in " ".join(result.stdout.split())
    for option in ("--steps", "--runs", "--scripted-episodes", "--workers", "--max-bytes", "--overwrite"):
        assert f"  {option} " in result.stdout


@pytest.fixture
def tiny_presets(monkeypatch):
    pytest.importorskip("bullet_safety_gym")
    tiny = {"num_envs": 3, "segment_steps": 50, "epochs": 2, "minibatch_size": 40, "hidden_dims": (8,)}
    monkeypatch.setattr(
        "spi_diffusers.collection.config.load_collect_config",
        lambda task, **changes: load_collect_config(task, num_probes=1, **tiny, **changes),
    )


@pytest.mark.usefixtures("tiny_presets")
def test_a_small_collection_with_its_progress(tmp_path, capsys):
    arguments = ["--task", "ballcircle", "--output", str(tmp_path / "set"), "--steps", "1"]
    assert main(["data", "collect", *arguments]) == 0  # one round: 3 episodes
    captured = capsys.readouterr()
    dataset = load_transitions(tmp_path / "set", "ballcircle")
    assert 0 < dataset.num_episodes <= 3
    assert (
        f"OfflineBallCircle-v0: {dataset.num_episodes} episodes, {len(dataset)} transitions" in captured.out
    )
    assert f"Next: spi data describe {tmp_path / 'set'} --task OfflineBallCircle-v0" in captured.out
    assert "ballcircle run-0: 100%" in captured.err
    assert f"{dataset.num_episodes} kept, best within 10:" in captured.err
    line = fails(capsys, *arguments, "--seed", "1")
    assert "exists already; choose another folder, or replace it" in line
    # The first of two tasks could start; the second cannot, so neither does.
    line = fails(capsys, *arguments, "--task", "carcircle", "ballcircle", "--seed", "1")
    assert "OfflineBallCircle-v0: exists already" in line
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["OfflineBallCircle-v0", "README.md"]


@pytest.mark.usefixtures("tiny_presets")
def test_the_same_command_goes_on_after_the_tasks_that_it_has_finished(tmp_path, capsys):
    folder, config = tmp_path / "set", "OfflineBallCircle-v0"
    arguments = [
        "data",
        "collect",
        "--output",
        str(folder),
        "--steps",
        "1",
        "--quiet",
        "--task",
        "ballcircle",
    ]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / config).iterdir()}
    capsys.readouterr()
    assert main([*arguments, "carrun", "--workers", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"{config}: there already, collected with these settings\nOnly 1 of 3 workers can be used, one for "
        "each run: a run is sequential, and more runs (--runs) are other data\nOfflineCarRun-v0: "
    )
    assert {path: path.stat().st_mtime_ns for path in (folder / config).iterdir()} == before
    assert load_transitions(folder, "carrun").num_episodes > 0
    assert main([*arguments, "carrun"]) == 0
    out = capsys.readouterr().out
    assert out.count("there already") == 2
    assert "worker" not in out
    assert main([*arguments, "--overwrite"]) == 0
    assert "there already" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (folder / config).iterdir()} != before


def test_errors_are_one_line_and_come_before_any_work(tmp_path, capsys):
    there = ("--output", str(tmp_path / "set"))
    ball = ("--task", "ballcircle", *there)
    (tmp_path / "file").touch()
    assert "required: --task, --output" in fails(capsys)
    assert "unknown task 'balcircle'" in fails(capsys, "--task", "ballcircle", "balcircle", *there)
    assert "--task names ballcircle twice" in fails(
        capsys, "--task", "ballcircle", "OfflineBallCircle-v0", *there
    )
    assert "unknown argument --step; did you mean --steps?" in fails(capsys, *ball, "--step", "3")
    assert "steps must be a whole number of at least 1, got 0" in fails(capsys, *ball, "--steps", "0")
    assert "runs must be a whole number of at least 1, got 0" in fails(capsys, *ball, "--runs", "0")
    assert "workers must be at least 1, got 0" in fails(capsys, *ball, "--workers", "0")
    assert "max_bytes must be a whole number of at least 1, got -5" in fails(
        capsys, *ball, "--max-bytes", "-5"
    )
    assert "seed must be a whole number of at least 0, got -1" in fails(capsys, *ball, "--seed", "-1")
    assert "scripted_episodes must be a whole number of at least 0, got -1" in fails(
        capsys, *ball, "--scripted-episodes", "-1"
    )
    assert "has an empty name" in fails(capsys, "--task", "ballcircle", "--output", "")
    assert "file: is a file; name a folder" in fails(
        capsys, "--task", "ballcircle", "--output", str(tmp_path / "file")
    )
    assert "scripted_episodes must be 0 for dronecircle" in fails(
        capsys, "--task", "carcircle", "dronecircle", *there, "--scripted-episodes", "20"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_missing_simulator_is_named_before_any_task_starts(tmp_path, capsys):
    line = fails(capsys, "--task", "ballcircle", "easysparse", "--output", str(tmp_path / "set"))
    assert "OfflineMetadrive-easysparse-v0" in line
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("ballcircle", {}),
        ("ballcircle", {"steps": 7, "runs": 3}),
        ("carcircle", {}),
        ("carcircle", {"scripted_episodes": 0}),
        ("hoppervelocity", {"steps": 5_000_000}),
    ],
)
def test_the_command_of_the_card_gives_the_same_settings(tmp_path, task, settings):
    config = load_collect_config(task, **settings)
    command = collect_command(
        CollectionSpec(task, tmp_path / "my data", config, seed=3, max_bytes=10**6, full_precision=True)
    )
    words = shlex.split(command)
    assert words[:3] == ["spi", "data", "collect"]
    parser = argparse.ArgumentParser()
    data_collect.add_arguments(parser)
    args = parser.parse_args(words[3:])
    assert (args.task, args.output, args.seed, args.max_bytes) == ([task], "my data", 3, 10**6)
    assert args.full_precision
    again = load_collect_config(
        task, steps=args.steps, runs=args.runs, scripted_episodes=args.scripted_episodes
    )
    assert again == config
