"""A task of one state and one step, on which the best action under a cost limit is known."""

import torch

from spi_diffusers.algorithms.base import Batch, PolicySizes
from spi_diffusers.algorithms.networks import Compute


def one_state_batch(seed, size=128):
    """One state, each action ends the episode: reward a, cost 1 where a > 0; actions near -0.5 and 0.5."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.randint(2, (size, 1), generator=generator) - 0.5
    action = (side + 0.05 * torch.randn(size, 1, generator=generator)).clamp(-1, 1)
    zeros, ends = torch.zeros(size, 2), torch.ones(size, dtype=torch.bool)
    reward, cost = action[:, 0], (action[:, 0] > 0).float()
    return Batch(zeros, zeros, action, reward, cost, ends, ~ends, zeros)


def train(algorithm, config, cost_limit, updates=200):
    """Trained for a task of one step, whose discounted cost is its cost."""
    torch.manual_seed(0)
    made = algorithm(config, PolicySizes(2, 1, 1, cost_limit), Compute())
    generator = torch.Generator().manual_seed(0)
    for step in range(updates):
        batch = one_state_batch(step)
        draws = algorithm.draws(config, len(batch.reward), 1)
        noise = {name: draw.sample(generator) for name, draw in draws.items()}
        metrics = made.learn(batch, noise)
    action = made.policy_components()["actor"].act(torch.zeros(100, 2), torch.Generator().manual_seed(1))
    return action, {name: float(value) for name, value in metrics.items()}
