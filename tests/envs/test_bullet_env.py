"""The Bullet environments in the real simulator."""

import copy
import gc
import io
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from env_factory import play_fresh

from spi_diffusers.data.tasks import TASKS
from spi_diffusers.envs import make_env
from spi_diffusers.envs.bullet import BulletEnv, _registered

pytest.importorskip("bullet_safety_gym")

BULLET_TASKS = [task for task in TASKS.values() if task.simulator == "bullet"]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("task", BULLET_TASKS, ids=lambda task: task.short_name)
def test_every_task_keeps_the_interface(task):
    env = make_env(task, seed=0)
    observation, info = env.reset()
    assert env.observation_space.shape == observation.shape == (task.observation_dim,)
    assert observation.dtype == env.observation_space.dtype == np.float32
    assert env.action_space.shape == (task.action_dim,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    assert type(info["cost"]) is float
    observation, reward, terminated, truncated, info = env.step(np.zeros(task.action_dim))
    assert observation.dtype == np.float32
    assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]
    assert type(info["cost"]) is float
    env.close()


def test_a_copy_is_refused_and_harms_nothing():
    env = make_env("ballcircle", seed=0)
    with pytest.raises(TypeError, match=r"BulletEnv OfflineBallCircle-v0.* cannot be copied"):
        copy.deepcopy(env)
    gc.collect()
    env.reset()
    env.step([0, 0])
    env.close()


def test_first_steps_of_ballcircle():
    # Recorded once; the ball starts at (-0.499, 3.134) and the actions push it right, down and back.
    env = make_env("ballcircle")
    observation, _ = env.reset(seed=0)
    start = [-0.049930, 0.313418, 0, 0, 0, 0, 0, -0.382629]
    np.testing.assert_allclose(observation, start, atol=2e-6)
    expected = [
        ([1, 0], [-0.045273, 0.313418, 0.159507, 0, 0, 0.159507, 0, -0.383329], 0.046717),
        ([0.5, -1], [-0.035110, 0.308642, 0.234113, -0.162821, 0.162821, 0.234113, 0, -0.389368], 0.062396),
        ([-1, 1], [-0.028499, 0.305485, 0.059667, 0.007081, -0.007081, 0.059667, 0, -0.393188], 0.011613),
    ]
    for action, observation_after, reward_after in expected:
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_allclose(observation, observation_after, atol=2e-6)
        assert reward == pytest.approx(reward_after, abs=2e-6)
        assert (terminated, truncated, info["cost"]) == (False, False, 0.0)
    env.close()


def test_costs_and_end_of_a_whole_episode():
    env = make_env("ballcircle", seed=0)
    env.reset()
    costs, ends = [], []
    for _ in range(200):
        observation, _, terminated, truncated, info = env.step(
            [1.0, 0.0]
        )  # rolls out over the bound at x = 6
        costs.append(info["cost"])
        ends.append((terminated, truncated))
        # The observation is a tenth of the position; off the bound itself the two must agree.
        if abs(abs(observation[0]) - 0.6) > 1e-5:
            assert info["cost"] == float(abs(observation[0]) > 0.6)
    assert 100 < sum(costs) < 200
    assert ends == [(False, False)] * 199 + [(False, True)]
    env.close()


def test_actions_are_clipped():
    env = make_env("ballcircle")
    env.reset(seed=0)
    far = env.step([5.0, -3.0])[0]
    env.reset(seed=0)
    np.testing.assert_array_equal(far, env.step([1.0, -1.0])[0])
    env.close()


@pytest.mark.parametrize("action", [[0.0], [0.0, 0.0, 0.0], [[0.0, 0.0]], [np.nan, 0.0], [0.0, np.inf]])
def test_bad_actions_are_refused(action):
    env = make_env("ballcircle", seed=0)
    env.reset()
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    env.close()


