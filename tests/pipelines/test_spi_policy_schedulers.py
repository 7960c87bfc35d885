"""Other diffusers schedulers in place of DDPM."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from pipeline_factory import exact_pipeline, make_pipeline, seeded

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

SWAPS = {
    "DDIM": (DDIMScheduler, {"timestep_spacing": "leading"}),
    "DDIM trailing": (DDIMScheduler, {"timestep_spacing": "trailing"}),
    "DDPM trailing": (DDPMScheduler, {"timestep_spacing": "trailing"}),
    "DDPM fixed_large": (DDPMScheduler, {"variance_type": "fixed_large"}),
    "DDPM thresholding": (DDPMScheduler, {"thresholding": True, "sample_max_value": 1.0}),
    "DPM-Solver++": (
        DPMSolverMultistepScheduler,
        {"timestep_spacing": "trailing", "thresholding": True, "sample_max_value": 1.0},
    ),
    "UniPC": (UniPCMultistepScheduler, {"timestep_spacing": "trailing"}),
    "Euler": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "LMS": (LMSDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "Heun": (HeunDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "KDPM2": (KDPM2DiscreteScheduler, {"timestep_spacing": "trailing"}),
}


def swap(pipe, name):
    scheduler_class, options = SWAPS[name]
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **options)
    return pipe


@pytest.mark.parametrize("name", SWAPS)
def test_every_scheduler_recovers_the_action_that_an_exact_noise_model_knows(name):
    pipe = swap(exact_pipeline(), name)
    observation = torch.rand(6, 2) * 2 - 1
    candidates = pipe(observation, num_candidates=3, generator=seeded()).candidates
    expected = observation.unsqueeze(1).expand(-1, 3, -1)
    torch.testing.assert_close(candidates, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", SWAPS)
def test_seeds_range_and_limits_work_as_with_ddpm(name):
    pipe = swap(make_pipeline(), name)
    observation = torch.randn(4, 3)
    first, again, other = (pipe(observation, cost_limit=10, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first.candidates, again.candidates)
    # There is no noise at the start, but these draw some in their own steps.
    draws_noise = name in ("DDPM fixed_large", "DDPM thresholding")
    assert torch.equal(first.candidates, other.candidates) != draws_noise
    assert first.candidates.abs().max() <= 1
    assert first.candidates.shape == (4, 11, 2)
    assert pipe(observation[0].numpy(), generator=seeded()).actions.shape == (2,)


# DDIM's trailing spacing with a number of steps that does not divide T stops one step early (diffusers).
@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, steps) for name in ("DDIM", "DDPM trailing", "DPM-Solver++") for steps in (1, 2, 3)]
    + [("DDIM trailing", 1), ("DDIM trailing", 5)],
)
def test_fewer_steps(name, steps):
    pipe = swap(exact_pipeline(), name)
    observation = torch.rand(6, 2) * 2 - 1
    candidates = pipe(observation, num_candidates=3, num_inference_steps=steps, generator=seeded()).candidates
    torch.testing.assert_close(candidates, observation.unsqueeze(1).expand(-1, 3, -1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_fast_path_equals_ddpms_own_steps(steps):
    """A subclass takes the general path; 2 x 8 numbers per draw, so that both paths draw the same noise."""

    class OtherDDPM(DDPMScheduler):
        pass

    observation = torch.randn(2, 3)
    outputs = []
    for scheduler_class in (DDPMScheduler, OtherDDPM):
        pipe = make_pipeline()
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
        options = {"num_candidates": 8, "num_inference_steps": steps}
        outputs.append(pipe(observation, generator=seeded(), **options).candidates)
    torch.testing.assert_close(*outputs, atol=2e-6, rtol=1e-5)


def test_a_swapped_scheduler_is_used_at_once_and_swapping_back_restores_the_actions():
    pipe, observation = make_pipeline(), torch.randn(2, 3)
    original = pipe.scheduler
    before = pipe(observation, generator=seeded()).candidates
    for name in ("DDIM", "Euler"):
        assert not torch.equal(swap(pipe, name)(observation, generator=seeded()).candidates, before)
    pipe.scheduler = original
    assert torch.equal(pipe(observation, generator=seeded()).candidates, before)
    # Neither settings nor the number of steps are remembered.
    pipe.scheduler.register_to_config(clip_sample=False)
    assert not torch.equal(pipe(observation, generator=seeded()).candidates, before)
    pipe.scheduler.register_to_config(clip_sample=True)
    assert torch.equal(pipe(observation, generator=seeded()).candidates, before)
    pipe(observation, num_inference_steps=2)
    assert torch.equal(pipe(observation, generator=seeded()).candidates, before)


def test_a_solver_that_gives_no_finite_actions_says_what_to_do():
    pipe = make_pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    with pytest.raises(ValueError, match=r"DPMSolverMultistepScheduler.*timestep_spacing='trailing'"):
        pipe(torch.zeros(3), generator=seeded())


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_a_scheduler_that_expects_another_prediction_is_refused(prediction_type):
    pipe = make_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction_type)
    with pytest.raises(ValueError, match="prediction_type"):
        pipe(torch.zeros(3))


@pytest.mark.parametrize("scheduler", ["DDPM", "DDIM", "DPM-Solver++", "Euler"])
@pytest.mark.parametrize("steps", [6, 0, -1])
def test_a_number_of_steps_that_it_was_not_trained_with_is_refused(scheduler, steps):
    pipe = make_pipeline() if scheduler == "DDPM" else swap(make_pipeline(), scheduler)
    with pytest.raises(
        ValueError, match=rf"^num_inference_steps must be a whole number in \[1, 5\], got {steps}"
    ):
        pipe(torch.zeros(3), num_inference_steps=steps)


@pytest.mark.parametrize(
    "scheduler", [PNDMScheduler, DEISMultistepScheduler, FlowMatchEulerDiscreteScheduler]
)
def test_a_scheduler_that_ends_at_other_actions_is_refused(scheduler):
    pipe = make_pipeline()
    pipe.scheduler = scheduler()
    with pytest.raises(ValueError, match=rf"^A {scheduler.__name__} cannot denoise actions; use one of DDPM"):
        pipe(torch.zeros(3))


# ---- threads


@pytest.mark.parametrize("name", [None, *SWAPS])
def test_threads_that_share_a_policy_get_the_actions_of_their_seeds(name):
    pipe = make_pipeline() if name is None else swap(make_pipeline(), name)
    observation = torch.randn(2, 3)

    def act(seed):
        steps = (1, 5) if name == "DDIM trailing" else (1, 2, 3, 5)
        options = {"num_inference_steps": steps[seed % len(steps)], "num_candidates": 6}
        return pipe(observation, generator=seeded(seed), **options).candidates

    seeds = range(24)
    alone = [act(seed) for seed in seeds]
    before, content = dict(vars(pipe.scheduler)), repr(vars(pipe.scheduler))
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(act, seeds))
    assert all(map(torch.equal, together, alone))
    assert all(vars(pipe.scheduler)[key] is value for key, value in before.items()), "it is not changed"
    assert repr(before) == content, "nor is what it holds"
