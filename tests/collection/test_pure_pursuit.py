import numpy as np
import pytest

from spi_diffusers.collection.pure_pursuit import Driver, PurePursuit, draw_driver, vary_driver
from spi_diffusers.envs import make_env

CAREFUL = Driver(radius=6.8, edge=5.3, lookahead=0.35, gain=2.5, throttle=1.0, noise=0.0, lapse=0.0)


def observe(x, y, yaw):
    return np.array([x / 10, y / 10, 0, 0, np.sin(yaw), np.cos(yaw), 0, 0], dtype=np.float32)


def drive(driver, observation, seed=0):
    return PurePursuit(driver, np.random.default_rng(seed))(observation)


def test_a_careful_driver_keeps_the_bounds_and_earns():
    pytest.importorskip("bullet_safety_gym")
    env = make_env("carcircle", seed=1)
    driver = PurePursuit(CAREFUL, np.random.default_rng(0))
    returns = []
    for _ in range(2):
        observation, _ = env.reset()
        total = cost = 0.0
        ended = False
        while not ended:
            observation, reward, terminated, truncated, info = env.step(driver(observation))
            total, cost, ended = total + reward, cost + info["cost"], terminated or truncated
        assert cost == 0
        returns.append(total)
    env.close()
    assert min(returns) > 300


def test_steering_turns_towards_the_path():
    # The path runs clockwise: at (0, 6.8) it goes along +x. The model faces backwards, so the car that drives
    # along +x has a yaw of pi. Positive steering turns right.
    along = drive(CAREFUL, observe(0.0, 6.8, np.pi))
    assert along[0] == -1.0  # full speed ahead
    assert 0.0 < along[1] < 1.0  # the circle bends to the right
    assert drive(CAREFUL, observe(0.0, 6.8, np.pi + 0.6))[1] < -0.5  # heads too far left of... the outside
    assert drive(CAREFUL, observe(0.0, 6.8, np.pi - 0.6))[1] > 0.5


def test_the_path_stays_within_the_edge():
    # At (5.3, 0) the circle of radius 6.8 would lead outside; the path runs straight down, along -y.
    down = drive(CAREFUL, observe(5.3, 0.0, np.pi / 2))
    assert down[1] == pytest.approx(0.0, abs=1e-5)


def test_actions_are_clipped_and_noise_follows_the_seed():
    noisy = Driver(6.8, 5.3, 0.35, 2.5, 1.0, noise=3.0, lapse=0.0)
    actions = [drive(noisy, observe(0.0, 6.8, np.pi), seed) for seed in range(20)]
    assert all(action.dtype == np.float32 and (abs(action) <= 1).all() for action in actions)
    assert len({action.tobytes() for action in actions}) > 5
    np.testing.assert_array_equal(actions[3], drive(noisy, observe(0.0, 6.8, np.pi), 3))


def test_a_lapse_lasts_ten_steps_of_going_straight():
    driver = PurePursuit(Driver(6.8, 5.3, 0.35, 2.5, 1.0, noise=0.0, lapse=1.0), np.random.default_rng(0))
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
