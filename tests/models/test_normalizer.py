import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.models import ObservationNormalizer


def test_statistics_by_hand():
    # Column 0: 1, 3 -> mean 2, std 1. Columns 1 and 2 are constant: divided by their size, or by 1.
    normalizer = ObservationNormalizer(3).fit(torch.tensor([[1.0, -5.0, 0.0], [3.0, -5.0, 0.0]]))
    assert normalizer.mean.tolist() == [2.0, -5.0, 0.0]
    assert normalizer.std.tolist() == [1.0, 5.0, 1.0]
    observation = torch.tensor([[1.0, -5.0, 0.0], [4.5, -5.0, 0.5], [100.0, -2.5, 20.0]])
    assert normalizer(observation).tolist() == [[-1.0, 0.0, 0.0], [2.5, 0.0, 0.5], [10.0, 0.5, 10.0]]


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e6, 1e30])
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e5])
def test_a_column_is_normalized_whatever_its_scale(scale, offset):
    data = (torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)).double() + offset) * scale
    normalised = ObservationNormalizer(1).fit(data.float())(data.float())
    expected = (data - data.mean()) / data.std(correction=0)
    torch.testing.assert_close(normalised.double(), expected, atol=1e-6 + 1e-7 * offset, rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1e-20, -3e7])
def test_rounding_of_a_constant_column_is_not_blown_up(value):
    column = torch.full((1000, 1), value)
    column[::3] *= 1.0 + 2.0**-23
    assert ObservationNormalizer(1).fit(column)(column).abs().max() < 1e-6


@given(st.integers(2, 50), st.floats(-1e3, 1e3), st.floats(0.1, 1e3))
def test_fitted_data_has_mean_zero_and_variance_one(count, shift, scale):
    generator = torch.Generator().manual_seed(count)
    data = torch.randn(count, 3, generator=generator, dtype=torch.float64) * scale + shift
    normalised = ObservationNormalizer(3).fit(data)(data)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(3), atol=2e-2, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(3), atol=1e-2, rtol=0)


def test_a_large_offset_costs_no_precision():
    """Statistics are computed in double: the variance of data far from zero is not lost."""
    data = torch.tensor([[10000.0], [10000.5], [10001.0]])
    normalizer = ObservationNormalizer(1).fit(data)
    torch.testing.assert_close(normalizer.std, torch.tensor([(1 / 6) ** 0.5]))


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"clip": float("nan")}, {"clip": -1.0}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive and finite"):
        ObservationNormalizer(2, **options)


def test_observations_of_another_size_are_not_broadcast():
    normalizer = ObservationNormalizer(3).fit(torch.randn(20, 3))
    with pytest.raises(ValueError, match=r"has shape \(5, 1\); this normalizer takes \(\.\.\., 3\)"):
        normalizer(torch.zeros(5, 1))


def test_in_half_precision_the_statistics_keep_their_digits(tmp_path):
    normalizer = ObservationNormalizer(1)
    normalizer.set_statistics(torch.tensor([1000.0]), torch.tensor([0.5]))
    normalizer.save_pretrained(str(tmp_path))
    loaded = ObservationNormalizer.from_pretrained(str(tmp_path), torch_dtype=torch.bfloat16)
    other = ObservationNormalizer.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    for cast in (loaded, other, normalizer.to(torch.bfloat16), normalizer.half()):
        assert cast(torch.tensor([[1000.5]])).item() == 1.0
    assert normalizer.to("meta").mean.device.type == "meta"


def test_missing_statistics_raise():
    with pytest.raises(ValueError, match="Statistic 'mean' of the observation normalizer is missing"):
        ObservationNormalizer(2).check()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_that_are_not_finite_are_refused(name, bad):
    statistics = {"mean": torch.zeros(2), "std": torch.ones(2)}
    statistics[name] = torch.tensor([1.0, bad])
    with pytest.raises(ValueError, match=f"Statistic '{name}'"):
        ObservationNormalizer(2).set_statistics(**statistics)


def test_a_negative_deviation_is_refused():
    with pytest.raises(ValueError, match="'std'"):
        ObservationNormalizer(2).set_statistics(torch.zeros(2), torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_of_another_size_are_refused(name):
    statistics = {"mean": torch.zeros(2), "std": torch.ones(2)}
    statistics[name] = torch.ones(3)
    with pytest.raises(ValueError, match=rf"Statistic '{name}' has shape \(3,\), expected \(2,\)"):
        ObservationNormalizer(2).set_statistics(**statistics)


def test_refused_statistics_leave_the_old_ones():
    normalizer = ObservationNormalizer(1).fit(torch.tensor([[1.0], [3.0]]))
    with pytest.raises(ValueError, match="'std'"):
        normalizer.set_statistics(torch.tensor([9.0]), torch.tensor([torch.nan]))
    assert (normalizer.mean.item(), normalizer.std.item()) == (2.0, 1.0)


def test_save_and_load(tmp_path):
    normalizer = ObservationNormalizer(2, clip=3.0).fit(torch.randn(20, 2))
    normalizer.save_pretrained(str(tmp_path))
    loaded = ObservationNormalizer.from_pretrained(str(tmp_path))
    loaded.check()
    observation = torch.randn(5, 2) * 10
    assert torch.equal(loaded(observation), normalizer(observation))
    assert loaded(observation).abs().max() == 3.0
