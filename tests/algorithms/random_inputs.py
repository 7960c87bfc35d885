"""Small baselines with random weights, and random inputs of one update, for tests that repeat it by hand."""

import torch

from spi_diffusers.algorithms.base import Batch, PolicySizes
from spi_diffusers.algorithms.networks import Compute

SIZES = PolicySizes(observation_dim=3, action_dim=2, max_episode_steps=20, cost_limit=4.0)


def make_random(algorithm, config):
    """A baseline none of whose networks, targets included, is a copy of another."""
    torch.manual_seed(0)
    made = algorithm(config, SIZES, Compute())
    with torch.no_grad():
        for module in made.modules().values():
            for parameter in module.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape))
    made.refresh()
    return made


def random_inputs(algorithm, size=16, seed=0):
    """A batch in which some episodes end, some by the time limit, and the noise that an update needs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    observation, next_observation, initial = normal(3, size, SIZES.observation_dim)
    action, reward = normal(size, SIZES.action_dim).tanh(), normal(size)
    cost, terminated, truncated = normal(3, size) > 0.5
    batch = Batch(observation, next_observation, action, reward, cost.float(), terminated, truncated, initial)
    draws = algorithm.draws(algorithm.config, size, SIZES.action_dim)
    return batch, {name: draw.sample(generator) for name, draw in draws.items()}


def twin_values(critics, observation, action):
    """Q^r and Q^c of both twins, each (2, B), from a stack of one pair each."""
    reward, cost = critics(torch.cat([observation, action], dim=-1)).squeeze(-1)
    return reward, cost


def assert_same_loss(loss, expected, module):
    """The same value, and the same gradient for a module."""
    parameters = list(module.parameters())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    assert any(bool((gradient != 0).any()) for gradient in gradients[1])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
