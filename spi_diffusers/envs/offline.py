"""`gymnasium.make("OfflineCarCircle-v0")`: a task's environment with DSRL's interface to data and scores.

The ids are registered on `import spi_diffusers.envs`, which
`gymnasium.make("spi_diffusers.envs:OfflineCarCircle-v0")` does first. There is no gymnasium plugin:
version 1.0 has abolished them.
"""

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import WrapperSpec, registry
from gymnasium.utils import RecordConstructorArgs

from spi_diffusers.data.tasks import DSRL_DATASET_REPO, TASKS, Task, get_task
from spi_diffusers.envs.make import SeedFirstReset, make_untimed_env


def register_tasks() -> list[str]:
    """Register every task under DSRL's ids, in both spellings of the safety-gymnasium tasks.

    Ids that are taken are left alone: where the real `dsrl` was imported before, its environments stay.
    Tasks without a simulator are registered too, so that making one says what is missing.

    Returns:
        The ids that were registered now.
    """
    ids = []
    for task in TASKS.values():
        for env_id in (task.name, *task.aliases):
            if env_id in registry:
                continue
            gymnasium.register(
                id=env_id,
                entry_point="spi_diffusers.envs.offline:OfflineEnv",
                max_episode_steps=task.max_episode_steps,
                # The environments check actions themselves, and raise where the checker would warn.
                disable_env_checker=True,
                additional_wrappers=(
                    WrapperSpec("OfflineInterface", "spi_diffusers.envs.offline:OfflineInterface", kwargs={}),
                ),
                kwargs={"task": task.name},
            )
            ids.append(env_id)
    return ids


