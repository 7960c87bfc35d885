"""Short trajectories of the Velocity tasks, recorded from the real safety-gymnasium 1.0.0.

`velocity.safetensors` holds, per task, 60 steps: `observations` (the one after each reset comes before those
of the episode's steps), `actions`, `rewards`, `costs`, `terminated`, `truncated`, and `resets`, the steps
before which the environment was reset: at the start with a seed, after the end of an episode without one. Its
metadata says with which versions and on what machine it was recorded. Actions are float32 numbers, executed
as float64: of float32 arrays NumPy 1 and 2 compute rewards that differ in the eighth digit.

The release runs on Python 3.10 and before, so recording needs an environment of its own:

    python3.10 -m venv recording && recording/bin/pip install safety-gymnasium==1.0.0 safetensors
    recording/bin/python tests/golden/velocity_golden.py --record

Recording is deterministic: on the same machine the same bytes come out, which `--check` verifies.
"""

import argparse
import platform
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "velocity.safetensors"
ROBOTS = ("Ant", "HalfCheetah", "Hopper", "Swimmer", "Walker2d")
STEPS, SEED, TRIES = 60, 7, 4000


def wave(number, size):
    """Random sines, one per joint: what makes a robot run (or fall) now and then; (STEPS, size) float32."""
    rng = np.random.default_rng(number)
    period = rng.uniform(8, 60)
    phase, offset = rng.uniform(0, 2 * np.pi, size), rng.uniform(-0.6, 0.6, size)
    angle = 2 * np.pi * np.arange(STEPS)[:, None] / period + phase
    return np.clip(1.5 * np.sin(angle) + offset, -1, 1).astype(np.float32)


def play(env, actions):
    """Play actions one after the other; an episode that ends is followed by the next one."""
    observation, _ = env.reset(seed=SEED)
    observations, resets, steps = [observation], [0], []
    for index, action in enumerate(actions):
        if index and (steps[-1][2] or steps[-1][3]):
            observations.append(env.reset()[0])
            resets.append(index)
        observation, reward, cost, terminated, truncated, _ = env.step(action.astype(np.float64))
        observations.append(observation)
        steps.append((reward, cost, terminated, truncated))
    rewards, costs, terminated, truncated = zip(*steps, strict=True)
    return {
        "observations": np.array(observations, np.float64),
        "actions": actions,
        "rewards": np.array(rewards, np.float64),
        "costs": np.array(costs, np.float64),
        "terminated": np.array(terminated, np.bool_),
        "truncated": np.array(truncated, np.bool_),
        "resets": np.array(resets, np.int64),
    }


def record(robot):
    """The first wave with which the robot is too fast for a part of the time."""
    import safety_gymnasium

    for number in range(TRIES):
        env = safety_gymnasium.make(f"Safety{robot}Velocity-v1")
        found = play(env, wave(number, env.action_space.shape[0]))
        env.close()
        if 5 <= found["costs"].sum() <= STEPS - 5:
            print(
                f"{robot}: wave {number}, {found['costs'].sum():.0f} costs, resets before {found['resets']}"
            )
            return found
    sys.exit(f"{robot}: no wave of {TRIES} makes it too fast")


def record_all():
    """Tensors of all tasks, and the circumstances."""
    tensors = {}
    for robot in ROBOTS:
        tensors.update({f"{robot}/{name}": value for name, value in record(robot).items()})
    about = {name: metadata.version(name) for name in ("safety-gymnasium", "gymnasium", "mujoco", "numpy")}
    about.update(python=platform.python_version(), system=platform.system(), machine=platform.machine())
    about.update(libc=" ".join(platform.libc_ver()), seed=str(SEED))
    return tensors, about


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", action="store_true", help=f"write {FILE.name} anew")
    what.add_argument("--check", action="store_true", help="record, and compare with the file")
    arguments = parser.parse_args()
    from safetensors.numpy import load_file, save_file

    tensors, about = record_all()
    if arguments.record:
        save_file(tensors, FILE, about)
        print(f"{FILE}: {FILE.stat().st_size} bytes; {about}")
    else:
        stored = load_file(FILE)
        assert stored.keys() == tensors.keys()
        for name, value in tensors.items():
            assert np.array_equal(stored[name], value), name
        print("the same")


if __name__ == "__main__":
    main()
