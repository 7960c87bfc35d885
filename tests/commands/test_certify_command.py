"""`spi certify` as a user meets it."""

import pytest
from command_line import fails

from spi_diffusers.cli import main
from spi_diffusers.evaluation.certificate import Certificate


def test_certify_plays_prints_a_table_and_writes_it(capsys, run_folder):
    pytest.importorskip("bullet_safety_gym")
    words = ["certify", str(run_folder), "--cost-limit", "10", "--episodes", "2", "--risk", "0.2", "--quiet"]
    assert main([*words, "--confidence", "0.9", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    path = run_folder / "policy" / "certificate.json"
    assert "Certificate of OfflineBallCircle-v0, in the simulator, at a risk of 0.2" in text
    assert "\nIn plain words: told a limit of 10, " in text
    assert text.endswith(f"Written: {path}\n")
    found = Certificate.read(path)
    assert (found.risk, found.confidence, found.seed, found.limits[0].episodes) == (0.2, 0.9, 3, 2)


def test_certify_takes_logged_episodes(capsys, run_folder, tmp_path):
    (tmp_path / "log.csv").write_text("episode,cost\n" + "".join(f"{k},{k}\n" for k in range(60)))
    words = ["certify", str(run_folder), "--cost-limit", "59", "--episodes-file", str(tmp_path / "log.csv")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "From the episodes in log.csv" in text
    assert "exceeds it in at most 4.9% of all its episodes" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--risk", "1.5"], "risk must be a finite number in [0, 1), got 1.5"),
        (["--confidence", "0"], "confidence must be a number in (0, 1), got 0"),
        (["--cost-limit", "-1"], "cost_limits must be"),
        (["--episodes", "0"], "episodes must be a whole number of at least 1 or null, got 0"),
        (["--episodes-file", "typo.csv"], "typo.csv"),
        (["--episodes-file", "log.csv", "--tune"], "tune (--tune) does not go with a file"),
        (["--tune", "--episodes", "20"], "episodes must be at least 59 to tune"),
    ],
)
def test_what_cannot_be_used_is_one_line(capsys, run_folder, words, message):
    assert message in fails(capsys, "certify", str(run_folder), *words)
