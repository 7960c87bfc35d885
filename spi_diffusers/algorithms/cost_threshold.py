"""From a cost limit per episode to the value that a discounted cost critic is compared with."""


def cost_threshold(
    cost_limit: float, max_episode_steps: int, gamma: float, horizon: str = "infinite"
) -> float:
    """The discounted cost of a policy that spends its limit evenly: c = limit / T at each of T steps.

    Args:
        cost_limit: Largest cost return of an episode.
        max_episode_steps: Length T of an episode.
        gamma: Discount factor of the cost critic, in [0, 1].
        horizon: "infinite": c + gamma c + ... = c / (1 - gamma), for a critic that looks beyond a time
            limit, as one must that does not see the clock. "finite": c (1 - gamma^T) / (1 - gamma), the cost
            of an episode seen from its first step.

    Returns:
        The threshold, in units of discounted cost.

    Raises:
        ValueError: A limit below zero, fewer than one step, an unknown horizon, or a discount factor for
            which the sum is not finite.
    """
    if not cost_limit >= 0 or max_episode_steps < 1:
        raise ValueError(
            "A cost threshold needs cost_limit >= 0 and max_episode_steps >= 1, got "
            f"{cost_limit} and {max_episode_steps}."
        )
    if horizon not in ("infinite", "finite"):
        raise ValueError(f"horizon must be 'infinite' or 'finite', got {horizon!r}.")
    if not 0.0 <= gamma <= 1.0 or (gamma == 1.0 and horizon == "infinite"):
        raise ValueError(f"gamma must lie in [0, 1), or be 1 with a finite horizon; got {gamma}.")
    rate = cost_limit / max_episode_steps
    if gamma == 1.0:
        return rate * max_episode_steps
    discounted_steps = 1.0 / (1.0 - gamma)
    if horizon == "finite":
        discounted_steps *= 1.0 - gamma**max_episode_steps
    return rate * discounted_steps