class OfflineEnv(gymnasium.Env):
    """A task's environment as `make_env` makes it, with the interface of DSRL's environments.

    `gymnasium.make` adds the time limit. Observations are (observation_dim,) float32, actions
    (action_dim,) float32, and `info["cost"]` is there after every reset and step.

    Args:
        task: a task or its name.
        render_mode: as in `make_env`.
        render_size: as in `make_env`.
        seed: as in `make_env`; `gymnasium.make(..., seed=0)` passes it on.
        simulator: as in `make_env`.

    Attributes:
        task: the task.
        target_cost: the cost limit of `get_normalized_score`; None until it is set, by `set_target_cost`.
        max_episode_reward: DSRL's reference maximum of the return.
        min_episode_reward: DSRL's reference minimum of the return.
        max_episode_cost: DSRL's reference maximum of the cost return.
        min_episode_cost: DSRL's reference minimum of the cost return.

    Raises:
        UnknownTaskError: no such task.
        SimulatorNotInstalledError: the simulator is missing; the message says what to install.
        ValueError: as in `make_env`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        task: str | Task,
        *,
        render_mode: str | None = None,
        render_size: tuple[int, int] = (360, 480),
        seed: int | None = None,
        simulator: str = "auto",
    ) -> None:
        self.task = get_task(task)
        self._target_cost: float | None = None
        self.max_episode_reward, self.min_episode_reward = self.task.reward_max, self.task.reward_min
        self.max_episode_cost, self.min_episode_cost = self.task.cost_max, self.task.cost_min
        env = make_untimed_env(
            self.task, render_mode=render_mode, render_size=render_size, simulator=simulator
        )
        self._env = SeedFirstReset(env, seed)
        self.metadata = self._env.metadata
        self.render_mode = render_mode
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; `seed` determines it, None goes on in this environment's own stream."""
        super().reset(seed=seed)
        return self._env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one step; `info["cost"]` is its cost."""
        return self._env.step(action)

    def render(self) -> Any:
        """Draw the scene: (height, width, 3) uint8, or None without `render_mode="rgb_array"`."""
        return self._env.render()

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()

    @property
    def dataset_url(self) -> str:
        """Where DSRL's file of this task is on the Hub."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(DSRL_DATASET_REPO, self.task.dataset_file, repo_type="dataset")

    def get_dataset(
        self, h5path: str | os.PathLike[str] | None = None, *, clip_actions: bool = False
    ) -> dict[str, np.ndarray]:
        """Load the task's dataset as DSRL gives it.

        Args:
            h5path: DSRL's HDF5 file of the task, or anything else that `load_transitions` takes (a `.npz`
                file, a folder, a Hub dataset, "embedded" for the data in this package). None takes DSRL's
                own file: what DSRL has downloaded to `DSRL_DATASET_DIR` (`~/.dsrl/datasets`) already,
                else from the Hub.
            clip_actions: clip actions outside [-1, 1] instead of refusing them.

        Returns:
            N steps, episode after episode: `observations`, `next_observations` (N, observation_dim),
            `actions` (N, action_dim), `rewards`, `costs` (N,), all float32; `terminals` and `timeouts`
            (N,), bool. The arrays are the caller's own.

        Raises:
            DatasetError: there is no such dataset, it cannot be downloaded or used, or its dimensions are
                not the environment's; the message says where and what to do.
        """
        from spi_diffusers.data.arrays import DSRL_NAMES
        from spi_diffusers.data.columns import DatasetError
        from spi_diffusers.data.loading import load_transitions

        try:
            dataset = load_transitions(
                "dsrl" if h5path is None else h5path, self.task, clip_actions=clip_actions
            )
        except DatasetError as error:
            if h5path is not None:
                raise
            raise DatasetError(
                f"{error}. get_dataset(PATH) loads a file that you have; get_dataset('embedded') loads the "
                "data in this package, where it holds the task"
            ) from error
        transitions = dataset.transitions
        return {theirs: np.array(getattr(transitions, ours).numpy()) for ours, theirs in DSRL_NAMES.items()}

    def pre_process_data(self, data_dict: dict[str, np.ndarray], *changes: Any, **named: Any) -> dict:
        """What scripts made for DSRL call between loading and training; it changes nothing here.

        Args:
            data_dict: what `get_dataset` gave.
            changes: DSRL's options to spoil the data, in its order (see `_SPOILING`).
            named: the same by name; and those of its grid (`cbins`, `rbins`, `max_npb`, `min_npb`), which
                only a `density` below 1 would look at.

        Returns:
            The same data.

        Raises:
            TypeError: DSRL has no such option.
            ValueError: an option would change the data: noise, outliers and gaps are not made here.
        """
        if unknown := named.keys() - {*_SPOILING, *_GRID}:
            raise TypeError(f"pre_process_data() has no option {min(unknown)!r}")
        names = (*_SPOILING, *_GRID)
        for name, value in [*zip(names, changes, strict=False), *named.items()]:
            if name in _SPOILING and value not in (None, _SPOILING[name]):
                raise ValueError(
                    f"pre_process_data({name}={value!r}) would change the data, which only DSRL's own does: "
                    "change the arrays yourself, or convert the changed file (`spi data convert`)"
                )
        return data_dict

    @property
    def target_cost(self) -> float | None:
        """The cost limit of `get_normalized_score`."""
        return self._target_cost

    @target_cost.setter
    def target_cost(self, target_cost: float | None) -> None:
        if target_cost is not None:
            self.task.normalize_cost(0.0, target_cost)  # refuses what is no limit
        self._target_cost = target_cost

    def set_target_cost(self, target_cost: float) -> None:
        """Set the cost limit that `get_normalized_score` takes the cost relative to.

        Args:
            target_cost: limit on the undiscounted sum of costs of an episode, at least 0.

        Raises:
            ValueError: the limit is no number, negative or not finite.
        """
        if target_cost is None:
            raise ValueError("target_cost must be a number, got None")
        self.target_cost = target_cost

    def get_normalized_score(self, reward: Any, cost: Any) -> tuple[Any, Any]:
        """Normalize the scores of an episode as DSRL does.

        Args:
            reward: undiscounted return, a number or an array.
            cost: undiscounted cost return, a number or an array.

        Returns:
            `Task.normalize_reward(reward)` and `Task.normalize_cost(cost, target_cost)`; at most 1 in the
            second means that the limit is kept.

        Raises:
            ValueError: `set_target_cost` was not called.
        """
        if self.target_cost is None:
            raise ValueError(
                "the normalized cost is relative to a cost limit: call env.set_target_cost(limit) first"
            )
        return self.task.normalize_reward(reward), self.task.normalize_cost(cost, self.target_cost)

    def __str__(self) -> str:
        return f"<OfflineEnv {self.task.name}>"


#: DSRL's options that change data, with the values that leave it as it is.
_SPOILING = {
    "outliers_percent": None,
    "noise_scale": None,
    "inpaint_ranges": None,
    "epsilon": None,
    "density": 1.0,
}
_GRID = ("cbins", "rbins", "max_npb", "min_npb")


class OfflineInterface(gymnasium.Wrapper, RecordConstructorArgs):
    """Reach DSRL's interface through the wrappers that `gymnasium.make` adds.

    Wrappers hand on the attributes of what they wrap in gymnasium 0.28.1, and no longer in 1.x; with this
    one outermost, `env.get_dataset()` works in both (as does `env.unwrapped.get_dataset()`).
    """

    def __init__(self, env: gymnasium.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the target cost where it is looked at, in the `OfflineEnv`."""
        if name == "target_cost":
            self.unwrapped.target_cost = value
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Look names that wrappers do not have up in the `OfflineEnv`."""
        if name.startswith("_") or name == "env":  # while the wrapper is made, there is nothing to ask yet
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.unwrapped, name)
