"""Which action the pipeline chooses, and what it tells about the choice."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pipeline_factory import make_normalizer, make_pipeline, seeded

from spi_diffusers.models import MLPNoiseModel
from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID
from spi_diffusers.pipelines.values import as_floats


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


# ---- input and output


def test_one_observation_or_a_batch_numpy_or_torch(pipe):
    observation = np.random.default_rng(0).normal(size=(4, 3))
    for one in (observation[0], observation[0].astype(np.float32), list(observation[0])):
        action = pipe(one, generator=seeded()).actions
        assert isinstance(action, np.ndarray)
        assert (action.shape, action.dtype) == ((2,), np.float32)
    batch = pipe(observation, generator=seeded()).actions
    assert isinstance(batch, np.ndarray)
    assert batch.shape == (4, 2)
    as_torch = pipe(torch.tensor(observation), generator=seeded()).actions
    assert isinstance(as_torch, torch.Tensor)
    np.testing.assert_array_equal(as_torch.numpy(), batch)
    single = pipe(torch.tensor(observation[0]), generator=seeded()).actions
    assert single.shape == (2,)
    assert pipe(observation[:1]).actions.shape == (1, 2), "a batch of one stays a batch"


def test_the_output_is_a_dict_of_what_is_not_none_in_the_order_of_its_fields(pipe):
    output = pipe(np.zeros(3), generator=0)
    shown = ["actions", "candidates", "safety_weights", "chosen"]
    assert list(output) == [*shown, "reward_values", "safety_values"]
    assert all(output[name] is getattr(output, name) for name in output)
    assert output[1] is output.to_tuple()[1] is output.candidates
    assert output.feasible is None
    output.chosen = None
    output.actions = 1
    assert (output["actions"], len(output)) == (1, 6)


@pytest.mark.parametrize("number", [0.1, -3, 7.5, 1e-50, 2**53 + 1, 1e18])
def test_a_number_is_read_as_an_array_of_it_is(number):
    with np.errstate(all="raise"):
        read, expected = as_floats("x", number), as_floats("x", np.array(number))
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape) == (np.float32, ())
    assert read == expected


@pytest.mark.parametrize(
    "kind",
    [
        lambda rows: rows[::-1][::-1],
        lambda rows: rows.astype(">f8"),
        lambda rows: rows.astype(np.longdouble),
        lambda rows: rows.astype(object),
        lambda rows: np.asfortranarray(rows),
        lambda rows: np.broadcast_to(rows, rows.shape),
        lambda rows: np.ma.masked_array(rows),
        lambda rows: [torch.tensor(row) for row in rows],
        pd.DataFrame,
    ],
)
def test_an_observation_in_any_form_that_numbers_have(pipe, kind):
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32).astype(np.float64)
    expected = pipe(rows, generator=seeded()).actions
    given = kind(rows)
    np.testing.assert_array_equal(pipe(given, generator=seeded()).actions, expected)
    flipped = pipe(rows[::-1], generator=seeded(), num_candidates=1)
    assert flipped.actions.shape == (4, 2)


@pytest.mark.parametrize("seed", [3, np.int64(3), torch.tensor(3)])
def test_a_seed_stands_for_its_generator(pipe, seed):
    expected = pipe(torch.zeros(2, 3), generator=seeded(3)).actions
    assert torch.equal(pipe(torch.zeros(2, 3), generator=seed).actions, expected)


def test_fields_of_the_output(pipe):
    safe = ("expected_returns", "expected_costs", "cost_bounds", "feasible")
    for count, options, values in (
        (11, {"cost_limit": 10.0}, safe),
        (22, {"num_candidates": 22}, ("reward_values", "safety_values")),
    ):
        output = pipe(torch.randn(4, 3), **options)
        every = {"actions": (4, 2), "candidates": (4, count, 2), "chosen": (4,)}
        per_candidate = dict.fromkeys(("safety_weights", *values), (4, count))
        assert {name: tuple(value.shape) for name, value in output.items()} == every | per_candidate
        assert torch.equal(output.actions, output.candidates[torch.arange(4), output.chosen])
        assert output.feasible is None or output.feasible.dtype == torch.bool


def test_tuple_output(pipe):
    observation = torch.randn(4, 3)
    (actions,) = pipe(observation, generator=seeded(), return_dict=False)
    assert torch.equal(actions, pipe(observation, generator=seeded()).actions)


def test_values_are_those_of_the_critics(pipe):
    observation = torch.randn(3, 3)
    paper = pipe(observation, num_candidates=11)
    safe = pipe(observation, cost_budget=5.0, steps_left=30)
    for row in range(3):
        states = pipe.normalizer(observation[row]).expand(11, -1)
        arguments = (states, paper.candidates[row], paper.safety_weights[row])
        reward, safety = (critic(*arguments).values for critic in (pipe.reward_critic, pipe.safety_critic))
        torch.testing.assert_close(paper.reward_values[row], reward.amin(0))
        torch.testing.assert_close(paper.safety_values[row], safety.amin(0))
        arguments = (states, safe.candidates[row], safe.safety_weights[row], torch.full((11,), 30.0))
        rates = pipe.evaluation_critic(*arguments)
        torch.testing.assert_close(safe.expected_returns[row], 30 * rates.reward_rate)
        torch.testing.assert_close(safe.expected_costs[row], 30 * rates.cost_rate[:, 0])


def test_observations_are_normalised(pipe):
    normalizer = make_normalizer()
    normalizer.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 0.5]))
    other = make_pipeline(normalizer=normalizer)
    raw = torch.tensor([[3.0, -2.0, 3.25]])  # normalised: 1, -1, 0.5
    actions = other(raw, generator=seeded()).actions
    torch.testing.assert_close(actions, pipe(torch.tensor([[1.0, -1.0, 0.5]]), generator=seeded()).actions)


def test_no_gradient_and_no_trace_in_the_global_generator(pipe):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    output = pipe(torch.zeros(3), cost_limit=1.0, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert not output.expected_returns.requires_grad


# ---- seeds


def test_the_same_seed_gives_the_same_actions(pipe):
    observation = torch.randn(4, 3)
    first, again, other = (pipe(observation, generator=seeded(s)) for s in (1, 1, 2))
    for name, value in first.items():
        assert torch.equal(again[name], value), name
    assert not torch.equal(other.candidates, first.candidates)


def test_a_generator_goes_on(pipe):
    generator = seeded()
    first, second = (pipe(torch.zeros(3), generator=generator).candidates for _ in range(2))
    assert not torch.equal(first, second)


# ---- candidates


def test_with_a_limit_there_is_one_candidate_for_each_safety_weight(pipe):
    output = pipe(torch.zeros(2, 3), cost_limit=10)
    torch.testing.assert_close(output.safety_weights, torch.tensor([SAFETY_WEIGHT_GRID] * 2))
    given = pipe(torch.zeros(2, 3), cost_limit=10, safety_weight=0.75)
    assert given.safety_weights.tolist() == [[0.75]] * 2


@pytest.mark.parametrize("options", [{}, {"safety_weight": 0.5}])
def test_a_number_of_candidates_has_no_effect_on_safe_extraction_and_is_refused(pipe, options):
    for told in ({"cost_limit": 10}, {"cost_budget": 3, "steps_left": 20}):
        with pytest.raises(ValueError, match=r"num_candidates is for extraction='reward'"):
            pipe(torch.zeros(2, 3), num_candidates=50, **told, **options)


@given(st.integers(1, 40))
def test_number_of_candidates(count):
    assert make_pipeline()(torch.zeros(3), num_candidates=count).candidates.shape == (1, count, 2)


def test_a_given_safety_weight_is_that_of_all_candidates(pipe):
    output = pipe(torch.zeros(3), safety_weight=0.75, num_candidates=7)
    assert output.safety_weights.tolist() == [[0.75] * 7]


def test_without_a_limit_the_safety_weight_is_a_half(pipe):
    assert pipe(torch.zeros(3)).safety_weights.unique().tolist() == [0.5]


def test_an_unconditioned_policy_draws_all_its_candidates_alike():
    output = make_pipeline(conditioned=False)(torch.zeros(2, 3))
    assert output.candidates.shape == (2, 50, 2)
    assert output.safety_weights.isnan().all()


# ---- action range


def test_actions_come_back_in_the_environments_range():
    low, high = [-2.0, 0.0], [2.0, 10.0]
    unit = make_pipeline()
    scaled = make_pipeline(noise_options={"action_low": low, "action_high": high})
    observation = torch.randn(4, 3)
    expected, output = (pipe(observation, cost_limit=50, generator=seeded()) for pipe in (unit, scaled))
    torch.testing.assert_close(output.candidates[..., 0], 2 * expected.candidates[..., 0])
    torch.testing.assert_close(output.candidates[..., 1], 5 * (1 + expected.candidates[..., 1]))
    # The critics see actions in [-1, 1].
    torch.testing.assert_close(output.expected_returns, expected.expected_returns)
    assert torch.equal(output.chosen, expected.chosen)


bounds = st.tuples(st.floats(-50, 50), st.floats(1e-3, 100))


@given(bounds, st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=10))
def test_range_maps_invert_each_other(bound, actions):
    low, high = bound[0], bound[0] + bound[1]
    model = MLPNoiseModel(3, 1, hidden_dims=[2], action_low=low, action_high=high)
    action = torch.tensor(actions).unsqueeze(1)
    back = model.from_environment_range(model.to_environment_range(action))
    torch.testing.assert_close(back, action, atol=1e-5 * (1 + abs(low) / bound[1]), rtol=0)


@given(bounds, st.floats(-1, 1, width=32))
@example((-4.0, 2.4), 1.0)
def test_no_action_leaves_the_range_by_rounding(bound, action):
    """Otherwise `action_space.contains` is False and a strict environment refuses it."""
    low, high = np.float32(bound[0]), np.float32(bound[0] + bound[1])
    model = MLPNoiseModel(3, 1, hidden_dims=[2], action_low=float(low), action_high=float(high))
    for value in (action, -1.0, 1.0):
        scaled = model.to_environment_range(torch.tensor([[value]])).numpy()
        assert low <= scaled[0, 0] <= high


@pytest.mark.parametrize("kind", [np.int64, np.array, torch.tensor], ids=["int64", "array", "tensor"])
def test_counts_of_other_libraries_are_counts(pipe, kind):
    wanted = {"num_candidates": 12, "num_inference_steps": 3}
    given = {name: kind(count) for name, count in wanted.items()}
    expected = pipe(torch.zeros(3), **wanted, generator=0).candidates
    assert torch.equal(pipe(torch.zeros(3), **given, generator=0).candidates, expected)
