"""gymnasium.make with DSRL's ids, and DSRL's interface on what it makes."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import spi_diffusers.envs
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.envs import SimulatorNotInstalledError, make_env, register_tasks

SEVEN = {"observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts"}


@pytest.fixture
def env():
    pytest.importorskip("bullet_safety_gym")
    env = gymnasium.make("OfflineCarRun-v0")
    yield env
    env.close()


@pytest.fixture(scope="module")
def car_run_columns():
    """Two CarRun episodes of 3 steps in DSRL's layout: one terminated, one truncated."""
    generator = np.random.default_rng(0)
    return {
        "observations": generator.normal(size=(6, 7)),
        "next_observations": generator.normal(size=(6, 7)),
        "actions": generator.uniform(-1, 1, (6, 2)),
        "rewards": generator.normal(size=6),
        "costs": np.array([0, 1, 0, 1, 1, 0]),
        "terminals": np.array([0, 0, 1, 0, 0, 0], np.float32),
        "timeouts": np.array([0, 0, 0, 0, 0, 1], np.float32),
    }


def test_every_task_is_registered_under_all_its_ids():
    for task in TASKS.values():
        for env_id in (task.name, *task.aliases):
            spec = gymnasium.spec(env_id)
            assert spec.max_episode_steps == task.max_episode_steps
            assert spec.kwargs == {"task": task.name}
    assert register_tasks() == []  # a second time there is nothing left to do


def test_an_episode_is_that_of_make_env_with_one_time_limit(env):
    limits, layer = 0, env
    while isinstance(layer, gymnasium.Wrapper):
        limits += isinstance(layer, gymnasium.wrappers.TimeLimit)
        layer = layer.env
    assert limits == 1
    other = make_env("carrun")
    np.testing.assert_array_equal(env.reset(seed=4)[0], other.reset(seed=4)[0])
    generator = np.random.default_rng(0)
    for step in range(1, 201):
        action = generator.uniform(-1.5, 1.5, 2)
        mine, theirs = env.step(action), other.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:4] == theirs[1:4]
        assert mine[4]["cost"] == theirs[4]["cost"]
        assert mine[2:4] == (False, step == 200)
    assert type(mine[4]["cost"]) is float
    other.close()


def test_arguments_reach_make_env():
    pytest.importorskip("bullet_safety_gym")
    env = gymnasium.make("OfflineBallCircle-v0", seed=5, render_mode="rgb_array", render_size=(24, 32))
    other = make_env("ballcircle", seed=5)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])  # both go on in their stream
    assert env.render().shape == (24, 32, 3)
    with pytest.raises(ValueError, match=r"simulator of task OfflineBallCircle-v0 .* 'chess'"):
        gymnasium.make("OfflineBallCircle-v0", simulator="chess")
    env.close()
    other.close()


def test_the_spec_makes_the_same_environment_and_its_length_can_be_changed(env):
    again = gymnasium.make(env.spec)
    assert str(again) == str(env)
    assert env.spec.max_episode_steps == 200
    again.set_target_cost(10)
    assert again.get_normalized_score(get_task("carrun").reward_max, 5.0) == (1.0, 0.5)
    again.close()
    short = gymnasium.make("OfflineCarRun-v0", max_episode_steps=3)
    short.reset(seed=0)
    assert [short.step(np.zeros(2))[3] for _ in range(3)] == [False, False, True]
    short.close()


def test_step_before_reset_is_refused(env):
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))


def test_in_a_vector_environment():
    pytest.importorskip("bullet_safety_gym")
    make = [lambda: gymnasium.make("OfflineCarRun-v0")] * 2
    vector = gymnasium.vector.SyncVectorEnv(make)
    observations, _ = vector.reset(seed=[1, 2])
    for seed, observation in zip((1, 2), observations, strict=True):
        single = make_env("carrun", seed=seed)
        np.testing.assert_array_equal(single.reset()[0], observation)
        single.close()
    vector.close()


