"""What users of diffusers do with any pipeline: it works with a policy too, or says why not."""

import pytest
import torch
from pipeline_factory import make_normalizer, make_pipeline, seeded

from spi_diffusers.models import GaussianActor
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

RECORD = {"config": {}, "info": {"algorithm": "spi"}}


def candidates(pipe):
    return pipe(torch.zeros(2, 3), cost_limit=5.0, generator=seeded()).candidates


def offload_as_a_model(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def offload_in_sequence(pipe):
    pipe.enable_sequential_cpu_offload(device="cpu")


def offload_in_groups(pipe):
    pipe.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_as_a_model, offload_in_sequence, offload_in_groups])
def test_with_offloading_it_acts_on_the_device_and_is_saved(tmp_path, offload):
    pipe = make_pipeline()
    expected = candidates(pipe)
    offload(pipe)
    assert torch.equal(candidates(pipe), expected)
    pipe.maybe_free_model_hooks()
    pipe.remove_all_hooks()
    assert torch.equal(candidates(pipe.to("cpu")), expected)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(candidates(SPIPolicyPipeline.from_pretrained(tmp_path)), expected)
    baseline = BaselinePolicyPipeline(GaussianActor(3, 2, hidden_dims=[4]), make_normalizer())
    offload(baseline)
    assert baseline(torch.zeros(3)).shape == (2,)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_offloading_without_an_accelerator_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"no accelerator: name a device"):
        make_pipeline().enable_model_cpu_offload()


def test_a_pipeline_from_another_one_has_its_components_and_settings():
    pipe = make_pipeline(max_episode_steps=77)
    pipe.training_record = RECORD
    same = SPIPolicyPipeline.from_pipe(pipe)
    assert torch.equal(candidates(same), candidates(pipe))
    assert (same.config.max_episode_steps, same.is_as_trained) == (77, True)
    other = SPIPolicyPipeline.from_pipe(pipe, gamma=0.6, normalizer=make_normalizer())
    assert (other.config.gamma, other.noise_model) == (0.6, pipe.noise_model)
    assert other.training_record == RECORD
    assert not other.is_as_trained
    again = SPIPolicyPipeline(**pipe.components, **pipe.parameters)
    assert torch.equal(candidates(again), candidates(pipe))


def test_a_baseline_from_another_one():
    pipe = BaselinePolicyPipeline(GaussianActor(3, 2, hidden_dims=[4]), make_normalizer(), cost_limit=3.0)
    assert BaselinePolicyPipeline.from_pipe(pipe).config.cost_limit == 3.0
    with pytest.raises(ValueError, match="expected"):
        SPIPolicyPipeline.from_pipe(pipe)
