import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.transitions import DatasetError, TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.training.imitation import PreferredEpisodes
from spi_diffusers.training.sampler import MemorySampler, scale_actions, take_slice


def make_dataset(lengths=(3, 2, 4), terminated=(1,), low=-1.0, high=1.0, max_cost=1, seed=0):
    """Episodes whose rewards number the rows, so that a batch shows which rows it holds."""
    rng = np.random.default_rng(seed)
    rows, ends = sum(lengths), np.cumsum(lengths) - 1
    walks = [rng.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    is_terminated = np.isin(np.arange(rows), ends[list(terminated)])
    return TransitionDataset.from_columns(
        {
            "observation": np.concatenate([walk[:-1] for walk in walks]),
            "next_observation": np.concatenate([walk[1:] for walk in walks]),
            "action": rng.uniform(low, high, size=(rows, 2)).astype(np.float32),
            "reward": np.arange(rows, dtype=np.float32),
            "cost": rng.integers(0, max_cost + 1, size=rows).astype(np.float32),
            "terminated": is_terminated,
            "truncated": np.isin(np.arange(rows), ends) & ~is_terminated,
        }
    )


def make_sampler(dataset, config=None, **options):
    normalizer = ObservationNormalizer(observation_dim=3).fit(dataset.transitions.observation)
    where = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    return MemorySampler(sampled(config or SPIConfig(), **options), dataset, normalizer, Units(), **where)


def sampled(config, **options) -> TrainConfig:
    """A run's configuration that a sampler of SPI is made from."""
    return TrainConfig(dataset="memory", spi=config, **{"batch_size": 8} | options)


@pytest.mark.parametrize(
    "config",
    [
        SPIConfig(),
        SPIConfig(guidance="chain"),
        SPIConfig(next_action="dataset"),
        SPIConfig(imitation_share=0.5),
    ],
    ids=["one step", "chain", "recorded next action", "preferred episodes"],
)
@given(seed=st.integers(0, 2**62), world_size=st.sampled_from([1, 2, 4]), steps=st.integers(1, 3))
def test_the_processes_slices_make_up_the_batch_of_one_process(config, seed, world_size, steps):
    dataset = make_dataset()
    whole = make_sampler(dataset, config, seed=seed)
    ranks = [
        make_sampler(dataset, config, seed=seed, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for _ in range(steps):
        inputs, parts = whole.draw().tensors(), [sampler.draw().tensors() for sampler in ranks]
        for name, value in inputs.items():
            dim = whole.draws[name].batch_dim if name in whole.draws else 0
            if dim is None:
                assert all(torch.equal(part[name], value) for part in parts)
                continue
            assert torch.equal(torch.cat([part[name] for part in parts], dim), value)
            for rank, part in enumerate(parts):
                assert torch.equal(take_slice(value, dim, rank, world_size), part[name])
    assert all(torch.equal(sampler.get_state(), whole.get_state()) for sampler in ranks)


def test_shapes_and_ranges():
    config = SPIConfig(num_train_timesteps=5, guidance="chain")
    inputs = make_sampler(make_dataset(), config, batch_size=512).draw()
    assert inputs.observation.shape == inputs.next_observation.shape == (512, 3)
    assert inputs.action.shape == inputs.noise.shape == (512, 2)
    assert inputs.chain_noise.shape == inputs.guidance_noise.shape == (5, 512, 2)
    assert inputs.twin.shape == ()
    assert set(inputs.timestep.tolist()) == set(range(5))
    assert 0 <= inputs.safety_weight.min() < 0.05
    assert 0.95 < inputs.safety_weight.max() < 1
    assert inputs.next_action is None
    assert {int(make_sampler(make_dataset(), config, seed=s).draw().twin) for s in range(20)} == {0, 1}
    unguided = make_sampler(make_dataset(), dataclasses.replace(config, guidance="one_step")).draw()
    assert unguided.guidance_noise.shape == (0, 8, 2)


def test_rows_stay_together_and_observations_are_normalised():
    dataset = make_dataset()
    inputs = make_sampler(dataset, batch_size=256).draw()
    rows = inputs.reward.long()
    assert set(rows.tolist()) == set(range(9))
    batch = dataset.transitions
    mean, std = batch.observation.mean(0), batch.observation.std(0, correction=0)
    torch.testing.assert_close(inputs.observation, ((batch.observation - mean) / std)[rows])
    torch.testing.assert_close(inputs.next_observation, ((batch.next_observation - mean) / std)[rows])
    assert torch.equal(inputs.action, batch.action[rows])
    assert torch.equal(inputs.cost, batch.cost[rows])
    assert torch.equal(inputs.terminated, batch.terminated[rows])


def test_the_recorded_next_action_is_the_next_rows_and_rows_without_one_are_not_drawn():
    # Rows: 0 1 2 | 3 4 | 5 6 7 8; the second episode terminates, the others are cut off by time.
    dataset = make_dataset()
    inputs = make_sampler(dataset, SPIConfig(next_action="dataset"), batch_size=512).draw()
    rows = inputs.reward.long()
    assert set(rows.tolist()) == {0, 1, 3, 4, 5, 6, 7}
    action = dataset.transitions.action
    expected = torch.where((rows == 4).unsqueeze(1), 0.0, action[(rows + 1).clamp(max=8)])
    assert torch.equal(inputs.next_action, expected)


def test_what_is_imitated_goes_with_row_and_weight():
    dataset = make_dataset(lengths=(3, 2, 4, 3))
    assert make_sampler(dataset).draw().imitated is None
    inputs = make_sampler(dataset, SPIConfig(imitation_share=0.4), batch_size=512).draw()
    preferred = PreferredEpisodes(dataset.episodes, 0.4, torch.zeros(4, dtype=torch.int64))
    expected = preferred.picks(preferred.episode_of(inputs.reward.long()), inputs.safety_weight)
    assert torch.equal(inputs.imitated, expected)
    assert 0.35 < inputs.imitated.float().mean() < 0.8  # whole episodes, of up to a third of the data


def test_no_recorded_next_action_at_all_is_an_error():
    with pytest.raises(DatasetError, match=r"spi\.next_action=dataset"):
        make_sampler(make_dataset(lengths=(1, 1), terminated=()), SPIConfig(next_action="dataset"))


def test_a_state_continues_the_same_draws():
    sampler, other = make_sampler(make_dataset()), make_sampler(make_dataset(), seed=9)
    sampler.draw()
    other.set_state(sampler.get_state())
    first, second = sampler.draw().tensors(), other.draw().tensors()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_batch_that_cannot_be_shared_out_equally_is_an_error():
    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of the number of processes \(3\), got 8"
    ):
        make_sampler(make_dataset(), world_size=3)


@given(low=st.floats(-5, 1), width=st.floats(0.5, 10))
def test_actions_are_scaled_to_the_unit_range(low, width):
    dataset = make_dataset(low=low, high=low + width)
    scaled = scale_actions(dataset.transitions.action, low, low + width)
    assert scaled.abs().max() <= 1
    back = low + (scaled + 1) * 0.5 * width
    torch.testing.assert_close(back, dataset.transitions.action, atol=1e-5 * (width + abs(low)), rtol=1e-5)


def test_actions_outside_the_range_are_refused_or_clipped():
    dataset = make_dataset(low=-2.0, high=2.0)
    worst = int((dataset.transitions.action.abs() > 1).any(1).nonzero()[0])
    with pytest.raises(DatasetError, match=rf"'action' has .* outside \[-1, 1\], first in row {worst}: "):
        make_sampler(dataset, action_low=-1.0, action_high=1.0)
    inputs = make_sampler(dataset, clip_actions=True, batch_size=256).draw()
    assert torch.equal(inputs.action, dataset.transitions.action.clamp(-1, 1)[inputs.reward.long()])
    inside = make_sampler(dataset, action_low=-2.0, action_high=2.0, batch_size=256).draw()
    torch.testing.assert_close(inside.action * 2, dataset.transitions.action[inside.reward.long()])