def test_scores_by_hand(env):
    task = get_task("carrun")
    assert (env.max_episode_reward, env.min_episode_reward) == (574.6533203125, 204.28726196289062)
    assert (env.max_episode_cost, env.min_episode_cost) == (40.0, 0.0)
    assert env.target_cost is None
    with pytest.raises(ValueError, match="set_target_cost"):
        env.get_normalized_score(300.0, 5.0)
    env.set_target_cost(10)
    assert env.target_cost == env.unwrapped.target_cost == 10
    assert env.get_normalized_score(task.reward_max, 15.0) == (1.0, 1.5)
    assert env.get_normalized_score(task.reward_min, 0.0) == (0.0, 0.0)
    reward, cost = env.get_normalized_score(np.array([204.28726196289062, 389.4702911376953]), np.zeros(2))
    np.testing.assert_allclose(reward, [0.0, 0.5])
    np.testing.assert_array_equal(cost, [0.0, 0.0])
    env.set_target_cost(0)  # DSRL adds 1 to both then
    assert env.get_normalized_score(task.reward_max, 3.0) == (1.0, 4.0)
    for limit in (-1, float("nan"), "10", True):
        with pytest.raises(ValueError, match="cost_limit"):
            env.set_target_cost(limit)
    with pytest.raises(ValueError, match="got None"):
        env.set_target_cost(None)
    assert env.target_cost == 0
    env.target_cost = 20  # as well, through all wrappers
    assert (env.unwrapped.target_cost, env.get_normalized_score(task.reward_max, 10.0)[1]) == (20, 0.5)


def test_what_dsrl_scripts_do_with_the_data_before_they_train(env):
    data = {"observations": np.zeros((2, 7))}
    # Positional and named as the training scripts of DSRL's authors call it, with their defaults.
    changed = env.pre_process_data(
        data, None, None, None, None, 1.0, cbins=10, rbins=50, max_npb=5, min_npb=2
    )
    assert changed is data
    for call in ({"density": 0.5}, {"outliers_percent": 0.1}):
        with pytest.raises(
            ValueError, match=rf"pre_process_data\({next(iter(call))}=.*would change the data"
        ):
            env.pre_process_data(data, **call)
    with pytest.raises(ValueError, match=r"noise_scale=0\.1"):
        env.pre_process_data(data, None, 0.1)
    with pytest.raises(TypeError, match="no option 'bins'"):
        env.pre_process_data(data, bins=3)


@pytest.mark.parametrize(
    ("env_id", "module"),
    [("OfflineCarRun-v0", "bullet_safety_gym"), ("OfflineHopperVelocity-v1", "mujoco")],
)
def test_gymnasium_finds_nothing_to_blame(env_id, module):
    pytest.importorskip(module)
    env = gymnasium.make(env_id, render_mode="rgb_array", render_size=(16, 16))
    assert env.metadata["render_modes"] == ["rgb_array"]
    check_env(env.unwrapped)
    env.close()


def test_embedded_dataset_as_numpy():
    pytest.importorskip("bullet_safety_gym")
    env = gymnasium.make("OfflineBallCircle-v0")
    data = env.get_dataset("embedded")
    transitions = load_transitions(None, "ballcircle").transitions
    assert set(data) == SEVEN
    assert data["observations"].shape == data["next_observations"].shape == (len(transitions), 8)
    assert data["actions"].shape == (len(transitions), 2)
    for name in ("rewards", "costs", "terminals", "timeouts"):
        assert data[name].shape == (len(transitions),)
    assert {str(data[name].dtype) for name in SEVEN - {"terminals", "timeouts"}} == {"float32"}
    np.testing.assert_array_equal(data["next_observations"], transitions.next_observation.numpy())
    np.testing.assert_array_equal(data["timeouts"], transitions.truncated.numpy())
    assert env.observation_space.contains(data["observations"][0])
    data["rewards"] *= 2  # the caller's own
    np.testing.assert_array_equal(env.get_dataset("embedded")["rewards"] * 2, data["rewards"])
    env.close()


def test_dataset_from_files(env, tmp_path, monkeypatch, car_run_columns):
    np.savez(tmp_path / "logged.npz", **car_run_columns)
    data = env.get_dataset(tmp_path / "logged.npz")
    for name, values in car_run_columns.items():
        np.testing.assert_array_equal(data[name], values.astype(data[name].dtype))
    assert data["terminals"].tolist() == [False, False, True, False, False, False]

    h5py = pytest.importorskip("h5py")
    # Where DSRL keeps its downloads, under the file name that it gives them.
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    with h5py.File(tmp_path / "SafetyCarRun-v0-40-651.hdf5", "w") as file:
        for name, values in car_run_columns.items():
            file[name] = values
    for found in (env.get_dataset(), env.get_dataset(str(tmp_path / "SafetyCarRun-v0-40-651.hdf5"))):
        assert set(found) == SEVEN
        for name in SEVEN:
            np.testing.assert_array_equal(found[name], data[name])


