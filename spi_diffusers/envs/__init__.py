"""Simulators behind one `make_env(task)`, and the Pixel world of the paper's Figure 2.

Importing this registers DSRL's ids with gymnasium: `gymnasium.make("OfflineCarCircle-v0")` works.
"""

from spi_diffusers.data.simulators import SimulatorNotInstalledError
from spi_diffusers.envs.make import episode_seeds, make_env, make_vector_env
from spi_diffusers.envs.offline import register_tasks
from spi_diffusers.envs.pixel_world import PixelWorldEnv, transition_table, white_trajectory

__all__ = [
    "PixelWorldEnv",
    "SimulatorNotInstalledError",
    "episode_seeds",
    "make_env",
    "make_vector_env",
    "register_tasks",
    "transition_table",
    "white_trajectory",
]

register_tasks()
