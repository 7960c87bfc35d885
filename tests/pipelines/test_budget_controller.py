"""Acting with CAPS's policy: what it is told, by a call and by its controller."""

import numpy as np
import pytest
import torch

from spi_diffusers.models import DeterministicActor, ObservationNormalizer, SwitchingActor
from spi_diffusers.pipelines import BaselinePolicyPipeline


def make_pipeline(actor=None, **settings):
    torch.manual_seed(0)
    actor = actor or SwitchingActor(observation_dim=1, action_dim=1, hidden_dims=[4])
    normalizer = ObservationNormalizer(observation_dim=1)
    normalizer.set_statistics(torch.zeros(1), torch.ones(1))
    return BaselinePolicyPipeline(
        actor, normalizer, algorithm="caps", **{"max_episode_steps": 10, **settings}
    )


def watch(pipe, monkeypatch):
    """Budget and steps left that the actor is told, at every call."""
    told, act = [], pipe.actor.act
    monkeypatch.setattr(
        pipe.actor, "act", lambda o, *rest: (told.append([r.tolist() for r in rest]), act(o, *rest))[1]
    )
    return told


def test_the_controller_tells_what_is_left(monkeypatch):
    pipe = make_pipeline()
    told, controller = watch(pipe, monkeypatch), pipe.controller([5, 9], num_envs=2)
    for _ in range(2):  # the second episode begins anew
        controller.reset()
        for _ in range(2):
            controller.act(np.zeros((2, 1)))
            controller.observe(1.0, [1.0, 2.0])
    assert told == 2 * [[[5, 9], [10, 10]], [[4, 7], [9, 9]]]


def test_without_feedback_it_is_told_the_limit_alone(monkeypatch):
    pipe = make_pipeline()
    told, controller = watch(pipe, monkeypatch), pipe.controller(5)
    controller.reset()
    for _ in range(2):
        controller.act(np.zeros(1))
        controller.observe(1.0)
    pipe(np.zeros(1), cost_limit=5)
    pipe(np.zeros((2, 1)), cost_budget=[1, 2], steps_left=3)
    assert told == [*3 * [[[5], [10]]], [[1, 2], [3, 3]]]


def test_what_does_not_fit_is_refused():
    pipe = make_pipeline()
    assert (pipe.extractions, pipe.default_limit) == (("limit",), None)
    with pytest.raises(ValueError, match="needs a cost_limit, or cost_budget with steps_left"):
        pipe(np.zeros(1))
    with pytest.raises(ValueError, match="cost_limit must not be negative"):
        pipe.controller(-1)
    with pytest.raises(ValueError, match="does not know its task's episode length"):
        make_pipeline(max_episode_steps=None).controller(1)
    other = make_pipeline(DeterministicActor(observation_dim=1, action_dim=1, hidden_dims=[4]))
    with pytest.raises(ValueError, match="and is told no other"):
        other(np.zeros(1), cost_limit=5)