def test_dataset_that_does_not_fit_the_task(env, tmp_path, car_run_columns):
    np.savez(tmp_path / "other.npz", **{**car_run_columns, "observations": np.zeros((6, 8))})
    with pytest.raises(DatasetError, match=r"other\.npz.*observation"):
        env.get_dataset(tmp_path / "other.npz")
    outside = {**car_run_columns, "actions": np.full((6, 2), 1.25)}
    np.savez(tmp_path / "outside.npz", **outside)
    with pytest.raises(DatasetError, match=r"outside\.npz.*action"):
        env.get_dataset(tmp_path / "outside.npz")
    assert (env.get_dataset(tmp_path / "outside.npz", clip_actions=True)["actions"] == 1).all()
    with pytest.raises(DatasetError, match="nowhere"):
        env.get_dataset(tmp_path / "nowhere.hdf5")


def test_a_failed_download_says_what_else_there_is(env, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise DatasetError("no network")

    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr("spi_diffusers.data.loading.download_dsrl_file", refuse)
    with pytest.raises(DatasetError, match=r"no network.*get_dataset\(PATH\).*get_dataset\('embedded'\)"):
        env.get_dataset()


def test_the_url_names_dsrls_file(env):
    assert env.dataset_url.endswith("/datasets/YYY-45/DSRL/resolve/main/SafetyCarRun-v0-40-651.hdf5")


def test_other_names_are_not_made_up(env):
    with pytest.raises(AttributeError, match="no_such_name"):
        env.no_such_name  # noqa: B018


def test_a_task_without_a_simulator_says_so():
    with pytest.raises(SimulatorNotInstalledError, match="MetaDrive"):
        gymnasium.make("OfflineMetadrive-easysparse-v0")


def test_the_module_can_be_named_with_the_id():
    pytest.importorskip("bullet_safety_gym")
    code = (
        "import gymnasium, sys; env = gymnasium.make('spi_diffusers.envs:OfflineCarRun-v0')\n"
        "env.reset(seed=0); print(env.task.short_name, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["carrun", "False"]


def test_ids_that_are_taken_stay_and_later_ones_win():
    """As with the real dsrl: it registers some of the same ids when it is imported."""
    code = """if True:
        import warnings; warnings.simplefilter("error")
        import gymnasium
        gymnasium.register(id="OfflineCarRun-v0", entry_point="dsrl:first")
        import spi_diffusers.envs
        assert gymnasium.spec("OfflineCarRun-v0").entry_point == "dsrl:first"
        assert gymnasium.spec("OfflineCarCircle-v0").entry_point == "spi_diffusers.envs.offline:OfflineEnv"
        warnings.simplefilter("ignore")
        gymnasium.register(id="OfflineCarCircle-v0", entry_point="dsrl:second")
        assert spi_diffusers.envs.register_tasks() == []
        assert gymnasium.spec("OfflineCarCircle-v0").entry_point == "dsrl:second"
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_scores_and_data_are_those_of_the_real_dsrl(env, tmp_path, car_run_columns):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("dsrl.offline_bullet_safety_gym")
    from dsrl.offline_bullet_safety_gym.gym_envs import get_CarRun_env

    task = get_task("carrun")
    theirs = get_CarRun_env(
        max_episode_reward=task.reward_max,
        min_episode_reward=task.reward_min,
        max_episode_cost=task.cost_max,
        min_episode_cost=task.cost_min,
        dataset_url="",
    )
    for limit in (0, 10, 25.5):
        env.set_target_cost(limit)
        theirs.set_target_cost(limit)
        assert env.get_normalized_score(321.5, 7.0) == theirs.get_normalized_score(321.5, 7.0)
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for name, values in car_run_columns.items():
            file[name] = values
    expected = theirs.get_dataset(str(tmp_path / "data.hdf5"))
    data = env.get_dataset(tmp_path / "data.hdf5")
    assert set(data) == set(expected)
    for name in SEVEN:
        np.testing.assert_array_equal(data[name], expected[name])
        assert data[name].dtype == (bool if name in ("terminals", "timeouts") else expected[name].dtype)


def test_importing_the_environments_registers_them():
    assert spi_diffusers.envs.register_tasks is register_tasks
    assert "OfflineAntCircle-v0" in gymnasium.envs.registration.registry
