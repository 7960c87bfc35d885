"""The settings of each algorithm; imports nothing heavy."""

from dataclasses import field
from typing import Any, Literal, Self

from pydantic import model_validator

from spi_diffusers.config.validation import (
    Count,
    Even,
    Flag,
    NotNegative,
    Number,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
    ShareBetween,
    Sizes,
    Steps,
    Whole,
    settings,
)


def _check_noise_schedule(config: Any) -> Any:
    """Refuse a VP noise schedule that does not exist, or that float32 cannot hold.

    Args:
        config: Has `num_train_timesteps`, `beta_min` and `beta_max`.

    Raises:
        ValueError: It cannot be used.
    """
    steps, low, high = config.num_train_timesteps, config.beta_min, config.beta_max
    if low >= high:
        raise ValueError(f"the noise schedule needs beta_min < beta_max, got beta_min={low}, beta_max={high}")
    # The last step's beta is 1 - exp(-this), which must not round to 1 in float32: it would divide by 0.
    # All steps together leave exp(-(low + high) / 2) of the action's square, which must not round to 0.
    exponent = low / steps + 0.5 * (high - low) * (2 * steps - 1) / steps**2
    if exponent > 15.0 or (low + high) / 2 > 80.0:
        raise ValueError(
            f"beta_min and beta_max are too large for num_train_timesteps={steps}, got {low} and {high}: the "
            "noise would leave nothing of the action in float32"
        )
    return config


@settings
class SPIConfig:
    """SPI, its ablations, and preference-conditioned SPI.

    Attributes:
        conditioned: Condition noise model and critics on a safety weight w ~ U(0, 1), so that one model
            holds every trade-off. False gives the paper's SPI with a fixed (eta, mu, phi).
        eta: Weight of the noise loss (Eq. 6); more of it keeps closer to the data.
        mu: Weight of the reward critic (Eq. 6); only without conditioning. 0 is the ablation without Q^r.
        phi: Weight of the safety critic (Eq. 6); only without conditioning. 0 is the ablation without Q^c'.
        gamma: Discount factor of both critics.
        guidance: "one_step" denoises the noisy batch action once and reuses the noise loss's forward pass;
            "chain" differentiates through all T denoising steps, as in the paper.
        guidance_scale: What divides a critic's value in Eq. 6: the "std" or "mean_abs" of the other twin
            over the batch (detached), or "none". Values are in the data's units
            (`Units`), so that a weight means the same whatever rewards are logged in.
        next_action: a_{i+1} of Eq. 10 and 11: "policy" samples it from the EMA noise model, "dataset" takes
            the recorded one (SARSA).
        cost_remap: f of Eq. 4, c' = 1 - f(c), with c in the data's unit (`Units`): "clip" is clip(c, 0, 1),
            "indicator" is 1 for every positive cost.
        imitation_share: Share of the episodes that are imitated above all under each safety weight w; others
            count (1 - w) / 4 as much. These have the best trade-off between return and cost under it, among
            episodes whose starts promise about the same. 1 imitates all of the data alike under every weight;
            less needs conditioning.
        num_train_timesteps: Number T of diffusion steps.
        beta_min: Start of the VP noise schedule.
        beta_max: End of the VP noise schedule.
        target_update_rate: Polyak rate tau of the target critics.
        ema_decay: Decay of the noise model's moving average (warmed up).
    """

    conditioned: Flag = True
    eta: Share = 0.5
    mu: Number | None = None
    phi: Number | None = None
    gamma: ShareBelowOne = 0.99
    guidance: Literal["one_step", "chain"] = "one_step"
    guidance_scale: Literal["std", "mean_abs", "none"] = "std"
    next_action: Literal["policy", "dataset"] = "policy"
    cost_remap: Literal["clip", "indicator"] = "clip"
    imitation_share: PositiveShare = 1.0
    num_train_timesteps: Steps = 5
    beta_min: Positive = 0.1
    beta_max: Positive = 10.0
    target_update_rate: PositiveShare = 0.01  # at 0, the targets would stay at their random start
    ema_decay: Share = 0.99

    _schedule = model_validator(mode="after")(_check_noise_schedule)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.imitation_share < 1.0 and not self.conditioned:
            raise ValueError(
                "imitation_share below 1 needs conditioned=true: which episodes are imitated depends on the "
                "safety weight; set imitation_share to 1 to imitate all of them"
            )
        if self.conditioned:
            if self.mu is not None or self.phi is not None:
                raise ValueError(
                    "mu and phi are set by the safety weight when conditioned=true; set conditioned=false "
                    "to train the paper's SPI with fixed weights"
                )
            return self
        if self.mu is None or self.phi is None:
            raise ValueError("conditioned=false needs mu and phi (Eq. 6), for example mu=0.25 phi=0.25")
        if min(self.mu, self.phi) < 0 or abs(self.eta + self.mu + self.phi - 1.0) > 1e-6:
            raise ValueError(
                "eta + mu + phi must be 1 and none negative (Eq. 6), got "
                f"eta={self.eta}, mu={self.mu}, phi={self.phi}"
            )
        return self


