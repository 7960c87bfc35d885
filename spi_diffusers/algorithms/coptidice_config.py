"""Configuration of COptiDICE, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass, field

from spi_diffusers.settings import check_range, check_types


@dataclass
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

    gamma: float = 0.99
    alpha: float = 0.5
    cost_ub_epsilon: float = 0.01
    reward_scale: float = 0.1
    hidden_dims: list[int] = field(default_factory=lambda: [256, 256])
    num_networks: int = 1
    learning_rate: float = 1e-4
    actor_learning_rate: float = 1e-4
    multiplier_learning_rate: float = 1e-3
    action_margin: float = 0.01
    action_noise: float = 0.1
    benchmark_targets: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        self.hidden_dims = list(self.hidden_dims)
        check_range(self, "gamma", high=1.0, below=True)
        check_range(self, "action_margin", high=1.0, above=True, below=True)
        check_range(self, "num_networks", low=1)
        check_range(self, "cost_ub_epsilon", "action_noise")
        rates = ("learning_rate", "actor_learning_rate", "multiplier_learning_rate")
        check_range(self, "alpha", "reward_scale", *rates, above=True)
