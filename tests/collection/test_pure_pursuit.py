import numpy as np
import pytest

from spi_diffusers.collection.scripted import Driver, PurePursuit, draw_driver, vary_driver
from spi_diffusers.envs import make_env

CAREFUL = Driver(radius=6.8, edge=5.0, lookahead=0.35, gain=2.5, throttle=1.0, noise=0.0, lapse=0.0)


def observe(x, y, yaw):
    return np.array([x / 10, y / 10, 0, 0, np.sin(yaw), np.cos(yaw), 0, 0], dtype=np.float32)


def drive(driver, observation, seed=0):
    return PurePursuit(driver, np.random.default_rng(seed))(observation)


def test_a_careful_driver_keeps_the_bounds_and_earns():
    pytest.importorskip("bullet_safety_gym")
    for seed in (0, 1):
        env = make_env("carcircle", seed=seed)
        driver = PurePursuit(CAREFUL, np.random.default_rng(0))
        observation, _ = env.reset()
        rewards, costs, ended = [], [], False
        while not ended:
            observation, reward, terminated, truncated, info = env.step(driver(observation))
            rewards.append(reward)
            costs.append(info["cost"])
            ended = terminated or truncated
        env.close()
        assert sum(rewards) > 300
        assert sum(costs) <= 10  # where it starts heading outwards, it has to turn around first
        assert sum(costs[50:]) == 0


def test_positive_steering_turns_right_in_the_simulator():
    pytest.importorskip("bullet_safety_gym")
    env = make_env("carcircle", seed=0)
    before, _ = env.reset()
    for _ in range(20):
        after, *_ = env.step(np.array([-1.0, 0.5]))
    env.close()
    turned = np.arctan2(after[4], after[5]) - np.arctan2(before[4], before[5])
    assert -1.5 < turned < -0.3
    # And it drove to where it faces away from.
    course = np.arctan2(after[1] - before[1], after[0] - before[0])
    middle = np.arctan2(before[4], before[5]) + turned / 2 + np.pi
    assert np.cos(course - middle) > 0.9


def test_steering_turns_towards_the_path():
    # The path runs clockwise: at (0, 6.8) it goes along +x. The model faces backwards, so the car that drives
    # along +x has a yaw of pi. Positive steering turns right.
    along = drive(CAREFUL, observe(0.0, 6.8, np.pi))
    assert along[0] == -1.0  # full speed ahead
    assert 0.0 < along[1] < 1.0  # the circle bends to the right
    assert drive(CAREFUL, observe(0.0, 6.8, np.pi + 0.6))[1] > 0.5  # heads too far left, so right
    assert drive(CAREFUL, observe(0.0, 6.8, np.pi - 0.6))[1] < -0.5


def test_the_path_stays_within_the_edge():
    # At (5, 0) the circle of radius 6.8 would lead outside; the path runs straight down, along -y.
    down = drive(CAREFUL, observe(5.0, 0.0, np.pi / 2))
    assert down[1] == pytest.approx(0.0, abs=1e-5)


def test_actions_are_clipped_and_noise_follows_the_seed():
    noisy = Driver(6.8, 5.0, 0.35, 2.5, 1.0, noise=3.0, lapse=0.0)
    actions = [drive(noisy, observe(0.0, 6.8, np.pi), seed) for seed in range(20)]
    assert all(action.dtype == np.float32 and (abs(action) <= 1).all() for action in actions)
    assert len({action.tobytes() for action in actions}) > 5
    np.testing.assert_array_equal(actions[3], drive(noisy, observe(0.0, 6.8, np.pi), 3))


def test_a_lapse_lasts_ten_steps_of_going_straight():
    driver = PurePursuit(Driver(6.8, 5.0, 0.35, 2.5, 1.0, noise=0.0, lapse=1.0), np.random.default_rng(0))
    off_course = observe(0.0, 6.8, np.pi - 0.6)
    assert driver(off_course)[1] == 0.0
    driver.driver = CAREFUL
    assert [driver(off_course)[1] == 0.0 for _ in range(11)] == [True] * 9 + [False] * 2


def test_drawn_and_varied_drivers_are_sane():
    rng = np.random.default_rng(0)
    for _ in range(300):
        driver = draw_driver(rng)
        varied = vary_driver(driver, rng)
        for one in (driver, varied):
            assert 4.0 < one.radius < 8.0
            assert 0 < one.throttle <= 1
            assert one.noise >= 0
            assert one.lookahead > 0
            assert one.gain > 0
        assert varied.lapse == driver.lapse
        assert abs(varied.radius - driver.radius) < 0.6
