"""Every baseline on the circuit reaches what its theory says, by exact evaluation of its trained policy.

Three limits: 5, 30 and 80 per episode of 100 steps. No shortcut keeps the first, the better one keeps the
second, both keep the third, which is loose. Tolerances are those of `neighbours`: a quarter of the distance
to the next deterministic policy. What is off by more is nearer to another policy, or on its way there.
"""

import numpy as np
import pytest
import torch
from algorithm_testbed import Trained, train
from circuit import GAMMA, circuit_world
from constrained_mdp import (
    Neighbours,
    Values,
    constrained_optimum,
    deterministic_policies,
    evaluate,
    neighbours,
)

TIGHT, MIDDLE, LOOSE = 5.0, 30.0, 80.0

WORLD = circuit_world()
#: Started in the data's states, whose mean cost the multipliers look at.
JUDGED = WORLD.started_as_the_data()
PURE = [evaluate(JUDGED, policy) for policy in deterministic_policies(JUDGED)]

NETWORK = {"hidden_dims": [64, 64], "gamma": GAMMA, "target_update_rate": 0.05}
CONSTRAINED = {**NETWORK, "vae_hidden_dim": 64, "reward_scale": 1.0, "critic_pairs": 1}
# A pure integral, so that its mean error vanishes while it moves. It takes some 500 updates from one switch
# of the policy to the next; the critics follow within 1 / (0.05 (1 - gamma)) = 200.
LAGRANGIAN = {**CONSTRAINED, "proportional": 0.0, "integral": 2e-4, "derivative": 0.0}
# The best actions are at the border of the data. By default a VAE draws from its middle: it may miss actions
# by a good part of their spread, and its latents are clipped.
LAGRANGIAN |= {"kl_weight": 0.1, "latent_clip": 3.0}

#: Settings of each algorithm, by the name of its group in `TrainConfig`. A new one needs a line here, and its
#: name in the tests of what it promises.
SETTINGS = {
    "bc": ("bc", {"hidden_dims": [64, 64]}),
    "bc-safe": ("bc", {"hidden_dims": [64, 64]}),
    # The value counts far more than imitation: the optimum is the theory's where imitation does not count.
    "diffusion-ql": (
        "diffusion_ql",
        {**NETWORK, "q_weight": 30.0, "learning_rate": 1e-3, "activation": "silu"},
    ),
    # The constraint has a say in the choice of the candidate; otherwise it moves actions by 0.05 only.
    "bcq-lag": ("bcq_lag", {**LAGRANGIAN, "selection": "lagrangian"}),
    # A discrepancy that admits a policy which makes one of the data's moves surely.
    "bear-lag": ("bear_lag", {**LAGRANGIAN, "mmd_sigma": 20.0, "mmd_threshold": 0.5}),
    "cpq": ("cpq", {**CONSTRAINED, "actor_learning_rate": 3e-4}),
    # A divergence that hardly counts, and the cost that the data shows instead of a bound above it.
    "coptidice": (
        "coptidice",
        {
            "hidden_dims": [64, 64],
            "gamma": GAMMA,
            "reward_scale": 1.0,
            "learning_rate": 1e-3,
            "actor_learning_rate": 1e-3,
            "alpha": 0.01,
            "cost_ub_epsilon": 0.0,
        },
    ),
}


def trained(
    algorithm: str, cost_limit: float, updates: int, changes: dict | None = None, **options
) -> Trained:
    group, settings = SETTINGS[algorithm]
    named = {f"{group}.{name}": value for name, value in (settings | (changes or {})).items()}
    return train(WORLD, algorithm, named, updates=updates, cost_limit=cost_limit, **options)


def around(cost_limit: float) -> Neighbours:
    return neighbours(WORLD.threshold(cost_limit), PURE)


def play(made: Trained) -> Values:
    values = evaluate(JUDGED, WORLD.play(made.act))
    # Nothing beats the linear program: otherwise one of the two is wrong.
    assert values.reward <= constrained_optimum(JUDGED, values.cost + 1e-6).reward + 1e-4
    return values


def mean_of_last(made: Trained) -> tuple[float, float]:
    """Cost and reward, over the last twenty evaluations."""
    return tuple(np.mean([getattr(one, name) for one in made.history[-20:]]) for name in ("cost", "reward"))


def assert_kept_on_average(made: Trained, cost_limit: float) -> None:
    (cost, reward), limit = mean_of_last(made), around(cost_limit)
    assert cost <= WORLD.threshold(cost_limit) + limit.slack_cost
    assert reward >= limit.within.reward - limit.slack_reward


@pytest.mark.parametrize(
    ("algorithm", "cost_limit"), [("bc", TIGHT), ("bc-safe", MIDDLE), ("bc-safe", LOOSE)]
)
def test_cloning_makes_the_mean_action_of_the_episodes_it_may_imitate(algorithm, cost_limit):
    """Moves are in proportion to the action's size, so a mean action makes (nearly) the behaviour's moves.

    A mean over a batch's share of a state, about 10 actions with a deviation of 1/2, is 0.15 off; the last
    steps average over a few batches.
    """
    made = trained(algorithm, cost_limit, updates=600)
    episodes = WORLD.data.episodes.cost_return
    expected = len(episodes) if algorithm == "bc" else int((episodes <= cost_limit).sum())
    assert len(made.learned_from.episodes) == expected
    actions = made.act(torch.from_numpy(WORLD.observations), torch.Generator()).numpy()
    mean = WORLD.mean_actions(made.learned_from)
    assert actions == pytest.approx(mean, abs=0.15)
    values, imitated, slack = play(made), evaluate(JUDGED, WORLD.moves(mean)), around(MIDDLE)
    assert values.cost == pytest.approx(imitated.cost, abs=slack.slack_cost)
    assert values.reward == pytest.approx(imitated.reward, abs=slack.slack_reward)


