"""The Bullet tasks: bullet-safety-gym with seeds that work, a clean reset and rendering without a display.

bullet-safety-gym (Gronauer, 2022) keeps to an older gymnasium and leaves four traps, closed here:

* `reset(seed=...)` is ignored, the global NumPy generator decides. Each `BulletEnv` owns a generator
  state, which stands in for the global one while the simulator may draw from it.
* An episode depended on the one before. Joint motors keep their last command over a reset, and the step
  that ends the reset executes it (Car, Drone); contacts with the ground keep their forces as the solver's
  first guess if the new episode starts where the old one ended (Ball, under large actions). Motors are
  switched off and contacts broken before each reset.
* `gymnasium.make` with a render mode fails in gymnasium 1.x. The environment is built directly.
* `render()` without arguments opens a window, and ends the process where there is no display. Here
  `render()` draws with Bullet's software renderer.
"""

import contextlib
import ctypes
import functools
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np

from spi_diffusers.data.simulators import SIMULATORS, SimulatorNotInstalledError, install_command
from spi_diffusers.data.tasks import Task
from spi_diffusers.signals import interrupts_deferred

# ruff: noqa: NPY002  (the simulators draw from the generator that the rule advises against)

#: Bullet advances all eight tasks by frame_skip * time_step of 0.0167 to 0.1 seconds per step; videos are
#: played at this rate whatever the task.
RENDER_FPS = 30


def _close(simulator: Any) -> None:
    """Free a physics client, which pybullet may have freed already when the process was interrupted."""
    import pybullet

    with contextlib.suppress(pybullet.error):
        simulator.close()


class BulletEnv(gymnasium.Env):
    """One Bullet task with gymnasium's 5-tuple interface, without a time limit (`make_env` adds it).

    Observations are float64 of shape (observation_dim,), actions float32 in [-1, 1] of shape (action_dim,);
    `info["cost"]` is 0 or 1. `make_simulator` makes bullet-safety-gym's environment, by default the
    registered one.

    `reset(seed=s)` determines the episode: it starts as one does after `numpy.random.seed(s)` in a new
    environment of bullet-safety-gym, bit for bit, whatever was played before.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(
        self,
        task: Task,
        *,
        render_mode: str | None = None,
        render_size: tuple[int, int] = (360, 480),
        make_simulator: Callable[[], Any] | None = None,
    ) -> None:
        self.task = task
        self.render_mode = render_mode
        self._render_size = render_size
        # Drawn from by the simulator in place of the global generator; seeded by the operating system
        # until the first reset(seed=...).
        self._generator = np.random.RandomState()
        make = make_simulator or _registered(task)
        with interrupts_deferred():  # pybullet's client that is half made complains when it goes
            with as_global_generator(self._generator), _quiet():
                self._simulator = make()
            # A client that nobody closes holds more than 20 MB for the life of the process.
            self._close_simulator = weakref.finalize(self, _close, self._simulator)
        self.observation_space = self._simulator.observation_space
        self.action_space = self._simulator.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode: the observation, (observation_dim,) float64, and an empty info.

        `seed` determines it; None goes on in this environment's own random stream.
        """
        super().reset(seed=seed)
        if seed is not None:
            _seed_generator(self._generator, seed)
        self._forget_last_episode()
        with as_global_generator(self._generator):
            return self._simulator.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one step; `info["cost"]` is 1 if a safety bound is violated after it, else 0.

        The Circle and Run tasks draw no random numbers here, so the generators are left alone.
        """
        return self._simulator.step(action)

    def render(self) -> np.ndarray | None:
        """Draw the scene, (height, width, 3) uint8, with Bullet's software renderer; needs no display.

        While the agent violates a bound, the simulator's red sphere covers it. The circle of the Circle tasks
        is drawn as a line. None, with a warning, without `render_mode="rgb_array"`.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                f"{self.task.name} was made without a render mode; use render_mode='rgb_array' to see it"
            )
            return None
        client, camera = self._simulator.bc, self._simulator.world.camera
        height, width = self._render_size
        view = client.computeViewMatrixFromYawPitchRoll(
            cameraTargetPosition=camera.cam_base_pos,
            distance=camera.cam_dist,
            yaw=camera.cam_yaw,
            pitch=camera.cam_pitch,
            roll=0,
            upAxisIndex=2,
        )
        projection = client.computeProjectionMatrixFOV(
            fov=60, aspect=width / height, nearVal=0.1, farVal=100.0
        )
        zone = self._circle_zone()
        hidden = [] if zone is None else [zone]
        if not self._simulator.agent._violates_constraints:
            hidden.append(self._simulator.agent.violation_body_id)
        with self._out_of_scene(hidden):
            _, _, pixels, depth, _ = client.getCameraImage(
                width, height, view, projection, renderer=client.ER_TINY_RENDERER
            )
        picture = np.asarray(pixels, dtype=np.uint8).reshape(height, width, 4)[..., :3].copy()
        if zone is not None:
            _, radius = client.getVisualShapeData(zone)[0][3][:2]
            matrix = np.reshape(projection, (4, 4)).T @ np.reshape(view, (4, 4)).T
            _draw_circle(picture, np.reshape(depth, (height, width)), matrix, radius)
        return picture

    def close(self) -> None:
        """Free the physics client; closing twice does no harm."""
        self._close_simulator()

    def __deepcopy__(self, memo: Any) -> "BulletEnv":
        """Refuse: both would hold one physics client, which the first that is closed takes from the other."""
        raise TypeError(f"{self} cannot be copied, as its physics client cannot; make a new one")

    def __str__(self) -> str:
        return f"<BulletEnv {self.task.name}>"

    def _forget_last_episode(self) -> None:
        """Clear the two things that the simulator's own reset leaves behind."""
        if self._simulator.stored_state_id < 0:
            # Nothing was played. The first reset stores the pose that later ones go back to: leave it.
            return
        client, agent = self._simulator.bc, self._simulator.agent
        for joint in range(client.getNumJoints(agent.body_id)):
            client.setJointMotorControl2(
                agent.body_id, joint, client.VELOCITY_CONTROL, targetVelocity=0, force=0
            )
        # Far above the ground the agent touches nothing; the reset puts it back where it belongs.
        client.resetBasePositionAndOrientation(agent.body_id, (0, 0, 100), (0, 0, 0, 1))
        client.performCollisionDetection()

    def _circle_zone(self) -> int | None:
        """The body that marks the circle to run along, if the task has one."""
        client = self._simulator.bc
        bodies = (client.getBodyUniqueId(index) for index in range(client.getNumBodies()))
        return next((body for body in bodies if client.getBodyInfo(body)[1] == b"circle_zone"), None)

    @contextlib.contextmanager
    def _out_of_scene(self, bodies: Sequence[int]) -> Iterator[None]:
        """Take bodies out of the scene that would cover the agent.

        They are transparent (the red sphere wholly so, until a bound is violated), which the software
        renderer does not know; and it draws the flat circle zone as a hill.
        """
        client = self._simulator.bc
        poses = [client.getBasePositionAndOrientation(body) for body in bodies]
        for body, (_, orientation) in zip(bodies, poses, strict=True):
            client.resetBasePositionAndOrientation(body, (0, 0, -1000), orientation)
        try:
            yield
        finally:
            for body, (position, orientation) in zip(bodies, poses, strict=True):
                client.resetBasePositionAndOrientation(body, position, orientation)


