"""A certificate: what it says, that it survives a file, and that it is of one set of weights."""

import json
import shutil

import pytest
from policy_factory import make_certificate, make_run

from spi_diffusers.evaluation.certificate import (
    Certificate,
    LimitCertificate,
    own_certificate,
    weights_sha256,
)
from spi_diffusers.evaluation.certify import write_cost_margin
from spi_diffusers.files import CHECKSUMS
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import copy_folder
from spi_diffusers.pipelines import SPIPolicyPipeline, checks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_what_it_says(run):
    text = repr(make_certificate(run))
    assert "Certificate of OfflineBallCircle-v0, in the simulator, at a risk of 0.05" in text
    rows = [line.split() for line in text.splitlines() if " of 100" in line]
    assert rows == [
        ["10", "1", "of", "100", "4.7%", "6.0", "13.1", "8.0", "12.0", "600.0"],
        ["20", "0", "of", "100", "3.0%", "9.0", "?", "11.0", "18.0", "?"],
    ]
    assert (
        "In plain words: told a limit of 10, this policy exceeds it in at most 4.7% of all its episodes; of "
        "statements made in this way, at most 5% are wrong." in text
    )
    assert "Each bound holds with 95% confidence by itself; all 3 at once with at least 85%." in text
    assert "on seeds that only certification uses" in text
    assert "takes 200 for the largest cost of an episode, but one cost more" in text
    assert "In plain words" in make_certificate(run)._repr_html_()


def test_what_it_says_of_a_file_and_of_tuning(run):
    found = make_certificate(run, source="log [1].csv", tuned_on=80, cost_margin=1.414)
    text = repr(found)
    assert "from logged episodes" in text
    assert "From the episodes in log [1].csv: it holds if they are of this policy as it is" in text
    assert "cost_margin of 1.414 was chosen by 80 other episodes per limit and margin" in text


def test_what_it_says_of_a_policy_that_never_keeps_its_limit(run):
    never = LimitCertificate(10.0, 3, 3, 1.0, 60.0, 200.0, 70.0, 70.0, None)
    found = make_certificate(run, limits=[never])
    assert found.meaning == "In plain words: told a limit of 10, this policy has exceeded it every time."
    assert found.rows[0][:3] == ["10", "3 of 3", "100.0%"]


def test_small_costs_have_the_digits_of_their_limit(run):
    row = LimitCertificate(0.05, 3, 100, 0.076, 0.0123, 0.02341, 0.0401, 0.06, None)
    assert make_certificate(run, limits=[row]).rows[0][3:7] == ["0.0123", "0.0235", "0.0401", "0.0600"]


def test_it_is_read_as_it_was_saved(run):
    found = make_certificate(run)
    assert own_certificate(run) == own_certificate(run / "policy") == found
    assert found.at(20.0) is not None
    assert found.at(30.0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version must be 1, got 2; make it anew with `spi certify`"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"confidence": 1.0}, r"confidence must be a number in \(0, 1\)"),
        ({"limits": [{"cost_limit": 10}]}, "limits must be a list .*each an object with the right fields"),
        ({"limits": []}, "limits must be a list of at least one item"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_name(run, changes, message):
    make_certificate(run)
    path = run / "policy" / "certificate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=f"certificate.json: .*{message}"):
        own_certificate(run)


# ---- of which policy it is


def test_other_weights_have_no_certificate(run, made, tmp_path, caplog):
    make_certificate(run)
    other = make_run(tmp_path / "other", seed=1)
    shutil.copy(run / "policy" / "certificate.json", other / "policy")
    assert own_certificate(other) is None
    assert "certificate.json: is of other weights, and is left out; `spi certify` makes it" in caplog.text
    assert own_certificate(made) is None, "there is none"
    assert own_certificate(tmp_path) is None, "no policy"


def test_nor_has_another_margin(run, caplog):
    make_certificate(run)
    write_cost_margin(run / "policy", 2.0)
    assert own_certificate(run) is None
    assert "certificate.json: is of a cost_margin of 1, not 2.0, and is left out" in caplog.text
    assert SPIPolicyPipeline.from_pretrained(run / "policy").config.cost_margin == 2.0


def test_weights_are_the_same_wherever_they_lie(run, tmp_path):
    def sha256(folder):
        return weights_sha256(json.loads((folder / "model_index.json").read_text()))

    expected = sha256(run / "policy")
    copy_folder(read_policy_files(run), "org/x", tmp_path / "published")
    SPIPolicyPipeline.from_pretrained(run).save_pretrained(tmp_path / "saved")
    write_cost_margin(run / "policy", 3.0)
    assert {sha256(folder) for folder in (run / "policy", tmp_path / "published", tmp_path / "saved")} == {
        expected
    }
    assert weights_sha256({}) is None
    assert checks.CHECKSUMS == CHECKSUMS, "the shipped code has a copy of the name"


def test_a_published_certificate_is_read_again(run, tmp_path):
    found = make_certificate(run)
    copy = copy_folder(read_policy_files(run), "org/x", tmp_path / "copy")
    assert own_certificate(copy) == found
    assert Certificate.read(copy / "certificate.json") == found


def test_a_policy_that_is_saved_over_takes_its_certificate_along(run):
    make_certificate(run)
    (run / "policy" / "noise_model" / "old.bin").unlink()
    policy = SPIPolicyPipeline.from_pretrained(run)
    policy.save_pretrained(run / "policy")  # the training record of the test was never sealed
    make_certificate(run)
    policy.save_pretrained(run / "policy")
    assert not (run / "policy" / "certificate.json").exists()
