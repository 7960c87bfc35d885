"""Safe offline reinforcement learning with diffusion policies, as diffusers pipelines."""

__version__ = "0.1.0"