@settings
class BCConfig:
    """Behavior cloning; defaults: the DSRL benchmark's.

    Attributes:
        hidden_dims: Width of each hidden layer.
        learning_rate: Adam's at the start.
    """

    hidden_dims: Sizes = field(default_factory=lambda: [256, 256])
    learning_rate: Positive = 1e-3


@settings
class ConstrainedConfig:
    """Settings of an algorithm with critics of reward and cost and an action VAE.

    Defaults are the DSRL benchmark's, but for `benchmark_targets` and where an algorithm sets its own.

    Attributes:
        gamma: Discount factor of both critics.
        target_update_rate: Polyak rate tau of all targets.
        learning_rate: Adam's, of every network that has none of its own.
        hidden_dims: Width of each hidden layer of actor and critics.
        critic_pairs: Pairs of twin critics, for the reward and for the cost each.
        vae_hidden_dim: Width of the action VAE's hidden layers.
        kl_weight: Weight of the divergence in the VAE's loss.
        num_candidates: Actions per state wherever several are drawn.
        soft_clip_weight: Weight of the worse twin in a value, the better one has the rest.
        reward_scale: Factor on rewards before they are learned.
        benchmark_targets: Learn values as the DSRL benchmark's code does, for comparison: a time limit ends
            the reward; the cost target ignores episode ends, but its threshold assumes a finite episode; the
            cost of a next state is that of its costliest candidate; and the lower cost of twins is preferred.
    """

    gamma: ShareBelowOne = 0.99
    target_update_rate: PositiveShare = 0.005
    learning_rate: Positive = 1e-3
    hidden_dims: Sizes = field(default_factory=lambda: [256, 256])
    critic_pairs: Count = 2
    vae_hidden_dim: Count = 400
    kl_weight: NotNegative = 0.5
    num_candidates: Count = 10
    soft_clip_weight: Share = 0.75
    reward_scale: Positive = 0.1
    benchmark_targets: Flag = False


@settings
class LagrangianConfig(ConstrainedConfig):
    """Settings of a batch-constrained algorithm with a Lagrange multiplier.

    Defaults are the DSRL benchmark's, but for `benchmark_targets` and where an algorithm sets its own.

    Attributes:
        latent_clip: Latents are drawn from N(0, I) and clipped to +- this, which keeps to likely actions.
        proportional: K_P of the multiplier's PID controller; the multiplier stands against scaled rewards.
        integral: K_I of the multiplier's PID controller.
        derivative: K_D of the multiplier's PID controller.
    """

    latent_clip: Positive = 0.5
    proportional: NotNegative = 0.1
    integral: NotNegative = 0.003
    derivative: NotNegative = 0.001


@settings
class BCQLagConfig(LagrangianConfig):
    """BCQ (Fujimoto et al. 2019) with a Lagrange multiplier on the cost.

    Attributes:
        max_perturbation: Phi, the largest change of a candidate action per dimension.
        selection: Which candidate acts. "reward": the best by Q^r, as in BCQ; only the perturbation looks at
            the cost then, which often is too little to keep a limit. "lagrangian": the best by Q^r - lambda
            Q^c, so that the constraint has a say in the choice as well. "sample": a random one, as the DSRL
            benchmark's code does.
    """

    max_perturbation: NotNegative = 0.05
    selection: Literal["reward", "lagrangian", "sample"] = "reward"


