"""A noise model with nothing left to learn, for tests of everything that samples."""

import torch
from diffusers.models.embeddings import get_timestep_embedding

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import MLPNoiseModel

GATE = 64.0  # larger than any noise that occurs


def exact_noise_model(config: SPIConfig, action_dim: int = 2) -> MLPNoiseModel:
    """A noise model whose hand-made weights predict the noise exactly, the action being the observation.

    eps = (x_t - sqrt(alpha-bar_t) s) / sqrt(1 - alpha-bar_t). For every timestep t there is a pair of ReLUs
    per dimension, relu(+-eps + GATE (1[t] - 1)), of which only those of the actual t are open.
    """
    steps, size = config.num_train_timesteps, 16
    hidden = 2 * steps * action_dim
    model = MLPNoiseModel(
        action_dim,
        action_dim,
        hidden_dims=[hidden],
        time_embed_dim=size,
        activation="relu",
        use_safety_weight=config.conditioned,
    ).double()
    embedded = get_timestep_embedding(torch.arange(steps), size).double()
    one_hot = torch.zeros(size, steps, dtype=torch.float64)
    one_hot[:steps] = torch.eye(steps)
    # W embedding(t) = 1[t], written as relu(W e) - relu(-W e).
    to_one_hot = one_hot @ torch.linalg.pinv(embedded.T)
    alpha_bars = make_scheduler(config).alphas_cumprod.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.time_mlp[0].weight.copy_(torch.cat([to_one_hot, -to_one_hot]))
        model.time_mlp[2].weight.copy_(torch.cat([torch.eye(size), -torch.eye(size)], dim=1))
        first, last = model.net[0], model.net[2]
        first.bias.fill_(-GATE)
        unit = 0
        for t in range(steps):
            for dimension in range(action_dim):
                for sign in (1.0, -1.0):
                    scale = sign / float((1 - alpha_bars[t]).sqrt())
                    first.weight[unit, dimension] = scale
                    first.weight[unit, action_dim + t] = GATE
                    first.weight[unit, action_dim + size + dimension] = -scale * float(alpha_bars[t].sqrt())
                    last.weight[dimension, unit] = sign
                    unit += 1
    return model
