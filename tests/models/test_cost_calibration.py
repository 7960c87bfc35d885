import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.models import CostCalibration


def make_calibration(allowed, realised):
    return CostCalibration(num_knots=len(allowed)).set_curve(torch.tensor(allowed), torch.tensor(realised))


steps = st.lists(st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)), min_size=1, max_size=8)


def curve_of(steps):
    allowed, realised = torch.tensor(steps, dtype=torch.float64).cumsum(0).float().unbind(1)
    return allowed.tolist(), realised.tolist()


def test_a_curve_by_hand():
    # Held to 1 it costs 2, held to 3 it costs 4.
    calibration = make_calibration([1.0, 3.0], [2.0, 4.0])
    wanted = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 8.0])
    # Through the origin below the first knot; linear between; proportional (3/4) above the last.
    assert calibration(wanted).tolist() == [0.0, 0.5, 1.0, 2.0, 3.0, 6.0]


@given(steps)
def test_the_curve_is_inverted_at_its_knots(steps):
    allowed, realised = curve_of(steps)
    torch.testing.assert_close(
        make_calibration(allowed, realised)(torch.tensor(realised)), torch.tensor(allowed)
    )


@given(steps, st.lists(st.floats(0, 200), min_size=2, max_size=20))
def test_a_larger_wanted_rate_never_allows_less(steps, wanted):
    wanted_rates = torch.tensor(sorted(wanted))
    allowed = make_calibration(*curve_of(steps))(wanted_rates)
    assert (allowed >= 0).all()
    assert torch.isfinite(allowed).all()
    assert (allowed.diff() >= -1e-4 * allowed[1:]).all(), "up to rounding"


def test_any_shape_is_kept():
    calibration = make_calibration([1.0, 2.0], [1.0, 2.0])
    for shape in [(), (3,), (2, 3)]:
        wanted = torch.rand(shape) * 3
        torch.testing.assert_close(calibration(wanted), wanted)


@pytest.mark.parametrize("name", ["allowed_rates", "realised_rates"])
@pytest.mark.parametrize(
    "bad", [[1.0, 1.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 1.0], [1.0, float("nan")], [1.0, float("inf")]]
)
def test_a_curve_that_cannot_be_inverted_is_refused(name, bad):
    curve = {"allowed_rates": torch.tensor([1.0, 2.0]), "realised_rates": torch.tensor([1.0, 2.0])}
    curve[name] = torch.tensor(bad)
    with pytest.raises(ValueError, match=name):
        CostCalibration(num_knots=2).set_curve(**curve)


def test_a_curve_that_was_never_set_is_refused():
    with pytest.raises(ValueError, match="allowed_rates must be finite"):
        CostCalibration(num_knots=2).check()


def test_a_refused_curve_leaves_the_old_one():
    calibration = CostCalibration(2).set_curve(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    with pytest.raises(ValueError, match="realised_rates must be finite, positive and increasing"):
        calibration.set_curve(torch.tensor([5.0, 6.0]), torch.tensor([3.0, 1.0]))
    assert calibration.allowed_rates.tolist() == [1.0, 2.0]
    assert calibration.realised_rates.tolist() == [3.0, 4.0]


def test_a_wrong_number_of_knots_is_refused():
    with pytest.raises(ValueError, match=r"realised_rates has shape \(3,\), expected \(2,\)"):
        CostCalibration(num_knots=2).set_curve(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))


def test_a_calibration_without_knots_is_refused():
    with pytest.raises(ValueError, match="num_knots"):
        CostCalibration(num_knots=0)


def test_save_and_load(tmp_path):
    calibration = make_calibration([1.0, 3.0], [2.0, 4.0])
    calibration.save_pretrained(str(tmp_path))
    loaded = CostCalibration.from_pretrained(str(tmp_path))
    loaded.check()
    assert torch.equal(loaded(torch.tensor([1.0, 5.0])), calibration(torch.tensor([1.0, 5.0])))


def test_in_half_precision_knots_side_by_side_stay_two(tmp_path):
    realised = torch.tensor([0.01, 0.010001])
    made = CostCalibration(2).set_curve(torch.tensor([0.01, 0.02]), realised)
    made.save_pretrained(str(tmp_path))
    for name in ("torch_dtype", "dtype"):
        loaded = CostCalibration.from_pretrained(str(tmp_path), **{name: torch.float16})
        loaded.check()
        assert torch.equal(loaded.realised_rates, realised)
    for cast in (made.half(), made.to(torch.bfloat16)):
        assert torch.equal(cast.realised_rates, realised)
