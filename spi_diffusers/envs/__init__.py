"""Simulators behind one `make_env(task)`."""

from spi_diffusers.envs.errors import SimulatorNotInstalledError
from spi_diffusers.envs.make import episode_seeds, make_env, make_vector_env

__all__ = ["SimulatorNotInstalledError", "episode_seeds", "make_env", "make_vector_env"]
