"""One episode as a video, with the return, the cost so far and the limit under the picture."""

import contextlib
import errno
import importlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.evaluation.entries import check_cost_limit, each, one_or_all
from spi_diffusers.files import OUTPUTS_FOLDER, local_path, short_name, written_aside
from spi_diffusers.messages import shown_limit
from spi_diffusers.progress import progress_bar

if TYPE_CHECKING:
    from spi_diffusers.evaluation.rollouts import Policy


#: Height and width of the simulator's picture, and height of the panel under it, in pixels. Sides are
#: multiples of 16, which every video player takes.
PICTURE_SIZE = (368, 480)
PANEL_HEIGHT = 96
#: Pictures of an episode of full length, and how long its video plays. Drawing takes most of the time (0.1 s
#: per picture with Bullet, 200 steps in about 10 s), so steps in between are left out.
MAX_FRAMES = 100
SECONDS = 8.0

_BACKGROUND, _TEXT, _MUTED, _TRACK = (22, 24, 29), (240, 240, 240), (150, 155, 165), (58, 62, 72)
_SAFE, _UNSAFE = (64, 170, 110), (222, 60, 50)


@dataclass(frozen=True)
class Replay:
    """A recorded episode: the video, undiscounted return and cost return; of several costs a tuple, like
    their limit and names.
    """

    path: Path
    task: Task
    cost_limit: CostLimit
    return_: float
    cost_return: CostLimit
    length: int
    cost_names: tuple[str, ...] = ("cost",)

    @property
    def normalized_reward(self) -> float:
        """The return in DSRL's scale."""
        return self.task.normalize_reward(self.return_)

    @property
    def normalized_cost(self) -> float:
        """The cost return over the limit; of several costs the largest."""
        return max(map(self.task.normalize_cost, each(self.cost_return), each(self.cost_limit)))


