"""One update of SPI: what it changes, what it reads, and that how it is run does not matter."""

import copy
import dataclasses

import pytest
import torch
from spi_factory import differing, fixed_weights, make_inputs, make_networks, make_spi, train, weights_of

from spi_diffusers.algorithms.losses import td_loss
from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.algorithms.spi import REWARD, SAFETY, SPI
from spi_diffusers.config.algorithm_settings import SPIConfig

CONFIGS = {
    "default": SPIConfig(),
    "chain": SPIConfig(guidance="chain", num_train_timesteps=3),
    "recorded next action": SPIConfig(next_action="dataset"),
    "the paper's": fixed_weights(guidance="chain"),
}


def of(part: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(part + "/")}


# ---- how it is run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_overlapping_halves_give_the_same_bits(config, dtype):
    runs = [make_spi(config, Compute(dtype, overlap=overlap)) for overlap in (False, True)]
    metrics = [train(run, 6) for run in runs]
    assert differing(weights_of(runs[0]), weights_of(runs[1])) == []
    assert metrics[0] == metrics[1]
    assert len(differing(weights_of(runs[0]), weights_of(make_spi(config)))) > 10, "training changed weights"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bfloat16_stays_close_to_float32(config):
    exact, rough = make_spi(config), make_spi(config, Compute(torch.bfloat16))
    histories = [train(spi, 20) for spi in (exact, rough)]
    # Before rounding can send the two runs different ways, the losses are those of the same weights.
    for name, value in histories[0][0].items():
        assert histories[1][0][name] == pytest.approx(value, rel=0.03, abs=0.02)
    for name, value in weights_of(exact).items():
        other = weights_of(rough)[name]
        assert other.dtype == torch.float32, "weights stay in float32"
        assert (other - value).abs().mean() < 1e-3, f"{name}: after 20 steps of at most 3e-4 each"


def test_overlap_with_several_processes_is_refused():
    with pytest.raises(ValueError, match="overlap needs a single process"):
        make_spi(None, Compute(overlap=True, reduce_gradients=lambda gradients: None))


def test_gradients_can_be_averaged_over_processes():
    """Two halves of a batch, their gradients averaged, give the step of the whole batch."""
    config = fixed_weights(guidance_scale="none")
    whole = make_spi(config, max_grad_norm=0)
    inputs = whole.prepare(make_inputs(config))
    upcoming = make_inputs(config, 1)
    parts = [_rows(inputs, slice(0, 8)), _rows(inputs, slice(8, 16))]
    gradients: list[list[torch.Tensor]] = [[], []]
    for rank in range(2):
        spi = make_spi(config, Compute(reduce_gradients=_recorder(gradients[rank])), max_grad_norm=0)
        spi.update(parts[rank], upcoming)
    means = [(a + b) / 2 for a, b in zip(*gradients, strict=True)]
    averaged = make_spi(config, Compute(reduce_gradients=_replayer(means)), max_grad_norm=0)
    averaged.update(parts[0], upcoming)
    whole.update(inputs, upcoming)
    for name, value in weights_of(whole).items():
        # Adam's first step is the learning rate times a sign: compare where no gradient is about zero.
        difference = (weights_of(averaged)[name] - value).abs()
        assert difference.max() < 1e-4, name


def _rows(inputs, rows):
    changes = {}
    for name, value in inputs.tensors().items():
        if name in ("chain_noise", "guidance_noise"):
            changes[name] = value[:, rows]
        elif name != "twin":
            changes[name] = value[rows]
    return dataclasses.replace(inputs, **changes)


def _recorder(into):
    return lambda gradients: into.extend(gradient.clone() for gradient in gradients)


def _replayer(means):
    left = list(means)

    def reduce(gradients):
        for gradient in gradients:
            gradient.copy_(left.pop(0))

    return reduce


# ---- what it changes


def test_the_halves_write_their_own_weights_only():
    spi = make_spi()
    inputs = spi.prepare(make_inputs(spi.config))
    before = weights_of(spi)
    spi._update_critics(inputs)
    assert {name.split("/")[0] for name in differing(before, weights_of(spi))} == {
        "critics",
        "target_critics",
    }
    before = weights_of(spi)
    spi._update_policy(inputs, make_inputs(spi.config, 1))
    assert {name.split("/")[0] for name in differing(before, weights_of(spi))} == {
        "noise_model",
        "ema_noise_model",
    }


@pytest.mark.parametrize("guidance", ["one_step", "chain"])
def test_critics_receive_no_gradient_in_the_policy_half(guidance):
    spi = make_spi(SPIConfig(guidance=guidance))
    inputs = spi.prepare(make_inputs(spi.config))
    spi._update_policy(inputs, make_inputs(spi.config, 1))
    modules = (spi.critics, spi.reward_critic, spi.safety_critic, spi.target_critics, spi.ema_noise_model)
    modules += (spi._frozen_critics.module, *(learner.target_module for learner in spi.learners.values()))
    assert [p for module in modules for p in module.parameters() if p.grad is not None] == []


