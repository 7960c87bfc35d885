"""Acting by the student: where it answers, where its teacher does, and what does not go with it."""

import numpy as np
import pytest
import torch
from pipeline_factory import (
    make_evaluation_critic,
    make_pipeline,
    make_student,
    pipeline_by_hand,
)

from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID

TOLD = {"cost_budget": 50.0, "steps_left": 40}


def ranged(critic):
    """A critic that was fitted on observations in [-1, 1]."""
    with torch.no_grad():
        critic.observed_range.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return critic


def student_by_hand():
    """The reward and cost of `evaluation_critic_by_hand`, and of every weight w the action (w, -w)."""
    student = make_student(hidden_dims=[])
    grid = torch.tensor(SAFETY_WEIGHT_GRID)
    with torch.no_grad():
        student.net[0].weight.zero_()
        answers = torch.stack([grid, -grid, 1.0 - grid, 1.35 - grid], dim=1)
        student.net[0].bias.copy_(answers.flatten())
    return student


@pytest.fixture(scope="module")
def by_hand():
    pipe = pipeline_by_hand(student=student_by_hand())
    ranged(pipe.evaluation_critic)
    return pipe


@pytest.mark.parametrize("budget", [-1.0, 10.0, 30.0, 50.0, 1000.0])
def test_the_choice_is_that_of_its_expectations(by_hand, budget):
    """The policy's critic expects the same, so it is the same choice, and the student's action is done."""
    told = {"cost_budget": budget, "steps_left": 40, "risk": 0.5}
    output, own = (by_hand([0.5, 0.0, -1.0], **told, fast=fast) for fast in (True, False))
    assert output.by_student.tolist() == [True]
    assert own.by_student is None
    assert output.chosen.tolist() == own.chosen.tolist()
    for name in ("expected_returns", "expected_costs", "cost_bounds"):
        torch.testing.assert_close(getattr(output, name), getattr(own, name))
    assert torch.equal(output.feasible, own.feasible)
    weight = SAFETY_WEIGHT_GRID[int(output.chosen)]
    np.testing.assert_allclose(output.actions, [weight, -weight], atol=1e-6)


def test_elsewhere_the_teacher_answers_as_ever():
    pipe = make_pipeline(evaluation_critic=ranged(make_evaluation_critic()), student=make_student())
    rows = np.array([[0.0, 0.0, 0.0], [0.0, 1.5, 0.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    told = {"cost_budget": 50.0, "steps_left": np.array([40, 40, 40, 101])}
    output, own = (pipe(rows, **told, fast=fast) for fast in (True, False))
    assert output.by_student.tolist() == [True, False, True, False], "out of range; longer than an episode"
    teachers = ~output.by_student.numpy()
    np.testing.assert_allclose(output.actions[teachers], own.actions[teachers], rtol=0, atol=1e-6)
    assert (np.abs(output.actions - own.actions).max(axis=1) > 1e-3)[~teachers].all()
    torch.testing.assert_close(output.expected_costs[teachers], own.expected_costs[teachers])


def test_a_controller_asks_the_student(by_hand):
    controller = by_hand.controller(30.0, fast=True, risk=0.5)
    controller.reset()
    expected = by_hand([0.5, 0.0, -1.0], cost_budget=30.0, steps_left=100, risk=0.5, fast=True)
    np.testing.assert_array_equal(controller.act(np.array([0.5, 0.0, -1.0])), expected.actions)
    controller.observe()
    assert controller.spent > 0, "what a step costs is estimated by the evaluation critic"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "fast=True is for a policy under a limit"),
        ({**TOLD, "safety_weight": 0.5}, "safety_weight has no effect with fast=True"),
        ({**TOLD, "num_inference_steps": 2}, "num_inference_steps has no effect with fast=True"),
    ],
)
def test_what_has_no_effect_is_refused(by_hand, told, message):
    with pytest.raises(ValueError, match=message):
        by_hand([0.0, 0.0, 0.0], fast=True, **told)


def test_without_a_student_fast_is_refused():
    with pytest.raises(ValueError, match=r"no student, .* `spi distill` trains one"):
        make_pipeline()([0.0, 0.0, 0.0], **TOLD, fast=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation_critic": None}, "A student needs the evaluation critic"),
        ({"student": make_student(num_weights=5)}, "answers for 5 safety weights and 1 cost"),
        ({"student": make_student(num_costs=2)}, "but the policy has 11 and 1"),
        ({"student": make_student(action_dim=1)}, "The student's action_dim is 1"),
    ],
)
def test_a_student_of_another_policy_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(**({"student": make_student()} | changes))
