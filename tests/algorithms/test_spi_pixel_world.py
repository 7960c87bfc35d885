"""SPI's critics on the Pixel world of Figure 2: what they learn is what the paper works out."""

import pytest
import torch
from pixel_world_data import collect_pixel_world

from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.algorithms.spi import SPI
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.columns import COLUMNS
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.models import MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.training.sampler import MemorySampler

GAMMA = 0.9


def train_on(dataset, updates: int, **options) -> SPI:
    """Critics of the behaviour in the data (SARSA), by the real update and the real sampler."""
    config = SPIConfig(
        conditioned=False,
        eta=1.0,
        mu=0.0,
        phi=0.0,
        gamma=GAMMA,
        next_action="dataset",
        target_update_rate=0.05,
        **options,
    )
    torch.manual_seed(0)
    shared = {"observation_dim": 2, "action_dim": 2, "use_safety_weight": False}
    spi = SPI(
        config,
        MLPNoiseModel(**shared, hidden_dims=[8], time_embed_dim=4),
        TwinCritic(**shared, hidden_dims=[48, 48]),
        TwinCritic(**shared, hidden_dims=[48, 48]),
        Compute(),
        learning_rate=3e-3,
    )
    identity = ObservationNormalizer(observation_dim=2)
    identity.set_statistics(torch.zeros(2), torch.ones(2))
    run = TrainConfig(dataset="memory", algorithm="spi-paper", spi=config, batch_size=128)
    sampler = MemorySampler(run, dataset, identity, Units())
    inputs = sampler.draw()
    for step in range(updates):
        for optimizer in spi.optimizers().values():
            optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (1 - step / updates))
        _, inputs = spi.update(inputs, sampler.draw())
    return spi


def values_at(spi: SPI, x: float, y: float, action: tuple[float, float]) -> dict[str, float]:
    """Mean of the twins at a cell and a move."""
    arguments = (torch.tensor([[x, y]]), torch.tensor([action]))
    with torch.no_grad():
        reward = spi.reward_critic(*arguments).values.mean(0)
        safety = spi.safety_critic(*arguments).values.mean(0)
    return {"reward": float(reward[0]), "safety": float(safety[0])}


DOWN, RIGHT = (0.0, 0.8), (0.8, 0.0)


@pytest.fixture(scope="module", params=[3, 6])
def white(request):
    n = request.param
    return n, train_on(collect_pixel_world(n, 60, seed=0, behaviors=("white",)), updates=700)


def test_the_safety_critic_gives_the_papers_geometric_sum(white):
    """Figure 2: with c' = 1 - c it is gamma^0 + ... + gamma^(n-1); the fall ends the episode."""
    n, spi = white
    paper = {3: 1 + 0.9 + 0.81, 6: 1 + 0.9 + 0.81 + 0.729 + 0.6561 + 0.59049}[n]
    assert values_at(spi, -1, -1, DOWN)["safety"] == pytest.approx(paper, abs=0.08)


def test_the_last_move_is_worth_nothing(white):
    _, spi = white
    assert values_at(spi, 1, 0, DOWN)["safety"] == pytest.approx(0.0, abs=0.08)


def test_no_reward_on_the_white_trajectory(white):
    _, spi = white
    assert values_at(spi, -1, -1, DOWN)["reward"] == pytest.approx(0.0, abs=0.03)


def test_an_end_ends_the_safety_too():
    """The safe way to the goal costs nothing, but Q^c' is a survival bonus of two moves (3 x 3).

    1 / (1 - gamma) - Q^c' would call it a cost of 10 - 1.9 = 8.1: so limits are not compared with it.
    """
    spi = train_on(collect_pixel_world(3, 60, seed=0, behaviors=("safe",)), updates=500)
    start = values_at(spi, -1, -1, RIGHT)
    assert start["safety"] == pytest.approx(1 + GAMMA, abs=0.08)
    assert start["reward"] == pytest.approx(GAMMA, abs=0.03)


def test_without_termination_safety_is_what_cost_leaves_of_its_bound():
    """Q^c' = 1 / (1 - gamma) - Q^c exactly, where nothing terminates: falling leads back to the start.

    The white walk of four moves goes round and round: Q^c = gamma^3 / (1 - gamma^4) at the start.
    """
    walks = collect_pixel_world(3, 60, seed=0, behaviors=("white",)).transitions
    columns = {name: getattr(walks, name).numpy().copy() for name in COLUMNS}
    columns["next_observation"][walks.terminated.numpy()] = [-1.0, -1.0]
    columns["terminated"][:] = False
    columns["truncated"][-1] = True
    spi = train_on(TransitionDataset.from_columns(columns), updates=1000)
    for moves_left, cell in ((3, (-1, -1, DOWN)), (2, (-1, 0, RIGHT)), (1, (0, 0, RIGHT)), (0, (1, 0, DOWN))):
        values = values_at(spi, *cell)
        assert values["safety"] == pytest.approx(10 - GAMMA**moves_left / (1 - GAMMA**4), abs=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 12])
def test_converged_critics_equal_the_papers_values_along_the_whole_trajectory(n):
    spi = train_on(collect_pixel_world(n, 200, seed=1, behaviors=("white",)), updates=4000)
    cells = [(-1.0, -1.0, DOWN), *((2 * k / (n - 1) - 1, 0.0, RIGHT) for k in range(n - 1)), (1.0, 0.0, DOWN)]
    for index, cell in enumerate(cells):
        left = n - index  # moves before the fall
        values = values_at(spi, *cell)
        assert values["safety"] == pytest.approx((1 - GAMMA**left) / (1 - GAMMA), abs=0.06)
