"""`spi evaluate` and `spi play` as a user meets them."""

import json
import re

import imageio.v2 as imageio
import numpy as np
import pytest
from command_line import TINY, fails

from spi_diffusers.cli import main
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.evaluation.plots import plot_limits
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.summary import behavior_rows
from spi_diffusers.evaluation.video import PICTURE_SIZE
from spi_diffusers.locks import held


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
    assert "data, mean of 6" in text
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


@pytest.fixture(scope="module")
def run_of_two_costs(small_dataset, tmp_path_factory):
    """A small training on BallCircle's cost and the energy of its actions."""
    folder, batch = tmp_path_factory.mktemp("two"), small_dataset.transitions
    costs = {"cost": batch.cost.numpy(), "energy": batch.action.square().sum(dim=1).numpy()}
    write_parquet_dataset(small_dataset.with_costs(costs), folder / "data")
    words = ["--task", "ballcircle", "--dataset", str(folder / "data"), "--output_dir", str(folder / "run")]
    assert main(["train", *words, *TINY]) == 0
    return folder / "run"


def test_play_with_two_costs_shows_the_one_that_has_used_most_of_its_limit(
    capsys, run_of_two_costs, tmp_path, monkeypatch
):
    """No action of energy 0 is learned from; an episode has cost 200 at most."""
    monkeypatch.chdir(tmp_path)
    assert main(["play", str(run_of_two_costs), "--cost-limit", "1000,0.5", "--quiet"]) == 0
    figures, written = capsys.readouterr().out.strip().splitlines()
    assert re.search(r"cost \d+ of 1000, energy [\d.]+ of 0\.5, limit exceeded$", figures)
    assert written == "Written: outputs/play/run-limit1000-0.5-seed0.mp4"
    with imageio.get_reader(written.removeprefix("Written: ")) as reader:
        *_, last = iter(reader)
    panel = np.asarray(last, dtype=int)[PICTURE_SIZE[0] :]
    red = (panel[50, 24:-24, 0] > 160) & (panel[50, 24:-24, 1] < 110)
    assert red.sum() > 300  # the energy is over its limit
    assert panel[40, 330].min() > 160  # which stands at 70% of the bar, however small it is
    wrong = ["play", str(run_of_two_costs), "--cost-limit", "20"]
    assert "the policy has the costs cost, energy: a cost limit needs 2 number(s)" in fails(capsys, *wrong)


def test_the_risk_is_an_option(capsys, run_folder, tmp_path):
    words = ["--cost-limit", "10", "--quiet", "--risk"]
    for command in ("evaluate", "play"):
        message = "risk must be a finite number in [0, 1), got 1.5"
        assert message in fails(capsys, command, str(run_folder), *words, "1.5")
    output = str(tmp_path / "out")
    only = ["--extraction", "safe", "--episodes", "1", "--no-video", "--no-plots", "--output", output]
    assert main(["evaluate", str(run_folder), *only, *words, "0.2"]) == 0
    assert "spi, safe, risk 0.2" in capsys.readouterr().out
    assert [entry.risk for entry in read_results(tmp_path / "out" / "results.json")] == [0.2]


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
        (["--output", str(tmp_path / "file")], "file: is a file; name a folder."),
        (["--output", str(tmp_path / "broken")], "results.json is not complete JSON"),
        (["--dataset", "typo.parquet", "--output", str(tmp_path / "new")], "typo.parquet"),
        (["--revision", "v9"], "revision=v9 applies to Hub ids only; this is a local folder"),
    ):
        # A million episodes would not end: it is refused before they begin.
        assert main(["evaluate", str(run_folder), "--episodes", "1000000", "--quiet", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    with held(tmp_path / "held", "evaluation"):
        words = ["--episodes", "1000000", "--quiet", "--output", str(tmp_path / "held")]
        assert "held: another evaluation (process" in fails(capsys, "evaluate", str(run_folder), *words)


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
    rows = behavior_rows(load_transitions(small_file, "ballcircle"), [10.0, 20.0])
    plot_limits(entries, expected, rows)
    assert (output / "limits.png").read_bytes() == expected.read_bytes()


def test_evaluate_refuses_what_is_no_policy(capsys, run_folder, tmp_path):
    assert "no such folder" in fails(capsys, "evaluate", str(tmp_path / "nowhere" / "policy"))
    assert "holds no policy" in fails(capsys, "evaluate", str(tmp_path))
    assert "trained for OfflineBallCircle-v0" in fails(
        capsys, "evaluate", str(run_folder), "--task", "carcircle"
    )
    assert "each a number of at least 0, got [-1.0]" in fails(
        capsys, "evaluate", str(run_folder), "--cost-limit", "-1"
    )
    assert "'bullet', 'dsrl'; got 'gymnasium'" in fails(
        capsys, "evaluate", str(run_folder), "--simulator", "gymnasium"
    )
    assert "pip install dsrl" in fails(capsys, "evaluate", str(run_folder), "--simulator", "dsrl")
    assert "extraction 'reward' ignores the cost" in fails(
        capsys, "evaluate", str(run_folder), "--extraction", "reward", "--no-feedback"
    )
    assert "got 'chess'" in fails(capsys, "evaluate", str(run_folder), "--simulator", "chess")


def test_results_of_a_chosen_simulator_are_kept_apart(capsys, run_folder):
    short = ["--cost-limit", "10", "--episodes", "1", "--extraction", "safe", "--no-plots", "--no-video"]
    assert main(["evaluate", str(run_folder), "--simulator", "bullet", *short]) == 0
    assert f"Written: {run_folder / 'evaluation-bullet' / 'results.json'}" in capsys.readouterr().out
