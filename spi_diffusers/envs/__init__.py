"""Simulators behind one `make_env(task)`, and the Pixel world of the paper's Figure 2."""

from spi_diffusers.envs.errors import SimulatorNotInstalledError
from spi_diffusers.envs.make import episode_seeds, make_env, make_vector_env
from spi_diffusers.envs.pixel_data import collect_pixel_world
from spi_diffusers.envs.pixel_world import PixelWorldEnv, transition_table, white_trajectory

__all__ = [
    "PixelWorldEnv",
    "SimulatorNotInstalledError",
    "collect_pixel_world",
    "episode_seeds",
    "make_env",
    "make_vector_env",
    "transition_table",
    "white_trajectory",
]
