"""The noise model against the reference it replaces: `DDPMScheduler.step`."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import EMAModel

from spi_diffusers.algorithms.networks import FusedAdam
from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import MLPNoiseModel
from spi_diffusers.models.noise_model import FEW


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    return MLPNoiseModel(**({"observation_dim": 3, "action_dim": 2, "hidden_dims": [16, 16]} | options))


def loop_of_scheduler_steps(model, scheduler, steps, observation, weight, seed):
    """The same chain, by diffusers; the generator gives the start and then one noise per step."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(len(observation), 2, generator=generator)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        predicted = model(sample, timestep, observation, weight).sample
        sample = scheduler.step(predicted, timestep, sample, generator=generator).prev_sample
    return sample


@pytest.mark.parametrize(
    ("train_steps", "steps"), [(1, 1), (2, 2), (5, 5), (5, 3), (5, 2), (5, 1), (10, 4), (50, 7)]
)
@pytest.mark.parametrize("conditioned", [True, False])
def test_denoise_equals_scheduler_steps_with_the_same_noise(train_steps, steps, conditioned):
    model = make_model(use_safety_weight=conditioned).eval()
    scheduler = make_scheduler(SPIConfig(num_train_timesteps=train_steps))
    observation, weight = torch.randn(7, 3), torch.rand(7) if conditioned else None
    with torch.no_grad():
        expected = loop_of_scheduler_steps(model, scheduler, steps, observation, weight, seed=11)
        generator = torch.Generator().manual_seed(11)
        noise = torch.stack([torch.randn(7, 2, generator=generator) for _ in range(steps)])
        coefficients = MLPNoiseModel.ddpm_coefficients(scheduler, steps)
        action = model.denoise(observation, weight, coefficients, noise)
    torch.testing.assert_close(action, expected, atol=2e-6, rtol=1e-5)
    assert coefficients.shape == (steps, 6)
    assert action.abs().max() <= 1