@settings
class BEARLagConfig(LagrangianConfig):
    """BEAR (Kumar et al. 2019) with a Lagrange multiplier on the cost.

    Attributes:
        kernel: Kernel of the maximum mean discrepancy, "gaussian" or "laplacian".
        mmd_sigma: Width of the kernel (not squared in the exponent).
        mmd_threshold: Largest discrepancy from the data's actions that the policy may have.
        mmd_samples: Actions per state of policy and VAE each that the discrepancy is measured on.
        alpha_learning_rate: Of the discrepancy's multiplier alpha.
        alpha_optimizer: How log alpha climbs: "adam", as in BEAR's code; or "sgd", as in the DSRL
            benchmark's, which takes about ten times as many updates.
        support_updates: Updates at the start that only bring the policy to the data's support, before it
            also climbs the reward's value.
    """

    kernel: Literal["gaussian", "laplacian"] = "gaussian"
    mmd_sigma: Positive = 50.0
    mmd_threshold: Positive = 0.05
    mmd_samples: Count = 10
    alpha_learning_rate: Positive = 1e-3
    alpha_optimizer: Literal["adam", "sgd"] = "adam"
    support_updates: Whole = 0


@settings
class CPQConfig(ConstrainedConfig):
    """CPQ (Xu, Zhan and Zhu 2022); `num_candidates` is the number of policy actions tested per state.

    Attributes:
        actor_learning_rate: Adam's, of the policy.
        ood_penalty: Learn that actions outside the data are costly, as in the paper. The settings below, the
            VAE's and `num_candidates` are for that alone. Off, as in effect in the benchmark's code; see
            `cpq.py` for what it does.
        alpha_learning_rate: Step of log alpha, the weight on the cost of actions outside the data.
        ood_quantile: Policy actions count as outside the data where their latent diverges from the prior by
            more than this quantile of the recorded actions' does: the paper's bound d; 0.75 in the benchmark.
        ood_cost_scale: What actions outside the data are to cost, in units of the largest discounted cost.
    """

    critic_pairs: Count = 1
    soft_clip_weight: Share = 1.0
    actor_learning_rate: Positive = 1e-4
    ood_penalty: Flag = False
    alpha_learning_rate: Positive = 1e-4
    ood_quantile: Share = 0.95
    ood_cost_scale: Positive = 1.5


@settings
class COptiDICEConfig:
    """COptiDICE (Lee et al. 2022); defaults: the DSRL benchmark's, save where one says otherwise.

    Attributes:
        gamma: Discount factor of the stationary distribution.
        alpha: Weight of the divergence from the data; the smaller, the further the policy may go.
        cost_ub_epsilon: Radius of the Kullback-Leibler ball around the data over which the cost is bounded
            from above; 0 takes the cost that the data shows.
        reward_scale: Factor on rewards before they are learned; the multiplier stands against scaled rewards.
        hidden_dims: Width of each hidden layer, of all networks.
        num_networks: Networks of which the minimum counts, for nu and for chi each. One is the paper's; the
            benchmark's two take twice the time, and on BallCircle the result was the same (one seed).
        learning_rate: Adam's, of nu and chi.
        actor_learning_rate: Adam's, of the policy.
        multiplier_learning_rate: Adam's, of the cost multiplier and the bound's temperature. The benchmark's
            is 1e-4; its constraint never binds, so that its multiplier has nowhere to go.
        action_margin: Recorded actions are kept this far from -1 and 1, where no Gaussian reaches them; ours,
            as the next one.
        action_noise: Deviation, before the tanh, of noise that recorded actions are taken to have. Without it
            the policy's density grows without bound where the data has one action only.
        benchmark_targets: Three things as in the DSRL benchmark's code, for comparison: a cost per step is
            compared with a discounted sum, so that the constraint hardly ever binds; a time limit counts as
            an end; and the policy learns to reach an action before the tanh and acts after it. Its noise on
            observations, and its imitation loss that is not divided by the mean weight, are not taken over.
    """

    gamma: ShareBelowOne = 0.99
    alpha: Positive = 0.5
    cost_ub_epsilon: NotNegative = 0.01
    reward_scale: Positive = 0.1
    hidden_dims: Sizes = field(default_factory=lambda: [256, 256])
    num_networks: Count = 1
    learning_rate: Positive = 1e-4
    actor_learning_rate: Positive = 1e-4
    multiplier_learning_rate: Positive = 1e-3
    action_margin: ShareBetween = 0.01
    action_noise: NotNegative = 0.1
    benchmark_targets: Flag = False


