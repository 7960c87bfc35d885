import numpy as np
import pytest

from spi_diffusers.evaluation import rollouts


@pytest.fixture
def step_costs(monkeypatch) -> list[np.ndarray]:
    """The cost of every step of all rollouts so far, (B,) each, as the simulator says."""
    costs: list[np.ndarray] = []
    make = rollouts.make_vector_env

    def make_spied(*args, **kwargs):
        env = make(*args, **kwargs)
        step = env.step

        def spied(actions):
            result = step(actions)
            costs.append(np.array(result[-1]["cost"]))
            return result

        env.step = spied
        return env

    monkeypatch.setattr(rollouts, "make_vector_env", make_spied)
    return costs