def test_the_start_alone_means_no_noise_in_the_steps():
    model, coefficients = make_model(), MLPNoiseModel.ddpm_coefficients(make_scheduler(SPIConfig()))
    observation, weight, start = torch.randn(7, 3), torch.rand(7), torch.randn(1, 7, 2)
    with torch.no_grad():
        expected = model.denoise(observation, weight, coefficients, torch.cat([start, torch.zeros(4, 7, 2)]))
        assert torch.equal(model.denoise(observation, weight, coefficients, start), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_a_temperature_multiplies_all_noise(temperature):
    model, scheduler = make_model(), make_scheduler(SPIConfig())
    observation, weight = torch.randn(7, 3), torch.rand(7)
    noise = torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        coefficients = MLPNoiseModel.ddpm_coefficients(scheduler)
        expected = model.denoise(observation, weight, coefficients, temperature * noise)
        generator = torch.Generator().manual_seed(11)
        action = model.sample(scheduler, observation, weight, None, generator, temperature)
    assert torch.equal(action, expected)


def test_at_temperature_zero_no_noise_is_drawn_and_each_observation_has_one_action():
    model, scheduler = make_model(), make_scheduler(SPIConfig())
    observation, weight = torch.randn(1, 3).expand(4, -1), torch.full((4,), 0.3)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, again = (model.sample(scheduler, observation, weight, temperature=0.0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, first[:1].expand(4, -1))


def test_a_scheduler_of_another_kind_starts_from_the_noise_times_the_temperature():
    model, scheduler = make_model(), DDIMScheduler(5, clip_sample=True)
    observation, weight = torch.randn(4, 3), torch.rand(4)
    with torch.no_grad():
        cold, other = (
            model.sample(scheduler, observation, weight, None, torch.Generator().manual_seed(seed), 0.0)
            for seed in (0, 1)
        )
        sample = torch.zeros(4, 2)
        scheduler.set_timesteps(5)
        for timestep in scheduler.timesteps:
            predicted = model(sample, timestep, observation, weight).sample
            sample = scheduler.step(predicted, timestep, sample).prev_sample
    assert torch.equal(cold, other)
    torch.testing.assert_close(cold, sample)


def test_denoise_follows_a_scheduler_with_other_betas():
    model = make_model()
    scheduler = DDPMScheduler(20, beta_start=0.01, beta_end=0.4, clip_sample=True)
    observation, weight = torch.randn(5, 3), torch.rand(5)
    with torch.no_grad():
        expected = loop_of_scheduler_steps(model, scheduler, 20, observation, weight, seed=3)
        generator = torch.Generator().manual_seed(3)
        noise = torch.stack([torch.randn(5, 2, generator=generator) for _ in range(20)])
        action = model.denoise(observation, weight, MLPNoiseModel.ddpm_coefficients(scheduler), noise)
    torch.testing.assert_close(action, expected, atol=2e-6, rtol=1e-5)


def test_coefficients_by_hand():
    # alpha-bars 0.8 and 0.4: alpha_2 = 0.5, beta_2 = 0.5.
    scheduler = DDPMScheduler(2, trained_betas=[0.2, 0.5])
    second, first = MLPNoiseModel.ddpm_coefficients(scheduler).tolist()
    assert second == pytest.approx(
        [
            1,
            0.4**-0.5,
            1.5**0.5,
            0.8**0.5 * 0.5 / 0.6,  # sqrt(alpha-bar_1) beta_2 / (1 - alpha-bar_2)
            0.5**0.5 * 0.2 / 0.6,  # sqrt(alpha_2) (1 - alpha-bar_1) / (1 - alpha-bar_2)
            (0.5 * 0.2 / 0.6) ** 0.5,
        ]
    )
    # The last step returns x0 itself, without noise.
    assert first == pytest.approx([0, 0.8**-0.5, 0.25**0.5, 1, 0, 0])


def test_each_row_is_its_own():
    """Rows do not see one another, whatever is batched."""
    model = make_model().eval()
    action, observation, weight = torch.randn(6, 2), torch.randn(6, 3), torch.rand(6)
    timestep = torch.tensor([0, 1, 2, 3, 4, 0])
    with torch.no_grad():
        together = model(action, timestep, observation, weight).sample
        apart = [
            model(action[i : i + 1], int(timestep[i]), observation[i : i + 1], weight[i : i + 1]).sample
            for i in range(6)
        ]
    torch.testing.assert_close(together, torch.cat(apart))
    assert together.shape == (6, 2)


@pytest.mark.parametrize("what", ["action", "timestep", "observation", "weight"])
def test_every_input_matters(what):
    inputs = {
        "action": torch.zeros(1, 2),
        "timestep": torch.tensor([0]),
        "observation": torch.zeros(1, 3),
        "weight": torch.zeros(1),
    }
    model = make_model()
    before = model(*inputs.values()).sample
    inputs[what] = inputs[what] + 1
    assert not torch.allclose(model(*inputs.values()).sample, before, atol=1e-5)


def test_return_dict_and_activations():
    arguments = (torch.randn(2, 2), 1, torch.randn(2, 3), torch.rand(2))
    outputs = []
    for activation in ("silu", "mish", "gelu", "relu"):
        model = make_model(activation=activation)
        assert torch.equal(model(*arguments).sample, model(*arguments, return_dict=False)[0])
        outputs.append(model(*arguments).sample)
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 4


def test_a_safety_weight_is_needed_or_refused():
    with pytest.raises(ValueError, match="needs a safety weight"):
        make_model()(torch.zeros(1, 2), 0, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="does not take a safety weight"):
        make_model(use_safety_weight=False)(torch.zeros(1, 2), 0, torch.zeros(1, 3), torch.zeros(1))


def test_bfloat16_stays_close_and_denoised_actions_are_float32():
    model = make_model()
    low = make_model().to(torch.bfloat16)
    observation, weight, noise = torch.randn(64, 3), torch.rand(64), torch.randn(5, 64, 2)
    coefficients = MLPNoiseModel.ddpm_coefficients(make_scheduler(SPIConfig()))
    with torch.no_grad():
        action = model.denoise(observation, weight, coefficients, noise)
        rough = low.denoise(observation, weight, coefficients, noise)
    assert rough.dtype == torch.float32
    assert (rough - action).abs().mean() < 0.02


def test_save_and_load(tmp_path):
    model = make_model(action_low=[-1.0, 0.0], action_high=[1.0, 2.0])
    model.save_pretrained(str(tmp_path))
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    loaded = MLPNoiseModel.from_pretrained(str(tmp_path))
    assert list(loaded.config.action_high) == [1.0, 2.0]
    arguments = (torch.randn(2, 2), 1, torch.randn(2, 3), torch.rand(2))
    assert torch.equal(loaded(*arguments).sample, model(*arguments).sample)


@pytest.mark.parametrize(
    "options",
    [
        {"observation_dim": 0},
        {"action_dim": 0},
        {"hidden_dims": [16, 0]},
        {"time_embed_dim": 7},
        {"time_embed_dim": 0},
    ],
)
def test_bad_sizes(options):
    with pytest.raises(ValueError, match="at least 1 and time_embed_dim even"):
        make_model(**options)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1.0, 1.0, "action_low must lie below action_high"),
        (-1.0, float("inf"), "finite"),
        (float("nan"), 1.0, "finite"),
        ([-1.0, -1.0, -1.0], 1.0, "need 1 or 2 numbers, got 3 and 2"),
    ],
)
def test_bad_action_ranges(low, high, message):
    with pytest.raises(ValueError, match=message):
        make_model(action_low=low, action_high=high)