@settings
class DiffusionQLConfig:
    """Diffusion-QL (Wang et al. 2023); defaults: its paper's for locomotion. It knows no cost.

    Attributes:
        q_weight: Weight eta of the value term; the noise loss has weight 1.
        gamma: Discount factor.
        target_update_rate: Polyak rate tau of the target critic.
        ema_decay: Decay of the noise model's moving average.
        ema_every: Updates between two steps of the moving average.
        ema_start: Updates before which the average is, every `ema_every` updates, the noise model itself.
        learning_rate: Adam's, of both networks.
        max_grad_norm: Clip of the gradient's norm; 0 switches it off.
        hidden_dims: Width of each hidden layer.
        activation: Of both networks; the paper's is "mish".
        time_embed_dim: Size of the diffusion time's embedding (even).
        num_train_timesteps: Number T of diffusion steps.
        beta_min: Start of the VP noise schedule.
        beta_max: End of the VP noise schedule.
        num_candidates: Actions to choose from when acting, by a softmax over their values.
    """

    q_weight: NotNegative = 1.0
    gamma: ShareBelowOne = 0.99
    target_update_rate: PositiveShare = 0.005
    ema_decay: Share = 0.995
    ema_every: Count = 5
    ema_start: Whole = 1000
    learning_rate: Positive = 3e-4
    max_grad_norm: NotNegative = 10.0
    hidden_dims: Sizes = field(default_factory=lambda: [256, 256, 256])
    activation: Literal["silu", "mish", "gelu", "relu"] = "mish"
    time_embed_dim: Even = 16
    num_train_timesteps: Steps = 5
    beta_min: Positive = 0.1
    beta_max: Positive = 10.0
    num_candidates: Count = 50

    _schedule = model_validator(mode="after")(_check_noise_schedule)


@settings
class CDTConfig:
    """CDT (Liu et al. 2023); defaults: the DSRL benchmark's.

    Attributes:
        context: Steps that the policy looks back on, the present one included.
        embedding_dim: Size of a token; there are four in a step.
        num_layers: Blocks of attention and MLP.
        num_heads: Heads of the attention, which divide `embedding_dim`.
        dropout: Share of numbers that training leaves out.
        stochastic: Learn a Gaussian of actions, whose entropy is kept up, by its likelihood; else one action,
            by its squared error.
        initial_temperature: Weight of the entropy at the start.
        temperature_learning_rate: Adam's, of the logarithm of that weight.
        cost_weight: Weight of predicting whether a step costs something, which only shapes the tokens.
        learning_rate: Adam's, of the transformer.
        max_grad_norm: Clip of the gradient's norm; 0 switches it off.
    """

    context: Count = 10
    embedding_dim: Count = 128
    num_layers: Count = 3
    num_heads: Count = 8
    dropout: ShareBelowOne = 0.1
    stochastic: Flag = True
    initial_temperature: Positive = 0.1
    temperature_learning_rate: Positive = 1e-4
    cost_weight: NotNegative = 0.02
    learning_rate: Positive = 1e-4
    max_grad_norm: NotNegative = 0.25

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide embedding_dim, got {self.num_heads} and {self.embedding_dim}"
            )
        return self


@settings
class CAPSConfig:
    """CAPS (Chemingui et al. 2025) on IQL; defaults: those of the authors' code, but for `hidden_dims`.

    Attributes:
        num_heads: Heads of the policy: the first for the reward, the last for safety, others between.
        expectile: Of the values of reward and cost over the data's actions; towards 1, that of the best one.
        beta: Inverse temperature of the imitation weighed by the reward's advantage.
        cost_beta: Inverse temperature of the imitation weighed by the cost's.
        gamma: Discount factor of both values.
        target_update_rate: Polyak rate tau of the target critics.
        learning_rate: Adam's, of all networks.
        hidden_dims: Width of each hidden layer; the authors' are of 512.
        reward_scale: Factor on rewards before they are learned.
    """

    num_heads: Count = 2
    expectile: ShareBetween = 0.7
    beta: NotNegative = 3.0
    cost_beta: NotNegative = 3.0
    gamma: ShareBelowOne = 0.99
    target_update_rate: PositiveShare = 0.005
    learning_rate: Positive = 3e-4
    hidden_dims: Sizes = field(default_factory=lambda: [256, 256])
    reward_scale: Positive = 0.1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_heads < 2:
            raise ValueError(
                f"num_heads must be at least 2, one for reward and one for safety, got {self.num_heads}"
            )
        return self
