"""Episodes of random actions, as arrays that can be compared."""

import numpy as np

from spi_diffusers.envs import make_env


def play(env, seed=None, steps=40, action_seed=0):
    """Observations, rewards and costs of the first steps under random actions."""
    generator = np.random.default_rng(action_seed)
    observation, _ = env.reset(seed=seed)
    rows = [np.append(observation, [0, 0])]
    for _ in range(steps):
        action = generator.uniform(-1, 1, env.action_space.shape)
        observation, reward, terminated, _, info = env.step(action)
        rows.append(np.append(observation, [reward, info["cost"]]))
        if terminated:
            break
    return np.array(rows)


def play_fresh(task, seed, **kwargs):
    env = make_env(task)
    try:
        return play(env, seed, **kwargs)
    finally:
        env.close()
