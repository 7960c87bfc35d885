"""`spi distill` as a user meets it."""

from command_line import fails

from spi_diffusers.cli import main
from spi_diffusers.runtime import ExportedPolicy


def test_distill_says_how_well_it_was_learned_and_the_student_acts(capsys, run_folder, tmp_path):
    assert main(["distill", str(run_folder), "--updates", "3", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "Learned from 365 observations. In 19 others it chooses as the policy" in text
    assert text.endswith(f"Written: {run_folder / 'policy' / 'student'}\n")
    assert main(["export", str(run_folder), "--extraction", "fast", "--output-dir", str(tmp_path / "g")]) == 0
    policy = ExportedPolicy(tmp_path / "g")
    assert "by the student" in repr(policy)
    assert policy.contract["fast"] is True
    assert policy.contract["certificate"] is None


def test_what_cannot_be_used_is_one_line(capsys, run_folder, tmp_path):
    assert "no such folder" in fails(capsys, "distill", str(tmp_path / "typo"))
    assert "no such file or folder" in fails(capsys, "distill", str(run_folder), "--dataset", "typo.csv")
    assert "updates must be a whole number" in fails(capsys, "distill", str(run_folder), "--updates", "0")