def test_given_critics_and_noise_model_are_trained_in_place():
    config = SPIConfig()
    noise_model, reward_critic, safety_critic = make_networks(config)
    spi = SPI(config, noise_model, reward_critic, safety_critic, Compute())
    arguments = (torch.zeros(1, 3), torch.zeros(1, 2), torch.ones(1))
    before = [critic(*arguments).values.clone() for critic in (reward_critic, safety_critic)]
    train(spi, 2)
    for critic, old in zip((reward_critic, safety_critic), before, strict=True):
        assert not torch.equal(critic(*arguments).values, old)
    assert spi.noise_model is noise_model
    assert spi.updates == 2


def test_the_average_of_the_policy_warms_up():
    config = SPIConfig(ema_decay=0.15)
    spi = make_spi(config)
    inputs = spi.prepare(make_inputs(config))
    for step in range(4):
        old = spi.ema_noise_model.net[0].weight.clone()
        _, inputs = spi.update(inputs, make_inputs(config, step + 1))
        # (1 + u) / (10 + u): 1/10, 2/11 and so on, until the configured decay.
        decay = min(0.15, (1 + step) / (10 + step))
        expected = decay * old + (1 - decay) * spi.noise_model.net[0].weight
        torch.testing.assert_close(spi.ema_noise_model.net[0].weight, expected)


def test_target_critics_follow_by_polyak_averaging():
    config = SPIConfig(target_update_rate=0.25)
    spi = make_spi(config)
    inputs = spi.prepare(make_inputs(config))
    old = spi.target_critics.net[0].weight.clone()
    assert torch.equal(old, spi.critics.net[0].weight), "they start equal"
    spi.update(inputs, make_inputs(config, 1))
    new = spi.critics.net[0].weight
    assert not torch.equal(new, old)
    torch.testing.assert_close(spi.target_critics.net[0].weight, 0.75 * old + 0.25 * new)


def test_gradient_norms_are_clipped():
    """One plain gradient step of the critics, so that the size of the step is the norm."""
    sizes = []
    for max_grad_norm in (0.0, 0.5):
        spi = make_spi(max_grad_norm=max_grad_norm)
        learner = spi.learners["critics"]
        learner.optimizer = torch.optim.SGD(spi.critics.parameters(), lr=1.0)
        learner.optimizer.fused_step = learner.optimizer.step
        before = [parameter.clone() for parameter in spi.critics.parameters()]
        spi.update(spi.prepare(make_inputs(spi.config)), make_inputs(spi.config, 1))
        moved = [(p - old).flatten() for p, old in zip(spi.critics.parameters(), before, strict=True)]
        sizes.append(torch.cat(moved).norm().item())
    assert sizes[0] > 0.5
    assert sizes[1] == pytest.approx(0.5, rel=1e-4)


# ---- what it learns from


def critic_losses(spi, inputs):
    """The losses that an update reports."""
    metrics, _ = copy.deepcopy(spi).update(inputs, make_inputs(spi.config, 1))
    return {name: float(value) for name, value in metrics.items()}


def test_critic_targets_by_the_equations():
    """Losses recomputed from the separate critics: minimum of the target twins."""
    config = SPIConfig(gamma=0.9)
    spi = make_spi(config)
    inputs = spi.prepare(make_inputs(config, cost=torch.rand(16) * 3))
    w = inputs.safety_weight
    alive = (~inputs.terminated).float()
    with torch.no_grad():
        next_reward = spi.reward_critic(inputs.next_observation, inputs.next_action, w).values
        next_safety = spi.safety_critic(inputs.next_observation, inputs.next_action, w).values
        reward = spi.reward_critic(inputs.observation, inputs.action, w).values
        safety = spi.safety_critic(inputs.observation, inputs.action, w).values
    c_remapped = 1 - inputs.cost.clamp(0, 1)
    expected = {
        "critic/reward_loss": td_loss(
            reward, inputs.reward + 0.9 * alive * torch.minimum(next_reward[0], next_reward[1])
        ),
        "critic/safety_loss": td_loss(
            safety, c_remapped + 0.9 * alive * torch.minimum(next_safety[0], next_safety[1])
        ),
        "critic/reward_value": reward.mean(),
        "critic/safety_value": safety.mean(),
    }
    actual = critic_losses(spi, inputs)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value.item(), rel=1e-5), name


def test_a_terminated_transition_does_not_look_at_the_next_state_and_a_truncated_one_does():
    """`truncated` is no input of an update: a time limit is a transition with terminated=False."""
    assert "truncated" not in {field.name for field in dataclasses.fields(make_inputs(SPIConfig()))}
    spi = make_spi()
    ended = torch.zeros(16, dtype=torch.bool)
    ended[:8] = True
    inputs = spi.prepare(make_inputs(spi.config, terminated=ended))
    for rows, changes in ((slice(0, 8), False), (slice(8, 16), True)):
        elsewhere = inputs.next_observation.clone()
        elsewhere[rows] += 5.0
        before, after = (
            critic_losses(spi, dataclasses.replace(inputs, next_observation=next_observation))
            for next_observation in (inputs.next_observation, elsewhere)
        )
        losses = [name for name in before if name.startswith("critic/") and name.endswith("loss")]
        assert len(losses) == 2
        assert all((before[name] != after[name]) == changes for name in losses)


