"""The student: what it gives for which weights, by hand, and what it refuses."""

import pytest
import torch

from spi_diffusers.models import Student


def make_student(**options) -> Student:
    sizes = {"observation_dim": 2, "action_dim": 1, "num_weights": 3, "num_costs": 2, "hidden_dims": []}
    return Student(**(sizes | options))


def test_one_pass_gives_actions_and_rates_of_all_weights():
    student = make_student()
    with torch.no_grad():
        student.net[0].weight.zero_()
        student.net[0].weight[0, 0] = 1.0  # of the first weight, the action is the observation's first number
        student.net[0].weight[5, 4] = 2.0  # of the second one, the reward is twice the last of the steps'
        student.net[0].bias.copy_(torch.arange(12.0))
    observation, steps = torch.tensor([[0.5, 9.0], [-3.0, 9.0]]), torch.tensor([[0.1, 0.2, 0.25]] * 2)
    output = student(observation, steps)
    assert output.actions.tolist() == [[[0.5], [1.0], [1.0]], [[-1.0], [1.0], [1.0]]], "in [-1, 1]"
    assert output.rates.tolist() == [[[1.0, 2.0, 3.0], [5.5, 6.0, 7.0], [9.0, 10.0, 11.0]]] * 2
    unbounded, _ = student.unbounded(observation, steps)
    assert unbounded[:, :, 0].tolist() == [[0.5, 4.0, 8.0], [-3.0, 4.0, 8.0]]


def test_half_precision_takes_float32_and_gives_it():
    student = make_student(hidden_dims=[4]).to(torch.bfloat16)
    actions, rates = student(torch.zeros(5, 2), torch.zeros(5, 3), return_dict=False)
    assert (actions.dtype, rates.dtype) == (torch.float32, torch.float32)
    assert (actions.shape, rates.shape) == ((5, 3, 1), (5, 3, 3))


@pytest.mark.parametrize("changes", [{"num_weights": 0}, {"hidden_dims": [4, 0]}, {"num_costs": 0}])
def test_sizes_below_one_are_refused(changes):
    with pytest.raises(ValueError, match="All sizes of Student must be at least 1"):
        make_student(**changes)
