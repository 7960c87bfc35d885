"""The scale of a controller: its bound on any sequence, and the share that it ends at."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_factory import make_evaluation_critic, make_pipeline

from spi_diffusers.pipelines.adaptation import LARGEST_LOG_SCALE, RATE, AdaptiveScale
from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID, policy_action

STEPS, LIMIT = 10, 4.0
WEIGHTS = np.array(SAFETY_WEIGHT_GRID)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=600), st.floats(0.01, 0.5))
def test_the_bound_holds_on_any_sequence(episodes, risk):
    scale, times = AdaptiveScale(risk), 0
    for number, (over, mattered) in enumerate(episodes, start=1):
        over = over and not scale.trusts_nothing  # the safest policy keeps the limit
        times += over
        scale.update(int(over), int(mattered and not over))
        assert times / number <= risk + (LARGEST_LOG_SCALE + RATE) / (RATE * number) + 1e-9
        assert -LARGEST_LOG_SCALE <= scale.log < LARGEST_LOG_SCALE + RATE


@given(st.integers(1, 50), st.data(), st.floats(0.01, 0.5))
def test_the_bound_holds_for_environments_that_run_side_by_side(count, data, risk):
    scale, times, finished = AdaptiveScale(risk, count), 0, 0
    safe = [False] * count  # whether an episode was begun by the safest and is acted in by it since
    for _ in range(40):
        ends = data.draw(st.integers(0, count - 1))
        over = not safe[ends]
        times, finished = times + over, finished + 1
        scale.update(int(over), int(not over))
        safe[ends] = True
        safe = [was and scale.trusts_nothing for was in safe]
        bound = risk + (LARGEST_LOG_SCALE + count * scale.rate) / (scale.rate * finished)
        assert times / finished <= bound + 1e-9
        assert scale.log <= LARGEST_LOG_SCALE + count * scale.rate


def test_where_the_safest_breaks_the_limit_too_the_scale_comes_back_soon():
    scale = AdaptiveScale(0.2)
    for _ in range(1000):
        scale.update(1, 0)
    assert scale.log == scale.largest_log
    for _ in range(10):
        scale.update(0, 1)
    assert not scale.trusts_nothing


def test_a_round_of_many_counts_as_ten():
    scale = AdaptiveScale(0.05, num_envs=1000)
    scale.update(1000, 0)
    assert scale.log == pytest.approx(10 * RATE * 0.95)


def policy_of_known_cost():
    """The policy of w costs (1 - w) a step in the mean, and its critic predicts a quarter of it."""
    critic = make_evaluation_critic(hidden_dims=[], max_episode_steps=STEPS)
    pipe = make_pipeline(max_episode_steps=STEPS, evaluation_critic=critic)
    with torch.no_grad():
        last = [part for part in pipe.noise_model.modules() if isinstance(part, torch.nn.Linear)][-1]
        last.weight.mul_(1e-3)  # so that no action is clipped, and each tells its weight
        last.bias.mul_(1e-3)
        weight, bias = critic.net[0].weight.zero_(), critic.net[0].bias.zero_()
        weight[0, 5], bias[0] = -0.5, 0.5
        weight[1, 5], bias[1] = -0.125, 0.125
    return pipe


def play(pipe, risk, episodes, seed, factor=lambda episode: 1.0, num_envs=5, **options):
    """Whether each episode was over the limit."""
    grid = torch.tensor(SAFETY_WEIGHT_GRID)
    known = policy_action(pipe, torch.zeros(len(grid), 3), grid).detach().numpy()
    generator, observation = np.random.default_rng(seed), np.zeros((num_envs, 3), np.float32)
    controller = pipe.controller(LIMIT, risk=risk, num_envs=num_envs, **options)
    over = []
    for first in range(0, episodes, num_envs):
        controller.reset()
        for _ in range(STEPS):
            actions = controller.act(observation)
            weights = WEIGHTS[np.abs(actions[:, None] - known).sum(axis=-1).argmin(axis=1)]
            controller.observe(2 * generator.random(num_envs) * (1 - weights) * factor(first))
        over.extend(np.atleast_1d(controller.spent) > LIMIT)
    assert (controller.finished, controller.exceeded) == (episodes, sum(over))
    return np.array(over), controller


@pytest.mark.parametrize(("risk", "seed"), [(0.05, 0), (0.2, 1)])
def test_a_critic_that_predicts_a_quarter_of_the_cost_ends_at_the_asked_share(risk, seed):
    over, controller = play(policy_of_known_cost(), risk, 500, seed)
    assert over.mean() == pytest.approx(risk, abs=0.02)
    assert 3 < controller.scale < 20


def test_without_adaptation_it_does_not():
    over, controller = play(policy_of_known_cost(), 0.05, 50, 0, adapt=False)
    assert over.mean() > 0.5
    assert controller.scale == 1.0


@pytest.mark.parametrize("risk", [0.05, 0.2])
def test_costs_that_double_are_recovered_from(risk):
    over, _ = play(policy_of_known_cost(), risk, 600, 2, factor=lambda episode: 1.0 + (episode >= 200))
    assert over[-200:].mean() == pytest.approx(risk, abs=0.025)


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 20])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("risk", [0.05, 0.2])
def test_shares_on_more_seeds_and_by_other_numbers_of_environments(risk, seed, num_envs):
    over, _ = play(policy_of_known_cost(), risk, 500 if num_envs == 1 else 1000, seed, num_envs=num_envs)
    assert over.mean() <= risk + 0.025
    assert over[-200:].mean() == pytest.approx(risk, abs=0.03)


def test_an_episode_in_which_everything_fits_does_not_lower_the_scale():
    pipe = policy_of_known_cost()
    controller = pipe.controller(1000.0)
    for _ in range(3):
        controller.reset()
        controller.act(np.zeros(3))
        controller.observe(0.0, True)
    assert (controller.scale, controller.finished) == (1.0, 3)
    controller.reset(cost_limit=0.5)
    controller.act(np.zeros(3))
    controller.observe(0.0, True)
    assert math.log(controller.scale) == pytest.approx(-0.05 * RATE)
