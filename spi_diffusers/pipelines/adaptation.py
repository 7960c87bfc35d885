"""What a controller learns from episodes that are over: one factor on all predicted costs.

Shipped as a part of `pipeline.py`.
"""

import math

#: By how much the logarithm of the scale rises with an episode over the limit, for few environments.
RATE = 0.3
#: From a scale of 100 on, nothing is relied on: the safest policy acts.
LARGEST_LOG_SCALE = math.log(100.0)
#: More environments than this that end together count as much as these: one round must not decide for ever.
FEW_ENVS = 10


class AdaptiveScale:
    """By which factor costs are taken for higher than predicted, so that the share over a limit is the risk.

    Adaptive conformal inference (Gibbs and Candes 2021), one-sided. After every budget that is used up,

        log scale += rate * (over - risk),    over = 1 if the cost exceeded the limit, else 0.

    **Bound.** Whatever the critics predict and the environment does, after T budgets in N environments

        share over <= risk + (B + N rate) / (rate T),    B = log 100,

    if the safest policy keeps the limit where it acts from the start. Proof: the steps add up to
    rate * (times over - risk T) <= log scale, as all that departs from the rule raises it; and the scale
    stays below B + N rate, as from B on the safest policy acts, so that only what runs already adds to it.
    This holds for T in a row, not for one episode. Where not even the safest policy keeps the limit nothing
    can be promised; the scale then stays at that bound, so that it finds back when it can.

    Two things depart from the rule, both to the safe side. The scale is at least 1/100. And it does not fall
    after an episode in which every candidate fitted at every step: a smaller one would have changed nothing,
    and would be missing later.

    Args:
        risk: Share of budgets that may be exceeded, in (0, 1).
        num_envs: Number N of environments that share the scale. More than 10 lower the rate, to 3 / N.

    Attributes:
        log: Natural logarithm of the scale.
        rate: Of each budget.
    """

    def __init__(self, risk: float, num_envs: int = 1) -> None:
        self.risk = risk
        self.rate = RATE * min(1.0, FEW_ENVS / num_envs)
        self.largest_log = LARGEST_LOG_SCALE + num_envs * self.rate
        self.log = 0.0

    @property
    def value(self) -> float:
        """The factor, 1 at first."""
        return math.exp(self.log)

    @property
    def trusts_nothing(self) -> bool:
        """Whether only the safest policy may act."""
        return self.log >= LARGEST_LOG_SCALE

    def update(self, over: int, within: int) -> None:
        """Count budgets that ended.

        Args:
            over: How many were exceeded.
            within: How many were not, without those for which the scale made no difference.
        """
        log = self.log + self.rate * (over - self.risk * (over + within))
        self.log = min(max(log, -LARGEST_LOG_SCALE), self.largest_log)
