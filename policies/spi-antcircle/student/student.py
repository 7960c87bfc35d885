"""The student: one pass for what the policies of all safety weights do, and what they expect.

This file is also shipped inside a policy's Hub repository, so it imports only torch and diffusers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.activations import get_activation
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class StudentOutput(BaseOutput):
    """Output of [`Student`], for B observations and the N safety weights of the grid.

    Attributes:
        actions: What the policy of each safety weight does, in [-1, 1], shape (B, N, A).
        rates: What it expects per step as multiples of the evaluation critic's units: the reward, then K
            costs; shape (B, N, 1 + K). [`EvaluationCritic.in_units`] takes them.
    """

    actions: Tensor
    rates: Tensor


class Student(ModelMixin, ConfigMixin):
    """Actions and expectations of all safety weights at once, from (s, h), distilled from a policy.

    In the place of the noise model, which denoises an action for each safety weight in several steps, and of
    the evaluation critic, which values each. Which of the actions is taken under a limit, budget and risk is
    decided as ever.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        num_weights: Number N of safety weights.
        num_costs: Number K of costs.
        hidden_dims: Width of each hidden layer.
        activation: Name of a diffusers activation.

    Raises:
        ValueError: For sizes below one.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        num_weights: int,
        num_costs: int = 1,
        hidden_dims: Sequence[int] = (128, 128, 128),
        activation: str = "silu",
    ):
        super().__init__()
        if min([observation_dim, action_dim, num_weights, num_costs, *hidden_dims]) < 1:
            raise ValueError(f"All sizes of {type(self).__name__} must be at least 1.")
        widths = [observation_dim + 3, *hidden_dims]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out, dtype=torch.float32), get_activation(activation)]
        outputs = num_weights * (action_dim + 1 + num_costs)
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], outputs, dtype=torch.float32))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "Student":
        """As in diffusers, but from safetensors only: it would fall back to a pickle."""
        return super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})

    def forward(
        self, observation: Tensor, step_features: Tensor, return_dict: bool = True
    ) -> StudentOutput | tuple[Tensor, Tensor]:
        """Actions and expectations, see [`StudentOutput`].

        Args:
            observation: Normalized observation, shape (B, O).
            step_features: Of the steps left, shape (B, 3), from [`EvaluationCritic.step_features`].
            return_dict: Whether to return a [`StudentOutput`] instead of a tuple.
        """
        actions, rates = self.unbounded(observation, step_features)
        actions = actions.clamp(-1.0, 1.0)
        return StudentOutput(actions=actions, rates=rates) if return_dict else (actions, rates)

    def unbounded(self, observation: Tensor, step_features: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, but for training: at a bound, a gradient would vanish."""
        inputs = torch.cat([observation, step_features], dim=-1).to(next(self.parameters()).dtype)
        answers = self.net(inputs).float().unflatten(1, (self.config.num_weights, -1))
        return answers[..., : self.config.action_dim], answers[..., self.config.action_dim :]