def test_the_next_action_comes_from_the_averaged_policy_as_it_stood_before_the_update():
    spi = make_spi()
    train(spi, 3)
    assert differing(
        dict(spi.noise_model.named_parameters()), dict(spi.ema_noise_model.named_parameters())
    ), "the average differs from the policy"
    ema = copy.deepcopy(spi.ema_noise_model)
    upcoming = make_inputs(spi.config, 9)
    _, ready = spi.update(spi.prepare(make_inputs(spi.config, 8)), upcoming)
    with torch.no_grad():
        expected = ema.denoise(
            upcoming.next_observation, upcoming.safety_weight, spi._coefficients, upcoming.chain_noise
        )
    assert torch.equal(ready.next_action, expected)
    assert not ready.next_action.requires_grad


def test_recorded_next_actions_are_used_as_they_are():
    config = SPIConfig(next_action="dataset")
    spi = make_spi(config)
    inputs = make_inputs(config)
    assert spi.prepare(inputs) is inputs
    with pytest.raises(ValueError, match="needs batches that carry the recorded next action"):
        spi.prepare(dataclasses.replace(inputs, next_action=None))


# ---- ablations


@pytest.mark.parametrize("guidance", ["one_step", "chain"])
@pytest.mark.parametrize(
    ("ablated", "position"), [({"mu": 0.0, "phi": 0.5}, REWARD), ({"mu": 0.5, "phi": 0.0}, SAFETY)]
)
def test_an_ablated_critic_has_no_influence_on_the_policy(ablated, position, guidance):
    config = fixed_weights(**ablated, guidance=guidance)
    policies, others = [], []
    for scale in (1.0, -30.0):
        for which, collected in ((position, policies), (1 - position, others)):
            spi = make_spi(config)
            with torch.no_grad():
                rows = slice(2 * which, 2 * which + 2)
                spi.critics.net[-1].weight[rows].mul_(scale)
                spi.critics.net[-1].bias[rows].add_(scale)
                # Not a mere change of scale, which the guidance scale would take out.
                spi.critics.net[0].weight[rows, 0].mul_(scale)
            spi.refresh()
            inputs = spi.prepare(make_inputs(config))
            spi._update_policy(inputs, make_inputs(config, 1))
            collected.append(of("noise_model", weights_of(spi)))
    assert differing(*policies) == []
    assert differing(*others) != [], "the other critic does guide"


def test_eta_one_is_behaviour_cloning():
    config = fixed_weights(eta=1.0, mu=0.0, phi=0.0)
    spi = make_spi(config)
    inputs = spi.prepare(make_inputs(config))
    plain = copy.deepcopy(spi.noise_model)
    optimizer = torch.optim.Adam(plain.parameters(), lr=3e-4)
    alpha_bar = spi._alpha_bars[inputs.timestep].unsqueeze(1)
    noisy = alpha_bar.sqrt() * inputs.action + (1 - alpha_bar).sqrt() * inputs.noise
    torch.nn.functional.mse_loss(
        plain(noisy, inputs.timestep, inputs.observation).sample, inputs.noise
    ).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
    optimizer.step()
    spi.update(inputs, make_inputs(config, 1))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(spi.noise_model.state_dict()[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("safety_weight", "safety"), [(0.0, 0.0), (0.5, 0.6 * 0.53125), (1.0, 1.2)])
def test_the_safety_weight_shares_the_guidance_out(safety_weight, safety):
    """w = 0 guides by Q^r alone with weight 1 - eta, and w = 1 by Q^c' alone with twice that."""
    config = SPIConfig(eta=0.4)
    mu, phi = make_spi(config)._value_weights(
        make_inputs(config, safety_weight=torch.full((16,), safety_weight))
    )
    torch.testing.assert_close(mu, torch.full((16,), 0.6 * (1 - safety_weight)))
    torch.testing.assert_close(phi, torch.full((16,), safety))


def test_rewards_do_not_reach_the_safety_critic():
    """Without a gradient clip, that is: the two critics' gradients are clipped by their joint norm."""
    config = fixed_weights(next_action="dataset")
    learned = []
    for factor in (1.0, 1000.0):
        spi = make_spi(config, max_grad_norm=0)
        inputs = make_inputs(config)
        inputs = dataclasses.replace(inputs, reward=inputs.reward * factor)
        for step in range(5):
            upcoming = make_inputs(config, step + 1)
            upcoming = dataclasses.replace(upcoming, reward=upcoming.reward * factor)
            _, inputs = spi.update(inputs, upcoming)
        learned.append({name: value[2:].clone() for name, value in spi.critics.state_dict().items()})
    assert differing(*learned) == []
