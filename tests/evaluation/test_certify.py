"""`certify`: in the simulator, from files, and with a margin that is tuned."""

import json
import shutil

import numpy as np
import pytest
from evaluation_factory import BALL_CIRCLE
from policy_factory import edit_json, make_policy, make_run

import spi_diffusers
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.evaluation.bounds import share_bound
from spi_diffusers.evaluation.certificate import own_certificate
from spi_diffusers.evaluation.certify import MARGINS, certify
from spi_diffusers.evaluation.rollouts import PipelinePolicy, rollout
from spi_diffusers.files import PolicyError
from spi_diffusers.locks import FolderInUseError, held
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", entries=())


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_log(path, rows):
    path.write_text("limit,episode,cost\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    return path


# ---- in the simulator


def test_it_plays_the_certification_seeds_in_one_batch_per_limit(run):
    pytest.importorskip("bullet_safety_gym")
    before = content(run / "policy")
    found = certify(run, cost_limits=[30, 10], episodes=2, risk=0.2, seed=5, progress=False)
    policy = PipelinePolicy(SPIPolicyPipeline.from_pretrained(run), "safe", risk=0.2)
    played = rollout(
        policy, BALL_CIRCLE, episodes=2, seed=5, cost_limit=30.0, purpose="certification", progress=False
    )
    row = found.limits[0]
    assert [one.cost_limit for one in found.limits] == [30.0, 10.0]
    assert (row.episodes, row.cost_mean) == (2, played.cost_returns.mean())
    assert row.reward_mean == played.returns.mean()
    assert row.over_bound == share_bound(row.over, 2, 0.95)
    assert (found.task, found.source, found.seed, found.risk) == (BALL_CIRCLE.name, "simulator", 5, 0.2)
    assert (found.algorithm, found.train_seed, found.tuned_on) == ("spi", 0, None)
    assert found.highest_cost == 200.0
    assert "pybullet" in found.versions
    assert own_certificate(run) == found
    after = content(run / "policy")
    del after[run / "policy" / "certificate.json"]
    assert after == before, "nothing else has changed"


def test_tuning_takes_the_least_careful_margin_that_is_shown_to_hold(run, monkeypatch):
    """No episode can cost more than 200."""
    pytest.importorskip("bullet_safety_gym")
    monkeypatch.setattr("spi_diffusers.evaluation.certify.MARGINS", (2.0, 0.5))
    found = certify(run, cost_limits=[200], episodes=2, risk=0.9, tune=True, progress=False)
    assert (found.cost_margin, found.tuned_on, found.limits[0].over) == (0.5, 2, 0)
    policy = SPIPolicyPipeline.from_pretrained(run)
    assert policy.config.cost_margin == 0.5
    assert policy.is_as_trained, "its weights are"
    assert own_certificate(run) == found


def test_where_no_margin_holds_nothing_changes(run, monkeypatch):
    pytest.importorskip("bullet_safety_gym")
    before = content(run / "policy")
    message = r"not even a cost_margin of 8 is shown .* at a risk of 0\.9: 2 of 2 episodes exceed"
    with pytest.raises(PolicyError, match=message):
        certify(run, cost_limits=[200, 0], episodes=2, risk=0.9, tune=True, progress=False)
    assert content(run / "policy") == before


def test_margins_run_from_the_most_to_the_least_careful():
    assert list(MARGINS) == sorted(MARGINS, reverse=True)
    assert 1.0 in MARGINS


# ---- from a file


def test_from_a_file_no_simulator_is_asked(run, tmp_path):
    make_policy(task=None).save_pretrained(run / "policy")
    log = write_log(tmp_path / "log.csv", [(20, k, k % 25) for k in range(100)] + [(5, 0, 1)])
    found = certify(run / "policy", episodes_file=log, cost_limits=[20])
    (row,) = found.limits
    assert (row.episodes, row.over, row.cost_worst) == (100, 16, 24.0)
    assert row.over_bound == share_bound(16, 100, 0.95)
    assert row.cost_mean == np.mean([k % 25 for k in range(100)])
    assert row.reward_mean is None
    assert (found.task, found.source, found.seed, found.versions) == (None, "log.csv", None, {})
    both = certify(run / "policy", episodes_file=log)
    assert [one.cost_limit for one in both.limits] == [5.0, 20.0]
    assert own_certificate(run) == both


def test_a_file_without_limits_needs_one(run, tmp_path):
    (tmp_path / "log.csv").write_text("episode,cost\n0,3\n")
    assert certify(run, episodes_file=tmp_path / "log.csv", cost_limits=[7]).limits[0].cost_limit == 7.0
    for limits in (None, [7, 8]):
        with pytest.raises(ValueError, match=r"log\.csv: has no column 'limit', so .* name that one"):
            certify(run, episodes_file=tmp_path / "log.csv", cost_limits=limits)


def test_a_limit_that_is_not_in_the_file(run, tmp_path):
    log = write_log(tmp_path / "log.csv", [(20, 0, 1), (10, 0, 1)])
    with pytest.raises(ValueError, match="holds no episode with a limit of 30, only of 20, 10"):
        certify(run, episodes_file=log, cost_limits=[20, 30])


# ---- what cannot be used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes must be a whole number of at least 1 or null, got 0"),
        ({"confidence": 1.0}, r"confidence must be a number in \(0, 1\), got 1.0"),
        ({"confidence": 0}, r"confidence must be a number in \(0, 1\), got 0"),
        ({"confidence": float("nan")}, "confidence must be a finite number"),
        ({"risk": 0}, "risk must lie above 0"),
        ({"risk": 1.5}, r"risk must be a finite number in \[0, 1\)"),
        ({"cost_limits": [10, -1]}, "cost_limits must be .*each a number of at least 0"),
        ({"cost_limits": [10, 10]}, "cost_limits holds the same value twice"),
        ({"cost_limits": []}, "cost_limits must be .*at least one item"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"episodes_file": "log.csv", "tune": True}, r"tune \(--tune\) does not go with a file of episodes"),
        ({"episodes_file": "log.csv", "episodes": 9}, r"episodes \(--episodes\) does not go with a file"),
        ({"tune": True, "episodes": 58}, "episodes must be at least 59 to tune at a risk of 0.05, got 58"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        certify("no/policy", **options)


def test_there_must_be_a_policy_and_a_file(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no/policy: no such folder"):
        certify("no/policy")
    with pytest.raises(FileNotFoundError, match=r"log\.csv"):
        certify(run, episodes_file=tmp_path / "log.csv")


def test_a_policy_without_a_simulator_is_told_of_files(run):
    make_policy(task=None).save_pretrained(run / "policy")
    with pytest.raises(PolicyError, match=r"no simulator to play it in: log its episodes .*--episodes-file"):
        certify(run)


def test_a_task_that_cannot_be_simulated_here(run):
    task = next(name for name, known in TASKS.items() if known.simulator == "metadrive")
    make_policy(task=task).save_pretrained(run / "policy")
    with pytest.raises(ImportError, match="cannot be simulated here"):
        certify(run, episodes=1, progress=False)


def test_a_policy_that_takes_no_limit_is_refused(run):
    policy = make_policy()
    policy.register_modules(evaluation_critic=None)
    policy.save_pretrained(run / "policy")
    with pytest.raises(PolicyError, match="without an evaluation critic takes no limit at run time"):
        certify(run)
    assert not hasattr(BaselinePolicyPipeline, "evaluation_critic")


def test_weights_that_nothing_tells_from_others_are_refused(run):
    index = run / "policy" / "model_index.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "_sha256"}))
    with pytest.raises(PolicyError, match="has no checksums, so nothing would tell which weights"):
        certify(run)


def test_one_works_in_a_folder_at_a_time(run, tmp_path):
    log = write_log(tmp_path / "log.csv", [(20, 0, 1)])
    with (
        held(run / "policy", "certification"),
        pytest.raises(FolderInUseError, match="another certif"),
    ):
        certify(run, episodes_file=log)


def test_the_margin_that_the_folder_has_is_certified(run, tmp_path):
    edit_json(run / "policy" / "model_index.json", cost_margin=2.0)
    log = write_log(tmp_path / "log.csv", [(20, 0, 1)])
    assert certify(run, episodes_file=log).cost_margin == 2.0


def test_it_is_public():
    assert spi_diffusers.certify is certify
