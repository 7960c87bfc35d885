from pathlib import Path

import numpy as np
import pytest
from policy_factory import make_policy, make_run

from spi_diffusers.cli import main
from spi_diffusers.evaluation.rollouts import PipelinePolicy, rollout
from spi_diffusers.files import PolicyError
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.spaces.episode import PolicyOnShow, limit_range, play, policies_on_show


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "ball")


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def episode(run, steps, tmp_path_factory):
    pytest.importorskip("bullet_safety_gym")
    video = tmp_path_factory.mktemp("video") / "x.mp4"
    tell = lambda done, of: steps.append((done, of))  # noqa: E731
    return play(run / "policy", video, cost_limit=30, risk=0.2, seed=3, on_step=tell)


def test_it_is_the_episode_of_a_rollout(run, episode):
    policy = PipelinePolicy(SPIPolicyPipeline.from_pretrained(run / "policy"), risk=0.2)
    played = rollout(policy, "ballcircle", episodes=1, seed=3, cost_limit=30, progress=False)
    assert episode.replay.return_ == pytest.approx(played.returns[0], abs=1e-6)
    assert episode.replay.cost_return == played.cost_returns[0]
    assert (episode.risk, episode.seed, len(episode.decisions)) == (0.2, 3, 200)


def test_every_decision_is_what_the_policy_saw(run, episode):
    first, last = episode.decisions[0], episode.decisions[-1]
    assert (first.budget, first.steps_left, last.steps_left) == (30.0, 200, 1)
    assert first.weights == pytest.approx(np.linspace(0, 1, 11))
    assert (first.bounds >= first.costs).all()
    for decision in episode.decisions:
        fits = decision.returns[decision.feasible]
        best = fits.max() if decision.feasible.any() else decision.returns[-1]
        assert decision.returns[decision.chosen] == best
    assert episode.cost_before(0) == 0
    assert episode.cost_before(199) == 30 - last.budget
    assert episode.cost_before(200) == episode.replay.cost_return


def test_pictures_are_those_of_the_video(episode, steps):
    assert [(step, 200) for step in episode.pictures] == steps
    assert (steps[0], steps[-1]) == ((0, 200), (200, 200))
    assert episode.picture(0).shape == (464, 480, 3)
    between = list(episode.pictures)[1] + 1
    assert np.array_equal(episode.picture(between), episode.picture(between - 1))


def test_it_says_how_it_went(episode):
    tight = sum(not decision.feasible.any() for decision in episode.decisions)
    cost = episode.replay.cost_return
    assert cost > 30, "random weights keep no limit"
    assert f"cost {cost:g} of 30: limit exceeded. At {tight} of 200 steps nothing fitted" in str(episode)


def test_an_argument_out_of_its_range_writes_nothing(run, tmp_path):
    with pytest.raises(ValueError, match="a cost limit must be"):
        play(run, tmp_path / "x.mp4", cost_limit=-1, risk=0.1)
    assert not list(tmp_path.iterdir())


def test_a_policy_is_shown_with_its_results_by_limit(run):
    shown = PolicyOnShow.open(run)
    assert (shown.folder, shown.task.short_name) == (run / "policy", "ballcircle")
    assert [entry.extraction for entry in shown.entries] == ["safe"] * 3
    assert shown.limits == (10, 20, 40)


def test_without_results_the_limits_are_the_tasks_and_own_data_has_none(tmp_path):
    shown = PolicyOnShow.open(make_run(tmp_path / "run", entries=()))
    assert (shown.entries, shown.limits) == ((), shown.task.cost_limits)
    make_policy(task=None).save_pretrained(tmp_path / "own")
    own = PolicyOnShow.open(tmp_path / "own")
    assert (own.task, own.limits) == (None, ())
    with pytest.raises(ValueError, match="no simulator to play it in"):
        play(own.folder, tmp_path / "x.mp4", cost_limit=1, risk=0.1)


def test_a_baseline_is_refused(small_file, tmp_path):
    words = ["--task", "ballcircle", "--dataset", str(small_file), "--output-dir", str(tmp_path / "run")]
    assert main(["train", *words, "--algorithm", "bc", "--updates", "2", "--device", "cpu", "--quiet"]) == 0
    with pytest.raises(PolicyError, match="is a baseline's policy"):
        PolicyOnShow.open(tmp_path / "run")


def test_the_menu_names_policies_by_task_and_by_place_where_that_is_not_enough(run, tmp_path):
    assert policies_on_show([run]) == {"ballcircle": str(run / "policy")}
    assert policies_on_show(["org/spi", run / "policy"]) == {
        name: name for name in ("org/spi", str(run / "policy"))
    }
    make_run(tmp_path / "again", seed=1)
    both = policies_on_show([run, tmp_path])
    assert set(both.values()) == {str(run / "policy"), str(tmp_path / "again" / "policy")}
    assert all(title == f"ballcircle: {place}" for title, place in both.items())
    with pytest.raises(FileNotFoundError, match="holds no trained policy"):
        policies_on_show([Path(__file__).parent])


@pytest.mark.parametrize(
    ("limits", "highest", "width"),
    [((10, 40), 80, 1), ((0.003,), 0.006, 1e-4), ((5000,), 10_000, 100), ((0,), 1, 0.01), ((), 1, 0.01)],
)
def test_limits_to_choose_are_in_the_datas_unit(limits, highest, width):
    assert limit_range(limits) == pytest.approx((highest, width))
