"""`spi assess`, and what `spi train` says at its end, as a user meets them."""

import json
import shutil

import pytest
from command_line import TINY, fails

from spi_diffusers.cli import main
from spi_diffusers.evaluation.assessment import Assessment


def test_assess_prints_a_table_and_writes_it_into_the_policys_folder(capsys, run_folder):
    assert main(["assess", str(run_folder), "--cost-limit", "10", "40", "--risk", "0.2"]) == 0
    text = capsys.readouterr().out
    path = run_folder / "policy" / "assessment.json"
    assert "What to expect, at a risk of 0.2" in text
    assert "Warning: no episode was held out, so 6 episodes are used that the policy was trained on" in text
    assert text.endswith(f"Written: {path}\n")
    found = Assessment.read(path)
    assert ([row.cost_limit for row in found.limits], found.risk) == ([10.0, 40.0], 0.2)
    assert found.is_of(json.loads((run_folder / "policy" / "train_info.json").read_text()))
    # Nothing of it belongs to the policy, which loads as before.
    assert main(["assess", str(run_folder / "policy"), "--episodes", "1", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(json.dumps(Assessment.read(path).to_dict()))
    assert said.err.endswith(f"Written: {path}\n")
    assert Assessment.read(path).episodes == 1


def test_other_data_can_be_named(capsys, run_folder):
    assert main(["assess", str(run_folder), "--dataset", "embedded", "--episodes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"]["id"], found["episodes"]) == ("embedded:OfflineBallCircle-v0", 2)
    assert [row["cost_limit"] for row in found["limits"]] == [10, 20, 40]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--risk", "1.5"], "risk must be a finite number in [0, 1), got 1.5"),
        (["--cost-limit", "-1"], "cost_limits must be"),
        (["--episodes", "0"], "episodes must be a whole number of at least 1 or null, got 0"),
        (["--dataset", "typo.csv"], "typo.csv: no such file or folder"),
        (["--revision", "v9"], "revision=v9 applies to Hub ids only"),
    ],
)
def test_what_cannot_be_used_is_one_line(capsys, run_folder, words, message):
    assert message in fails(capsys, "assess", str(run_folder), *words)


def test_a_baseline_is_refused(capsys, small_file, tmp_path):
    words = ["--task", "ballcircle", "--dataset", str(small_file), "--output-dir", str(tmp_path / "run")]
    assert main(["train", *words, "--algorithm", "bc", "--updates", "2", "--device", "cpu", "--quiet"]) == 0
    assert "What to expect" not in capsys.readouterr().out
    line = fails(capsys, "assess", str(tmp_path / "run"))
    assert "a BaselinePolicyPipeline without an evaluation critic cannot be assessed" in line


def test_training_ends_with_what_to_expect(capsys, tmp_path):
    words = ["train", "--task", "ballcircle", "--output-dir", str(tmp_path / "run"), *TINY]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "From 100 held-out episodes (20,000 steps) of embedded:OfflineBallCircle-v0" in text
    assert f"What to expect, from held-out episodes: spi assess {tmp_path / 'run' / 'policy'}" in text
    assert text.splitlines()[-1].startswith("Next: spi evaluate")
    assert not (tmp_path / "run" / "policy" / "assessment.json").exists(), "it is a quick one"
    shutil.rmtree(tmp_path / "run")