def test_rendering_without_a_display():
    env = make_env("ballcircle", render_mode="rgb_array", render_size=(90, 120))
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (90, 120, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 20

    def red(image):
        image = image.astype(int)
        return ((image[..., 0] > 150) & (image[..., 1:].max(axis=-1) < 60)).sum()

    # The red sphere is seen if, and only if, a bound is violated; pushing right violates one at x = 6.
    assert red(frame) == 0
    cost = 0.0
    for _ in range(100):
        cost = env.step([1.0, 0.0])[4]["cost"]
        if cost:
            break
    assert cost == 1.0
    assert red(env.render()) > 5
    env.close()


def test_rendering_changes_nothing():
    expected = play_fresh("dronecircle", 3, steps=10)
    env = make_env("dronecircle", render_mode="rgb_array", render_size=(24, 32))
    generator = np.random.default_rng(0)
    rows = [np.append(env.reset(seed=3)[0], [0, 0])]
    for _ in range(10):
        env.render()
        observation, reward, _, _, info = env.step(generator.uniform(-1, 1, 4))
        rows.append(np.append(observation, [reward, info["cost"]]))
    np.testing.assert_array_equal(np.array(rows), expected)
    env.close()


def test_render_without_a_mode_warns_and_returns_none():
    env = make_env("ballcircle", seed=0)
    env.reset()
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None
    env.close()


def resident_megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory use from /proc")
def test_closing_frees_the_client():
    for _ in range(3):
        play_fresh("ballcircle", 0, steps=1)
    before = resident_megabytes()
    for _ in range(30):
        play_fresh("ballcircle", 0, steps=1)
    # 30 unclosed environments hold more than 600 MB.
    assert resident_megabytes() - before < 60


def test_a_forgotten_environment_is_freed_too():
    env = BulletEnv(TASKS["OfflineBallCircle-v0"])
    client = env._simulator.bc
    assert client.getConnectionInfo()["isConnected"]
    del env
    gc.collect()
    assert not client.getConnectionInfo()["isConnected"]


def test_nothing_is_printed():
    code = """
        from spi_diffusers.envs import make_env
        print("before")
        env = make_env("ballcircle", seed=0, render_mode="rgb_array", render_size=(12, 16))
        env.reset(); env.step([0, 0]); env.render(); env.close()
        print("after")
    """
    result = run_python(code)
    assert (result.stdout, result.stderr) == ("before\nafter\n", "")


def test_works_where_the_standard_streams_have_no_descriptor():
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        play_fresh("ballcircle", 0, steps=1)
    assert (out.getvalue(), err.getvalue()) == ("", "")


@pytest.mark.parametrize("module", ["bullet_safety_gym", "pybullet"])
def test_a_missing_simulator_names_the_extra(module):
    code = f"""
        import sys
        sys.modules[{module!r}] = None  # what an import of a package that is not installed comes to
        from spi_diffusers.envs import SimulatorNotInstalledError, make_env, make_vector_env
        for make in (lambda: make_env("ballcircle"), lambda: make_vector_env("ballcircle", 2, seed=0)):
            try:
                make()
            except SimulatorNotInstalledError as error:
                print(isinstance(error, ImportError), error)
    """
    lines = run_python(code).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("True task OfflineBallCircle-v0 runs in bullet-safety-gym")
        assert 'pip install "spi-diffusers[bullet]"' in line


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_a_client_that_pybullet_has_freed_already_is_closed_quietly():
    env = make_env("ballcircle", seed=0)
    env.reset()
    env.unwrapped._simulator.bc.disconnect()  # what an interrupt may do before the environment is closed
    env.close()


def test_an_interrupt_while_a_simulator_is_made_comes_after_it():
    task = TASKS["OfflineBallCircle-v0"]
    made = []

    def make():
        os.kill(os.getpid(), signal.SIGINT)
        made.append(_registered(task)())
        return made[0]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            BulletEnv(task, make_simulator=make)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(made) == 1