def _draw_circle(picture: np.ndarray, depth: np.ndarray, matrix: np.ndarray, radius: float) -> None:
    """Draw a circle on the ground around the origin into a picture, (H, W, 3) uint8, where nothing hides it.

    `depth` is (H, W), 0 (near) to 1 (far); `matrix` (4, 4) leads from the world to clip coordinates; `radius`
    is in meters.
    """
    angle = np.linspace(0.0, 2.0 * np.pi, 4000)
    for width in np.linspace(-0.05, 0.05, 5):
        x, y = (radius + width) * np.cos(angle), (radius + width) * np.sin(angle)
        clip = matrix @ np.stack([x, y, np.full_like(x, 0.02), np.ones_like(x)])
        clip = clip[:, clip[3] > 0]
        x, y, z = clip[:3] / clip[3]
        column = ((x + 1.0) / 2.0 * picture.shape[1]).astype(int)
        row = ((1.0 - y) / 2.0 * picture.shape[0]).astype(int)
        seen = (column >= 0) & (column < picture.shape[1]) & (row >= 0) & (row < picture.shape[0])
        row, column, z = row[seen], column[seen], z[seen]
        clear = (z + 1.0) / 2.0 <= depth[row, column] + 1e-3
        picture[row[clear], column[clear]] = (20, 40, 220)


def _registered(task: Task) -> Callable[[], Any]:
    """What makes the environment that bullet-safety-gym has registered for a task.

    The class is built directly: `gymnasium.make` with a render mode fails on it in gymnasium 1.x.
    """
    try:
        with _quiet():
            import bullet_safety_gym  # noqa: F401  (registers the ids)
            from bullet_safety_gym.envs.builder import EnvironmentBuilder
    except ImportError as error:
        command = install_command(task.simulator)
        way = f"Install it with: {command}" if command else "Use Python 3.11"
        raise SimulatorNotInstalledError(
            f"task {task.name} runs in bullet-safety-gym, which cannot be imported ({error}). {way} "
            f"({SIMULATORS[task.simulator].note})"
        ) from error
    return functools.partial(EnvironmentBuilder, **gymnasium.spec(task.env_id).kwargs)


@contextlib.contextmanager
def global_generator_kept() -> Iterator[None]:
    """Put NumPy's global generator back to where it was, whatever is drawn from it meanwhile."""
    saved = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(saved)


@contextlib.contextmanager
def as_global_generator(generator: np.random.RandomState) -> Iterator[None]:
    """Let the global generator go on from a generator's state, and that one from where it ends."""
    with global_generator_kept():
        np.random.set_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(np.random.get_state())


def _seed_generator(generator: np.random.RandomState, seed: int) -> None:
    # numpy.random.seed takes 32 bits; larger seeds go in as their 32-bit words.
    words = [seed & 0xFFFFFFFF]
    while seed := seed >> 32:
        words.append(seed & 0xFFFFFFFF)
    generator.seed(words[0] if len(words) == 1 else words)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what pybullet and bullet-safety-gym print, below Python's own streams too.

    pybullet writes a banner at import and a line per connection from C. bullet-safety-gym tries to hide
    them by duplicating the descriptors behind `sys.stdout` and `sys.stderr`, which fails where there are
    none (notebooks, captured output), so both get stand-ins. These are opened by number, because it takes
    a named stream's name for that of a C variable. Errors are exceptions and come through.
    """
    _flush_native_output()
    with contextlib.ExitStack() as stack:
        sink = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, sink)
        for descriptor in (1, 2):
            try:
                saved = os.dup(descriptor)
            except OSError:
                continue  # the process runs without this stream: nothing to silence
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(sink, descriptor)
        stack.callback(_flush_native_output)
        stand_in = stack.enter_context(os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        stack.enter_context(contextlib.redirect_stdout(stand_in))
        stack.enter_context(contextlib.redirect_stderr(stand_in))
        # Its float64 observation space with float32 bounds overflows in a check of gymnasium 1.x.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _flush_native_output() -> None:
    """Empty Python's and C's output buffers to where their text belongs."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