def test_diffusion_ql_does_not_look_at_the_limit():
    weights = [
        torch.cat(
            [p.flatten() for p in trained("diffusion-ql", limit, 3).algorithm.modules()[name].parameters()]
        )
        for limit in (TIGHT, LOOSE)
        for name in ("noise_model", "critic")
    ]
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])


@pytest.mark.slow
def test_diffusion_ql_finds_the_unconstrained_optimum():
    values, optimum = play(trained("diffusion-ql", TIGHT, updates=1500)), around(LOOSE)
    assert values.reward >= optimum.within.reward - optimum.slack_reward


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["bcq-lag", "bear-lag", "cpq"])
def test_a_loose_limit_changes_nothing(algorithm):
    values, optimum = play(trained(algorithm, LOOSE, updates=1500)), around(LOOSE)
    assert optimum.beyond is None
    assert values.reward >= optimum.within.reward - optimum.slack_reward


@pytest.mark.slow
@pytest.mark.parametrize("cost_limit", [TIGHT, MIDDLE])
@pytest.mark.parametrize("algorithm", ["bcq-lag", "bear-lag"])
def test_a_multiplier_keeps_the_limit_on_average(algorithm, cost_limit):
    """The Lagrangian's best policy is deterministic: it switches, or stays where both are equal.

    So the mean over the last updates is what can be asked to keep the limit, and to earn no less than the
    best deterministic policy within it.
    """
    assert_kept_on_average(trained(algorithm, cost_limit, updates=3000, evaluate_every=50), cost_limit)


@pytest.mark.slow
@pytest.mark.parametrize("cost_limit", [TIGHT, MIDDLE])
def test_bcq_lags_default_does_not_keep_a_limit_that_binds(cost_limit):
    """It acts with the candidate of the highest Q^r, as BCQ does, which does not look at the cost. The
    perturbation does, but moves an action by 0.05 only: the policy is the unconstrained optimum."""
    made = trained("bcq-lag", cost_limit, 3000, {"selection": "reward"}, evaluate_every=50)
    (cost, reward), free = mean_of_last(made), around(LOOSE)
    assert cost > WORLD.threshold(MIDDLE) + around(MIDDLE).slack_cost
    assert reward >= free.within.reward - free.slack_reward


@pytest.mark.slow
@pytest.mark.parametrize("cost_limit", [TIGHT, MIDDLE, LOOSE])
def test_coptidice_imitates_its_way_to_the_middle_limit_or_near_it(cost_limit):
    """Its theory is about weighted data, and is compared with a linear program in `test_coptidice.py`.

    The policy acts with the middle of one Gaussian that imitates this data. Sizes of actions are spread
    evenly, so that is an action of about 0.5, which makes its move by chance only. Near the middle limit,
    between both extremes, that comes within the tolerance. It does not at the tight limit (cost 0.14 per
    step, allowed are 0.05 and a tolerance of 0.05), nor at the loose one (reward 0.28, the optimum less the
    tolerance is 0.31).
    """
    values, middle = play(trained("coptidice", cost_limit, updates=4000)), around(MIDDLE)
    if cost_limit < LOOSE:
        assert values.cost <= WORLD.threshold(MIDDLE) + middle.slack_cost
    if cost_limit > TIGHT:
        assert values.reward >= middle.within.reward - middle.slack_reward


def assert_within_in_every_state(values: Values, cost_limit: float) -> None:
    """CPQ's constraint, which does not average; both limits' deterministic policies keep it as well."""
    limit, threshold = around(cost_limit), WORLD.threshold(cost_limit)
    assert limit.within.state_cost.max() <= threshold
    assert values.state_cost.max() <= threshold + limit.slack_cost
    assert values.reward >= limit.within.reward - limit.slack_reward


#: CPQ's policy, where it must follow the critics: they take 200 updates, it takes thousands.
SLOW = {"actor_learning_rate": 3e-5}


@pytest.mark.slow
def test_cpq_keeps_the_threshold_in_every_state_if_its_policy_is_slower_than_its_critics():
    """Of a policy that is a little beyond, some actions are within and pull it back."""
    assert_within_in_every_state(play(trained("cpq", MIDDLE, 3000, SLOW)), MIDDLE)


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="CPQ stops for good once Q^c is above the threshold for all that its policy does in every state: "
    "no action has a gradient then, so the policy and its Q^c stay what they are",
)
@pytest.mark.parametrize(
    ("cost_limit", "changes"),
    [
        pytest.param(TIGHT, SLOW, id="begins beyond the limit"),
        pytest.param(MIDDLE, {}, id="is far beyond before the critics know"),
    ],
)
def test_cpq_comes_back_from_beyond_the_limit(cost_limit, changes):
    assert_within_in_every_state(play(trained("cpq", cost_limit, 1000, changes)), cost_limit)
