"""Acting with CDT's policy: what its controller tells it at every step, by hand."""

import numpy as np
import pytest
import torch

from spi_diffusers.models import DecisionTransformer, DeterministicActor, ObservationNormalizer
from spi_diffusers.pipelines import BaselinePolicyPipeline


def make_pipeline(actor=None):
    torch.manual_seed(0)
    actor = actor or DecisionTransformer(
        observation_dim=1,
        action_dim=1,
        max_episode_steps=10,
        context=2,
        embedding_dim=8,
        num_layers=1,
        num_heads=2,
        frontier_costs=[0.0, 4.0],
        frontier_returns=[20.0, 30.0],
    )
    normalizer = ObservationNormalizer(observation_dim=1)
    normalizer.set_statistics(torch.zeros(1), torch.ones(1))
    return BaselinePolicyPipeline(actor, normalizer, algorithm="cdt")


def watch(pipe, monkeypatch):
    """What the actor is told, at every call."""
    told, act = [], pipe.actor.act
    monkeypatch.setattr(
        pipe.actor, "act", lambda *inputs: (told.append([i.clone() for i in inputs]), act(*inputs))[1]
    )
    return told


def test_targets_fall_by_what_was_reported_and_the_oldest_step_goes(monkeypatch):
    pipe = make_pipeline()
    told, controller = watch(pipe, monkeypatch), pipe.controller(5)
    controller.reset()
    actions = []
    for step in range(3):
        actions.append(float(controller.act(np.array([step + 1.0]))[0]))
        controller.observe(reward=2.0, cost=1.0)
    observation, action, return_to_go, cost_to_go, steps = (part[0] for part in told[0])
    assert [part[0].item() for part in (observation, return_to_go, cost_to_go, steps)] == [1, 30, 5, 0]
    observation, action, return_to_go, cost_to_go, steps = (part[0] for part in told[2])
    assert observation.flatten().tolist() == [2, 3]
    assert action[0].item() == pytest.approx(actions[1])
    assert [part.tolist() for part in (return_to_go, cost_to_go, steps)] == [[28, 26], [4, 3], [1, 2]]


def test_what_is_not_reported_is_taken_to_be_spent_evenly(monkeypatch):
    pipe = make_pipeline()
    told, controller = watch(pipe, monkeypatch), pipe.controller(5, target_return=40)
    controller.reset()
    for _ in range(2):
        controller.act(np.zeros(1))
        controller.observe()
    controller.act(np.zeros(1))
    _, _, return_to_go, cost_to_go, _ = (part[0] for part in told[2])
    assert [part.tolist() for part in (return_to_go, cost_to_go)] == [[36, 32], [4.5, 4]]


def test_environments_have_limits_and_episodes_of_their_own():
    pipe, observation = make_pipeline(), np.array([[1.0], [1.0]])
    both = pipe.controller([0, 9], num_envs=2)
    single = [pipe.controller(limit) for limit in (0, 9)]
    for controller in (both, *single):
        controller.reset()
    for step in range(5):
        if step == 3:  # the second begins a new episode
            both.reset([False, True])
            single[1].reset()
        actions = both.act(observation + step)
        for number, controller in enumerate(single):
            np.testing.assert_allclose(actions[number], controller.act(observation[number] + step), rtol=1e-5)
            controller.observe(1.0, 1.0)
        both.observe(1.0, [1.0, 1.0])
    tensor = torch.tensor(observation, dtype=torch.float32)
    assert isinstance(both.act(tensor), torch.Tensor)


def test_what_does_not_fit_is_refused():
    pipe = make_pipeline()
    assert (pipe.extractions, pipe.default_limit) == (("limit",), None)
    with pytest.raises(ValueError, match=r"act with policy.controller\(cost_limit=...\)"):
        pipe(np.zeros(1))
    with pytest.raises(ValueError, match="cost_limit must be finite and not negative; got -1"):
        pipe.controller(-1)
    with pytest.raises(ValueError, match="cost_limit must be a finite number, or one for each of 3"):
        pipe.controller([1, 2], num_envs=3)
    controller = pipe.controller(5)
    with pytest.raises(RuntimeError, match="Call reset before an episode"):
        controller.act(np.zeros(1))
    with pytest.raises(RuntimeError, match="call act first"):
        controller.observe(1.0, 1.0)
    controller.reset()
    with pytest.raises(ValueError, match=r"has shape \(2, 1\), but the controller has 1 environment"):
        controller.act(np.zeros((2, 1)))
    controller.act(np.zeros(1))
    with pytest.raises(ValueError, match="cost must be a finite number; got nan"):
        controller.observe(1.0, float("nan"))
    controller.observe(1.0, 1.0, ended=True)
    with pytest.raises(RuntimeError, match="Call reset before an episode"):
        controller.act(np.zeros(1))
    other = make_pipeline(DeterministicActor(observation_dim=1, action_dim=1, hidden_dims=[4]))
    with pytest.raises(ValueError, match="is told no other: call it"):
        other.controller(5)
