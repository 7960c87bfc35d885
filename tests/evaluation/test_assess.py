"""What `assess` estimates from data, against numbers that are worked out by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from assess_factory import make_data, make_policy, trained_on

import spi_diffusers
from spi_diffusers.data.holdout import held_out_episodes
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.evaluation.assess import assess
from spi_diffusers.files import PolicyError
from spi_diffusers.pipelines import BaselinePolicyPipeline


def figures(estimate):
    return [round(value, 3) for value in (estimate.mean, estimate.low, estimate.high)]


def played(limit):
    """Ten steps of `make_policy`, each by the boldest weight whose h (1.35 - w) + 1.4 fits."""
    earned = spent = 0.0
    for left in range(10, 0, -1):
        fits = [w / 10 for w in range(11) if left * (1.35 - w / 10) + 1.4 <= limit - spent]
        weight = min(fits, default=1.0)
        earned, spent = earned + 1 - weight, spent + 1.35 - weight
    return earned, spent


def test_estimates_by_hand():
    """A weight w fits into a limit over 10 steps if 10 (1.49 - w) does. Its return is 10 (1 - w), its cost
    10 (1.35 - w). Each step leaves 0.7 - (1 - w) of reward and 1 - (1.35 - w) of cost, ten times."""
    found = assess(make_policy(), make_data(), cost_limits=[11.05, 15, 4])
    first, loose, tight = found.limits
    # w = 0.4 acts for nine steps: residuals of 0.1 and 0.05. The last step has enough left for w = 0.3.
    assert played(11.05) == pytest.approx((6.1, 9.6))
    assert figures(first.expected_return) == [6.1, 6.0 - 1.0, 6.1 + 1.0]
    assert figures(first.expected_cost) == [9.6, 9.5 - 0.5, 9.6 + 0.5]
    assert figures(loose.expected_return) == [10.0, 7.0, 13.0]  # w = 0: of -0.3
    assert figures(loose.expected_cost) == [13.5, 10.0, 17.0]  # of -0.35
    assert figures(tight.expected_return) == [0.0, -7.0, 7.0]  # w = 1, as none fits: of 0.7
    assert figures(tight.expected_cost) == [3.5, 0.0, 10.0]  # of 0.65; a cost is not negative
    assert [row.feasible for row in found.limits] == [1.0, 1.0, 0.0]
    assert found.smallest_limit == pytest.approx(4.9, abs=1e-4)
    assert (found.episodes, found.transitions, found.risk, found.held_out) == (20, 200, 0.05, False)


def test_after_an_end_nothing_is_expected():
    """Five steps earn 3.5 where the critic expects 10 of 0.5: off by 1.5; 2.5 of it along the record."""
    (row,) = assess(make_policy(), make_data(length=5, ends=True), cost_limits=[10]).limits
    assert figures(row.expected_return) == [5.0, 1.0, 6.5]
    (cut,) = assess(make_policy(), make_data(length=5), cost_limits=[10]).limits
    assert figures(cut.expected_return) == [5.0, 1.5, 6.0], "of what comes after a cut, nothing is known"


def test_steps_beyond_the_longest_episode_do_not_count():
    (row,) = assess(make_policy(), make_data(length=30), cost_limits=[10]).limits
    assert figures(row.expected_return) == [5.0, 3.0, 7.0]


def test_intervals_are_bootstrapped_over_episodes():
    """Residuals of 7 - 5 in half of the 20 episodes, and of 3 - 5 in the others: by chance 0 +- 0.74."""
    data = make_data(reward=np.tile([0.7, 0.3], 10))
    (row,) = assess(make_policy(), data, cost_limits=[10]).limits
    assert row.expected_return.mean == pytest.approx(5.0)
    spread = 1.96 * 2 / np.sqrt(20)  # whichever sign
    assert row.expected_return.low == pytest.approx(5 - spread, abs=0.15)
    assert row.expected_return.high == pytest.approx(5 + spread, abs=0.15)
    assert assess(make_policy(), data, cost_limits=[10]).limits == (row,), "the same seed"


def test_more_risk_lets_a_bolder_weight_act():
    """At a risk of 0.6, of which half counts, nothing is added to h (1.35 - w): w = 0.4 fits into 10.05, and
    w = 0.3 into what is left halfway."""
    (row,) = assess(make_policy(), make_data(), cost_limits=[10.05], risk=0.6).limits
    assert row.expected_return.mean == pytest.approx(5 * 0.6 + 5 * 0.7)


def test_actions_in_and_out_of_what_the_data_has():
    both, far = make_data(actions=(-1.0, 1.0)), make_data(actions=(-1.0,))
    for data, share in ((both, 0.0), (far, 1.0)):
        found = assess(make_policy(action=1.0), data, cost_limits=[10])
        assert found.limits[0].out_of_support == share
        assert any("100% at 10" in warning for warning in found.warnings) == (share == 1.0)
    (alone,) = assess(make_policy(), make_data(episodes=1), cost_limits=[10]).limits
    assert alone.out_of_support is None


# ---- which episodes


@pytest.mark.parametrize("streamed", [False, True])
def test_held_out_episodes_are_found_again(tmp_path, streamed):
    held_out = held_out_episodes(40, 3, 0.1).numpy()
    data = make_data(episodes=40, reward=np.where(held_out, 0.7, 9.0))
    write_parquet_dataset(data, tmp_path / "set", config_name="robot")
    policy = trained_on(make_policy(), data, tmp_path / "set")
    dataset = open_stream(tmp_path / "set", progress=False) if streamed else None
    found = assess(policy, dataset, cost_limits=[10])
    assert (found.episodes, found.held_out) == (4, True)
    assert figures(found.limits[0].expected_return) == [5.0, 3.0, 7.0], "of no episode that was trained on"
    assert found.policy == {"algorithm": "spi", "train_seed": 3, "updates": 10, "train_seconds": 1.5}
    assert found.dataset["sha256"] == data.sha256
    assert not any("held out" in warning for warning in found.warnings)


def test_other_data_is_used_whole():
    policy = trained_on(make_policy(), make_data(episodes=40))
    found = assess(policy, make_data(episodes=30, reward=0.5), cost_limits=[10])
    assert (found.episodes, found.held_out) == (30, False)
    assert not any("held out" in warning for warning in found.warnings)


def test_other_data_may_have_another_name_or_form(tmp_path):
    policy = trained_on(make_policy(), make_data(episodes=40), tmp_path / "gone", task="robot")
    other = make_data(episodes=30)
    write_parquet_dataset(other, tmp_path / "set", config_name="march")
    names = {name: getattr(other.transitions, name).numpy() for name in vars(other.transitions)}
    np.savez(tmp_path / "log.npz", **names)
    for place in (tmp_path / "set", tmp_path / "log.npz"):
        assert assess(policy, place, cost_limits=[10]).episodes == 30
    write_parquet_dataset(make_data(episodes=25), tmp_path / "set", config_name="robot")
    assert assess(policy, tmp_path / "set", cost_limits=[10]).episodes == 25


def test_without_held_out_episodes_those_of_the_training_are_used():
    data = make_data(episodes=15)
    found = assess(trained_on(make_policy(), data), data, cost_limits=[10])
    assert (found.episodes, found.held_out) == (15, False)
    assert (
        "no episode was held out, so 15 episodes are used that the policy was trained on" in found.warnings[0]
    )


def test_fewer_episodes_and_transitions_can_be_asked_for():
    data = make_data(episodes=40)
    assert assess(make_policy(), data, cost_limits=[10], episodes=7).episodes == 7
    assert assess(make_policy(), data, cost_limits=[10], max_transitions=35).episodes == 3
    assert assess(make_policy(), data, cost_limits=[10], max_transitions=1).episodes == 1


def test_default_limits_are_quartiles_of_the_data_rounded():
    found = assess(make_policy(), make_data(episodes=101, cost=np.linspace(0.0, 1.2345, 101)))
    assert [row.cost_limit for row in found.limits] == [3.1, 6.2, 9.3]


def test_a_policy_that_was_changed_is_told_from_the_trained_one():
    data = make_data(episodes=40)
    policy = trained_on(make_policy(), data)
    with torch.no_grad():
        policy.evaluation_critic.net[0].bias[0] += 1.0
    found = assess(policy, data, cost_limits=[10])
    assert found.policy is None
    assert found.held_out, "no change of it has seen them"


# ---- what cannot be used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_limits": [10, -1]}, "cost_limits must be .*each a number of at least 0"),
        ({"cost_limits": []}, "cost_limits must be .*at least one item"),
        ({"risk": 0}, "risk must lie above 0: no estimate"),
        ({"risk": 1.0}, r"risk must be a finite number in \[0, 1\)"),
        ({"episodes": 0}, "episodes must be a whole number of at least 1"),
        ({"max_transitions": 1.5}, "max_transitions must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        assess("no/policy", **options)


def test_data_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="memory: has observations of 2 numbers, but the policy's have 1"):
        assess(make_policy(), make_data(width=2))


def test_data_of_another_task_is_refused():
    data = dataclasses.replace(make_data(), task=get_task("carcircle"))
    with pytest.raises(
        ValueError, match=r"trained for OfflineBallCircle-v0, it cannot be .* OfflineCarCircle-v0"
    ):
        assess(make_policy(task="OfflineBallCircle-v0"), data)


def test_a_policy_without_an_evaluation_critic_is_refused():
    for policy in (make_policy(critic=False), BaselinePolicyPipeline.__new__(BaselinePolicyPipeline)):
        with pytest.raises(
            PolicyError, match="PolicyPipeline without an evaluation critic cannot be assessed"
        ):
            assess(policy, make_data())


def test_data_that_is_not_named_must_be_what_it_was_trained_on(tmp_path):
    with pytest.raises(PolicyError, match=r"no train_config.json and no train_info.json.*name the data"):
        assess(make_policy())
    write_parquet_dataset(make_data(cost=0.5), tmp_path / "set", config_name="robot")
    with pytest.raises(PolicyError, match="by its checksum, this is not what the policy was trained on"):
        assess(trained_on(make_policy(), make_data(), tmp_path / "set"))
    policy = trained_on(make_policy(), make_data(), holdout="half")
    with pytest.raises(
        PolicyError, match=r"train_config.json: holdout must be a number in \[0, 1\), got 'half'"
    ):
        assess(policy, make_data())


def test_it_is_public():
    assert spi_diffusers.assess is assess
