"""Registers DSRL's ids with gymnasium, so that `gymnasium.make("OfflineCarCircle-v0")` works.

It happens on `import spi_diffusers.envs`; `gymnasium.make("spi_diffusers.envs:OfflineCarCircle-v0")` imports
it first. There is no gymnasium plugin: version 1.0 has abolished them.
"""

import gymnasium
from gymnasium.envs.registration import WrapperSpec, registry

from spi_diffusers.data.tasks import TASKS

#: By what an id is known as registered here, and not by the real `dsrl`.
ENTRY_POINT = "spi_diffusers.envs.offline:OfflineEnv"


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
                entry_point=ENTRY_POINT,
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
