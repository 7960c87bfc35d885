"""Training, acting and tables do not depend on what a process has set for NumPy, torch and decimal."""

import contextlib
import decimal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from pipeline_factory import full_pipeline, make_normalizer, make_pipeline, seeded

from spi_diffusers import BaselinePolicyPipeline, SPIPolicyPipeline, train
from spi_diffusers.evaluation.summary import shown
from spi_diffusers.models import GaussianActor
from spi_diffusers.numerics import own_numerics


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES = {
    "errors for tiny numbers": lambda: np.errstate(all="raise"),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "no gradients": torch.no_grad,
    "three digits": lambda: decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact])),
}


def weights(policy):
    parts = [policy.components[name] for name in sorted(policy.components)]
    return [value for part in parts for value in part.state_dict().values()]


def act(policy):
    observation = np.linspace(-1e-30, 1.0, 6).reshape(2, 3)
    with_limit = policy(observation, cost_limit=3, generator=seeded())
    fed_back = policy(torch.from_numpy(observation), cost_budget=1e-30, steps_left=3, generator=seeded())
    return [*with_limit.values(), *fed_back.values()]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("last", [0, 1], ids=["the first ends last", "the second ends last"])
def test_of_two_jobs_the_last_to_end_puts_the_default_type_back(last):
    with default_dtype(torch.bfloat16), ThreadPoolExecutor(1) as thread:
        jobs = [own_numerics(), own_numerics()]
        calls = [lambda call: call(), lambda call: thread.submit(call).result()]  # each in its own thread
        for job, run in zip(jobs, calls, strict=True):
            run(job.__enter__)
            assert torch.get_default_dtype() == torch.float32
        for index, expected in ((1 - last, torch.float32), (last, torch.bfloat16)):
            calls[index](partial(jobs[index].__exit__, None, None, None))
            assert torch.get_default_dtype() == expected


@pytest.fixture(scope="module")
def trained(small_file):
    return short_training(small_file)


def short_training(dataset, algorithm="bc"):
    return train("ballcircle", dataset=dataset, algorithm=algorithm, updates=3, batch_size=8, progress=False)


@pytest.mark.parametrize("state", STATES)
def test_the_same_actions_are_taken(saved, state):
    expected = act(SPIPolicyPipeline.from_pretrained(saved))
    swapped = make_pipeline()
    swapped.scheduler = DDIMScheduler.from_config(swapped.scheduler.config)
    expected_by_steps = act(swapped)
    with STATES[state]():
        same(act(SPIPolicyPipeline.from_pretrained(saved)), expected)
        same(act(DiffusionPipeline.from_pretrained(str(saved), trust_remote_code=True)), expected)
        same(act(full_pipeline()), expected)
        same(act(swapped), expected_by_steps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_callers_autocast_does_not_reach_the_policy(saved, dtype):
    policy = SPIPolicyPipeline.from_pretrained(saved)
    baseline = BaselinePolicyPipeline(GaussianActor(3, 2, hidden_dims=[4]), make_normalizer())
    observation = np.linspace(0.1, 1.0, 6).reshape(2, 3)
    expected = act(policy), baseline(observation, generator=seeded())
    with torch.autocast("cpu", dtype):
        assert not torch.equal(torch.ones(2, 2) @ torch.full((2, 2), 0.1), torch.full((2, 2), 0.2))
        same(act(policy), expected[0])
        same(baseline(observation, generator=seeded()), expected[1])


def test_a_type_that_is_asked_for_is_taken(saved):
    for options in ({}, {"low_cpu_mem_usage": False}):
        with default_dtype(torch.float64):
            half = SPIPolicyPipeline.from_pretrained(saved, torch_dtype=torch.float16, **options)
        assert (half.noise_model.dtype, half.normalizer.mean.dtype) == (torch.float16, torch.float32)
        output = half(np.zeros((2, 3)), cost_limit=3)
        assert (output.actions.dtype, output.cost_bounds.dtype) == (np.float32, torch.float32)


@pytest.mark.parametrize("state", STATES)
def test_the_same_is_learned(small_file, trained, state):
    assert isinstance(trained, BaselinePolicyPipeline)
    with STATES[state]():
        before = torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()
        found = weights(short_training(small_file))
        assert before == (torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr())
    expected = weights(trained)
    same(found, expected)


@pytest.mark.parametrize("state", STATES)
def test_figures_are_shown_alike(state):
    with STATES[state]():
        figures = [shown(value) for value in (0.895, 1234567.125, -0.0049, 1e27, 4.5e41, 1e12, 1e-300)]
    assert figures == ["0.90", "1234567.13", "-0.00", "1e+27", "4.5e+41", "1e+12", "0.00"]
