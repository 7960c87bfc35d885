"""Configuration of the algorithms, as plain dataclasses that import nothing heavy."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from spi_diffusers.settings import check_range, check_types


@dataclass
class CostRemapConfig:
    """Eq. 4, c' = 1 - f(c) with f(c) in [0, 1].

    Attributes:
        kind: "clip": f(c) = clip(c, 0, 1); "indicator": f(c) = 1 if c > 0 else 0; "scaled":
            f(c) = clip(c / scale, 0, 1).
        scale: Divisor of the "scaled" kind, in units of cost.
    """

    kind: Literal["clip", "indicator", "scaled"] = "clip"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_types(self, "cost_remap.")
        check_range(self, "scale", above=True, prefix="cost_remap.")


@dataclass
class SPIConfig:
    """SPI, its ablations, and preference-conditioned SPI.

    Attributes:
        conditioned: Condition noise model and critics on a safety weight w ~ U(0, 1), so that one model
            holds every trade-off. False gives the paper's SPI with a fixed (eta, mu, phi).
        eta: Weight of the noise loss (Eq. 6), in [0, 1].
        mu: Weight of the reward critic (Eq. 6); only without conditioning. 0 is the ablation without Q^r.
        phi: Weight of the safety critic (Eq. 6); only without conditioning. 0 is the ablation without Q^c'.
        gamma: Discount factor of both critics.
        guidance: "one_step" denoises the noisy batch action once and reuses the noise loss's forward pass;
            "chain" differentiates through all T denoising steps, as in the paper.
        guidance_scale: What divides a critic's value in Eq. 6: the "std" or "mean_abs" of the other twin
            over the batch (detached), or "none".
        next_action: a_{i+1} of Eq. 10 and 11: "policy" samples it from the EMA noise model, "dataset" takes
            the recorded one (SARSA).
        cost_remap: Eq. 4.
        predict_cost: Learn a second head of the safety critic, the expected discounted cost Q^c, in which
            an episode's end costs nothing. Safe extraction compares it with the cost limit.
        imitation_share: Share of the data that the noise loss imitates under each safety weight: the
            episodes with the best trade-off between return and cost under it. 1 imitates all of the data
            under every weight; less needs conditioning.
        num_train_timesteps: Number T of diffusion steps.
        beta_min: Start of the VP noise schedule.
        beta_max: End of the VP noise schedule.
        target_update_rate: Polyak rate tau of the target critics.
        ema_decay: Decay of the noise model's moving average (warmed up).
    """

    conditioned: bool = True
    eta: float = 0.5
    mu: float | None = None
    phi: float | None = None
    gamma: float = 0.99
    guidance: Literal["one_step", "chain"] = "one_step"
    guidance_scale: Literal["std", "mean_abs", "none"] = "std"
    next_action: Literal["policy", "dataset"] = "policy"
    cost_remap: CostRemapConfig = field(default_factory=CostRemapConfig)
    predict_cost: bool = True
    imitation_share: float = 1.0
    num_train_timesteps: int = 5
    beta_min: float = 0.1
    beta_max: float = 10.0
    target_update_rate: float = 0.005
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "eta", "ema_decay", high=1.0)
        if self.gamma == 1.0:
            raise ValueError("gamma must be below 1: the critics' values would not be bounded.")
        check_range(self, "gamma", high=1.0, below=True)
        # At a rate of 0 the target critics would stay at their random start.
        check_range(self, "target_update_rate", "imitation_share", high=1.0, above=True)
        if self.imitation_share < 1.0 and not self.conditioned:
            raise ValueError(
                "imitation_share below 1 needs conditioned=true: which episodes are imitated depends on the "
                "safety weight. Set imitation_share to 1 to imitate all of them."
            )
        check_noise_schedule(self)
        if self.cost_remap.kind == "scaled" and self.cost_remap.scale != 1.0 and not self.predict_cost:
            raise ValueError(
                "cost_remap.scale needs predict_cost=true: without that head, the cost that safe extraction "
                "compares with the limit comes from Q^c', which then counts in units of the scale."
            )
        if self.conditioned:
            if self.mu is not None or self.phi is not None:
                raise ValueError(
                    "mu and phi are set by the safety weight when conditioned=true; set conditioned=false "
                    "to train the paper's SPI with fixed weights."
                )
            return
        if self.mu is None or self.phi is None:
            raise ValueError("conditioned=false needs mu and phi (Eq. 6), for example mu=0.25 phi=0.25.")
        if not (min(self.mu, self.phi) >= 0 and abs(self.eta + self.mu + self.phi - 1.0) <= 1e-6):
            raise ValueError(
                "eta + mu + phi must be 1 and none negative (Eq. 6), got "
                f"eta={self.eta}, mu={self.mu}, phi={self.phi} (sum {self.eta + self.mu + self.phi})."
            )


def check_noise_schedule(config: Any) -> None:
    """Refuse a VP noise schedule that does not exist, or that float32 cannot hold.

    Args:
        config: Has `num_train_timesteps`, `beta_min` and `beta_max`.
    """
    steps, low, high = config.num_train_timesteps, config.beta_min, config.beta_max
    if steps < 1 or not 0 < low < high < math.inf:
        raise ValueError(
            "The noise schedule needs num_train_timesteps >= 1 and 0 < beta_min < beta_max, got "
            f"{steps}, {low}, {high}."
        )
    # The last step's beta is 1 - exp(-this), which must not round to 1 in float32: it would divide by 0.
    # All steps together leave exp(-(low + high) / 2) of the action's square, which must not round to 0.
    exponent = low / steps + 0.5 * (high - low) * (2 * steps - 1) / steps**2
    if exponent > 15.0 or (low + high) / 2 > 80.0:
        raise ValueError(
            f"beta_min and beta_max are too large for num_train_timesteps={steps}, got {low} and {high}: the "
            "noise would leave nothing of the action in float32."
        )