def test_acting_is_the_same_before_and_after_calls_with_gradients():
    """What is kept between calls serves all of them, wherever it was made."""
    model = make_model(time_embed_dim=22)  # a size that no other test has made anything for
    coefficients = MLPNoiseModel.ddpm_coefficients(make_scheduler(SPIConfig()))
    arguments = (torch.randn(4, 3), torch.rand(4), coefficients, torch.randn(5, 4, 2))
    with torch.inference_mode():
        first = model.denoise(*arguments)
    with_gradient = model.denoise(*arguments)
    with_gradient.sum().backward()
    assert model.time_mlp[0].weight.grad.abs().sum() > 0
    torch.testing.assert_close(first, with_gradient.detach())
    low = make_model(time_embed_dim=22).to(torch.bfloat16)
    assert torch.isfinite(low.denoise(*arguments)).all()


@pytest.mark.parametrize("batch", [1, 2, FEW - 1, FEW, 50])
def test_few_rows_are_denoised_as_many_are(batch):
    model, coefficients = make_model().eval(), MLPNoiseModel.ddpm_coefficients(make_scheduler(SPIConfig()))
    observation, weight, noise = torch.randn(batch, 3), torch.rand(batch), torch.randn(5, batch, 2)
    with torch.no_grad():
        acted = model.denoise(observation, weight, coefficients, noise)
        trained = model.train().denoise(observation, weight, coefficients, noise)
    assert acted.shape == (batch, 2)
    assert acted.is_contiguous()
    torch.testing.assert_close(acted, trained, atol=1e-6, rtol=1e-5)


def test_acting_sees_every_change_of_the_weights():
    """What acting works with must never be stale, whoever changes the weights, and in whatever way."""
    model, other = MLPNoiseModel(3, 2, hidden_dims=[16, 16]), MLPNoiseModel(3, 2, hidden_dims=[16, 16])
    scheduler = DDPMScheduler(num_train_timesteps=3)
    coefficients = MLPNoiseModel.ddpm_coefficients(scheduler)
    observation, weight, noise = torch.randn(5, 3), torch.rand(5), torch.randn(3, 5, 2)

    def act(network):
        with torch.no_grad():
            return network.denoise(observation, weight, coefficients, noise)

    def check():
        model.eval()
        acted = act(model)
        differentiable = model.denoise(observation, weight, coefficients, noise)  # through the modules
        torch.testing.assert_close(acted, differentiable.detach())

    check()
    model.load_state_dict(other.state_dict())
    check()
    with torch.no_grad():
        model.net[0].weight.mul_(1.5)
    check()
    model.net[2].weight = torch.nn.Parameter(torch.randn_like(model.net[2].weight))
    check()
    model.net[2].bias.data = torch.randn_like(model.net[2].bias)
    check()
    model.net[4].weight.data.mul_(1.5)  # without a new version
    check()
    average = EMAModel(other.parameters())
    average.copy_to(model.parameters())
    check()
    for optimizer in (torch.optim.AdamW(model.parameters(), fused=True), FusedAdam(model.parameters(), 0.1)):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for _ in range(2):
            getattr(optimizer, "fused_step", optimizer.step)()
            check()