def record_replay(
    policy: "Policy",
    task: str | Task,
    path: str | os.PathLike[str],
    *,
    cost_limit: CostLimit,
    seed: int = 0,
    feedback: bool = True,
    simulator: str = "auto",
    progress: bool = True,
    on_picture: Callable[[int, np.ndarray], Any] | None = None,
    costs: Sequence[str] = ("cost",),
) -> Replay:
    """Play one episode, the one of `rollout(policy, task, episodes=1, seed=seed, ...)`, and write it as a
    video.

    `on_picture` gets every picture of it, (H, W, 3) uint8, with the number of steps done. The cost limit is
    told to the policy and drawn; the .mp4 at `path` is complete or not written at all.
    ValueError: a negative limit or seed, or another suffix; OSError: the video cannot be written, what was
    there is untouched; ImportError: a package for videos, or the simulator, is missing.
    """
    from spi_diffusers.envs import episode_seeds, make_env
    from spi_diffusers.evaluation.rollouts import check_actions

    task, limit = get_task(task), check_cost_limit(cost_limit)
    path = local_path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"a replay is an .mp4 file, got {path}")
    _check_video_packages()
    every = -(-task.max_episode_steps // MAX_FRAMES)
    rate = max(1.0, task.max_episode_steps / every / SECONDS)
    panel = _Panel(task, limit, costs)
    bar_style: dict[str, Any] = {"total": task.max_episode_steps, "unit": "step", "desc": "replay"}
    bar_style |= {"disable": not progress, "leave": False}
    (episode_seed,) = episode_seeds(seed, 1)
    env = make_env(
        task,
        seed=episode_seed,
        render_mode="rgb_array",
        render_size=PICTURE_SIZE,
        simulator=simulator,
        costs=costs,
    )
    return_, step = 0.0, 0
    try:
        observation, info = env.reset()
        cost_return = info["cost"]  # nothing yet
        steps = task.max_episode_steps
        policy.reset(seed, limit, episodes=1, max_episode_steps=steps, feedback=feedback)
        picture = panel.draw_under(env.render(), step, return_, cost_return)
        with (
            written_aside(path) as aside,
            _encoder(aside, rate, picture.shape) as encode,
            progress_bar(**bar_style) as bar,
        ):

            def write(picture: np.ndarray) -> None:
                encode(picture)
                if on_picture is not None:
                    on_picture(step, picture)

            ended = False
            write(picture)
            while not ended:
                actions = policy.act(observation[None], np.array([True]))
                (action,) = check_actions(actions, (1, *env.action_space.shape), step)
                observation, reward, terminated, truncated, info = env.step(action)
                return_, cost_return, step = return_ + reward, cost_return + info["cost"], step + 1
                ended = terminated or truncated
                costs_told = np.array([info["cost"]]) if feedback else None
                policy.observe(np.array([reward]), costs_told, np.array([ended]))
                if step % every == 0 or ended:
                    write(panel.draw_under(env.render(), step, return_, cost_return))
                bar.update()
    finally:
        env.close()
    spent = one_or_all(np.atleast_1d(cost_return).tolist())
    return Replay(path, task, limit, return_, spent, step, tuple(costs))


def play_episode(
    policy: str | Path,
    task: str | None = None,
    *,
    cost_limit: CostLimit | None = None,
    seed: int = 0,
    extraction: str | None = None,
    feedback: bool = True,
    risk: float | None = None,
    revision: str | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Replay:
    """Play one episode of a policy in the simulator and record it, as `spi play` does.

    `policy` is a folder, its run's, or an id on the Hub. None takes: the policy's own task; the limit that a
    baseline was trained for, or the task's first; "safe" extraction (a baseline acts in one way only); an
    output in `outputs/play`. With "reward" (Eq. 12) the limit is drawn only; else `risk` is the share of the
    episodes that may exceed it, 0.05 for None.

    ValueError: the policy, the task or an argument cannot be used; SimulatorNotInstalledError: the simulator
    is missing; OSError: the video cannot be written.
    """
    from spi_diffusers.evaluation.evaluate import EvaluationSpec, costs_of, limits_for, policy_task
    from spi_diffusers.pipelines.loading import load_pipeline

    chosen: Any = None if extraction is None else (extraction,)
    spec = EvaluationSpec(extractions=chosen, feedback=feedback)
    spec = spec if risk is None else replace(spec, risk=risk)
    pipeline = load_pipeline(policy, revision=revision)
    known, way = policy_task(pipeline, task), spec.ways(pipeline)[0]
    usual = known.cost_limits[:1] if pipeline.default_limit is None else (pipeline.default_limit,)
    (limit,) = limits_for(pipeline, None if cost_limit is None else (cost_limit,), usual)
    how = ("" if extraction in (None, "safe") else f"-{extraction}") + ("" if feedback else "-no-feedback")
    how += "" if risk is None else f"-risk{spec.risk:g}"
    limits = shown_limit(limit).replace(", ", "-")
    name = f"{short_name(policy)}-limit{limits}-seed{seed}{how}.mp4"
    return record_replay(
        spec.acting(pipeline, way),
        known,
        output or Path(OUTPUTS_FOLDER) / "play" / name,
        cost_limit=limit,
        seed=seed,
        feedback=feedback,
        progress=progress,
        costs=costs_of(pipeline),
    )


class _Panel:
    """Draws return, cost and limit under a picture; the bar turns red beyond the limit.

    Of several costs it draws the one that has used most of its limit.
    """

    def __init__(self, task: Task, cost_limit: CostLimit, costs: Sequence[str]) -> None:
        import matplotlib
        from PIL import ImageFont

        # matplotlib brings a font along; the machine may have none.
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self._steps, self._limits, self._names = task.max_episode_steps, each(cost_limit), tuple(costs)
        self._large = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 17)
        self._small = ImageFont.truetype(fonts / "DejaVuSans.ttf", 12)

    def draw_under(self, picture: Any, step: int, return_: float, cost_return: Any) -> np.ndarray:
        """Put the panel under a picture, (H, W, 3) uint8: (H + PANEL_HEIGHT, W, 3) uint8."""
        from PIL import Image, ImageDraw

        height, width = picture.shape[:2]
        canvas = Image.new("RGB", (width, height + PANEL_HEIGHT), _BACKGROUND)
        canvas.paste(Image.fromarray(picture), (0, 0))
        draw = ImageDraw.Draw(canvas)
        spent = np.atleast_1d(cost_return)
        which = int(np.argmax(spent / np.maximum(self._limits, 1e-9)))
        cost, limit, cost_name = float(spent[which]), self._limits[which], self._names[which]
        within = cost <= limit
        color = _SAFE if within else _UNSAFE
        margin, top = 16, height + 10
        draw.text((margin, top), f"return {return_:.0f}", fill=_TEXT, font=self._large)
        verdict = f"{cost_name} {cost:.4g} of {limit:g}" + ("" if within else ", over the limit")
        draw.text((width - margin, top), verdict, fill=color, font=self._large, anchor="ra")

        # The limit stands at 70% of the bar, so that what goes beyond it is seen.
        left, right, y = margin, width - margin, top + 32
        full = (limit or 1.0) / 0.7

        def position(cost: float) -> float:
            return left + min(cost / full, 1.0) * (right - left)

        draw.rounded_rectangle((left, y, right, y + 16), radius=4, fill=_TRACK)
        if cost > 0:
            draw.rounded_rectangle((left, y, max(position(cost), left + 8), y + 16), 4, fill=color)
        mark = position(limit)
        draw.rectangle((mark - 1, y - 4, mark + 1, y + 20), fill=_TEXT)
        draw.text(
            (mark, y + 22), f"limit {limit:g}", fill=_TEXT, font=self._small, anchor="ma" if limit else "la"
        )
        caption = f"step {step} of {self._steps}"
        # A limit of 0 stands at the left end.
        place, anchor = (margin, "la") if limit else (right, "ra")
        draw.text((place, y + 22), caption, fill=_MUTED, font=self._small, anchor=anchor)
        return np.asarray(canvas)


def _check_video_packages() -> None:
    try:
        for name in ("imageio_ffmpeg", "PIL"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'videos need imageio-ffmpeg and Pillow ({error}): pip install "spi-diffusers[video]"'
        ) from error


@contextlib.contextmanager
def _encoder(
    path: Path, frames_per_second: float, shape: tuple[int, ...]
) -> Iterator[Callable[[np.ndarray], Any]]:
    """Gives what takes pictures of a shape, (H, W, 3) uint8, for an .mp4; OSError says why ffmpeg failed."""
    imageio_ffmpeg = importlib.import_module("imageio_ffmpeg")
    rate = Fraction(frames_per_second).limit_denominator()
    pictures = f"-f rawvideo -pix_fmt rgb24 -s {shape[1]}x{shape[0]} -r {rate} -i -"
    # H.264 with 4:2:0 color: what browsers and the Hub's preview play. Small, as it goes with every policy.
    video = "-an -vcodec libx264 -pix_fmt yuv420p -crf 28 -preset veryslow"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *pictures.split(), *video.split()]
    with tempfile.TemporaryFile() as words:
        # An absolute path: ffmpeg takes what stands before a colon for a protocol, and a dash for an option.
        command.append(str(path.absolute()))
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=words)
        stdin: Any = process.stdin
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says below why
                yield stdin.write
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
            process.wait()
        if process.returncode:
            words.seek(0)
            said = " ".join(words.read().decode(errors="replace").split())
            raise OSError(errno.EIO, f"ffmpeg failed: {said or f'exit code {process.returncode}'}")
