"""The page itself, in Gradio: what the handlers do is in the modules beside it.

What belongs to one visitor is in `gr.State`, of which each session has its own. The simulators draw from
NumPy's global generator, so episodes are played one after the other; so are figures drawn, and trainings run.
"""

import functools
import html
import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

try:
    import gradio as gr
except ImportError as error:
    raise ImportError(f'the page needs Gradio ({error}): pip install "spi-diffusers[space]"') from error

from spi_diffusers.data.tasks import TABLE_SUFFIXES
from spi_diffusers.evaluation.video import Replay
from spi_diffusers.files import check_hub_id, local_path
from spi_diffusers.messages import explanation, is_explained
from spi_diffusers.pipelines.allowance import DEFAULT_RISK
from spi_diffusers.spaces.episode import Episode, PolicyOnShow, limit_range, play, policies_on_show
from spi_diffusers.spaces.figures import plot_frontier, plot_step
from spi_diffusers.spaces.own_data import (
    BRIEF_UPDATES,
    MOST_UPDATES,
    as_html,
    describe,
    numbers,
    train_and_assess,
)

#: Bytes that an upload may have, and seconds that what a session leaves behind stays.
LARGEST_UPLOAD, KEPT_SECONDS = "200mb", 3600

_SIMULATOR: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "simulator"}
_DRAWING: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "drawing"}
_DATA: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "data"}
_INTRODUCTION = """# A policy with a limit that you choose
Choose a policy, what an episode may cost, and how sure it must be. The policy keeps the candidates whose
predicted cost fits into what is left of the limit, and acts by the one that expects the highest return."""
_OWN_DATA = """A file with one row per step (CSV, parquet, NumPy or HDF5), with usual names of columns:
`observation_0`, `action_0`, `reward`, `cost`, `episode`. A brief training shows what to expect; `spi train`
trains to the end."""


def make_page(policies: Sequence[str | Path]) -> gr.Blocks:
    """Make the page.

    Args:
        policies: What can be chosen in it, as `policies_on_show` takes them.

    Raises:
        FileNotFoundError: A folder holds no policy.
        ValueError: A policy cannot be read.
    """
    menu = policies_on_show(policies)
    videos = tempfile.TemporaryDirectory(prefix="spi-space-")
    with gr.Blocks(
        title="spi-diffusers", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Tab("Play"):
            _play_tab(page, menu, videos)
        with gr.Tab("Your data"):
            _data_tab()
    return page


def serve(policies: Sequence[str | Path], **where: Any) -> None:
    """Serve the page until Ctrl-C.

    Args:
        policies: As for `make_page`.
        **where: `server_name` and `server_port`, as Gradio's `launch` takes them; its default is this machine
            alone, at the first free port from 7860.

    Raises:
        OSError: The port is taken.
        ValueError: As of `make_page`.
    """
    # Fonts of the system: none is fetched.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = make_page(policies).queue(default_concurrency_limit=4)
    page.launch(theme=theme, max_file_size=LARGEST_UPLOAD, footer_links=[], ssr_mode=False, **where)


# ---- playing


def _play_tab(page: gr.Blocks, menu: dict[str, str], videos: Any) -> None:
    shown = gr.State(None)  # the PolicyOnShow
    episode = gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=_forget)
    replays = gr.State([])  # of the policy that is shown, since it was chosen
    with gr.Row():
        with gr.Column(scale=1):
            name = gr.Dropdown(list(menu), value=next(iter(menu)), label="Policy", elem_id="policy")
            hub_id = gr.Textbox(label="or its id on the Hub, and Enter", placeholder="org/spi-ballcircle")
            limit = gr.Slider(0, 1, label="Cost limit of the episode", elem_id="limit")
            risk = gr.Slider(
                0.01, 0.5, DEFAULT_RISK, step=0.01, label="Risk: share of episodes that may exceed it"
            )
            seed = gr.Number(0, precision=0, minimum=0, label="Seed of the episode")
            start = gr.Button("Play", variant="primary", elem_id="play")
            said = gr.Markdown(elem_id="said")
        with gr.Column(scale=2):
            video = gr.Video(label="Replay", autoplay=True, interactive=False, elem_id="replay", height=480)
    step = gr.Slider(0, 1, 0, step=1, label="Step", interactive=True, visible=False, elem_id="step")
    with gr.Row():
        picture = gr.Image(label="At this step", interactive=False, scale=1)
        candidates = gr.Plot(show_label=False, elem_id="candidates", scale=2)
    frontier = gr.Plot(show_label=False, elem_id="frontier")

    def choose(title: str, before: Episode | None) -> Any:
        return open_policy(title, menu[title], before)

    def choose_on_hub(text: str, before: Episode | None) -> Any:
        if local_path(text).exists():  # the server's own folders are not for visitors
            raise ValueError(f"{text!r} must be the id of a policy on the Hub, such as org/spi-ballcircle")
        check_hub_id(text)
        return open_policy(text, text, before)

    def open_policy(title: str, policy: str, before: Episode | None) -> Any:
        found = PolicyOnShow.open(policy)
        _forget(before)
        highest, width = limit_range(found.limits)
        slider = gr.Slider(maximum=highest, value=next(iter(found.limits), 0), step=width)
        nothing_played: tuple[Any, ...] = (None, [], None, gr.Slider(visible=False), None, None)
        return found, slider, f"{title}: {described(found)}", *nothing_played

    def play_it(
        shown: PolicyOnShow | None,
        limit: float,
        risk: float,
        seed: int,
        before: Episode | None,
        replays: list[Replay],
        progress: Any = gr.Progress(),  # noqa: B008 - how Gradio is told of it
    ) -> Any:
        if shown is None:
            raise ValueError("choose a policy first")
        path = Path(videos.name) / f"{uuid.uuid4()}.mp4"
        played = play(
            shown.folder,
            path,
            cost_limit=limit,
            risk=risk,
            seed=seed,
            on_step=lambda done, of: progress((done, of), desc="playing", unit="steps"),
        )
        _forget(before)
        last = len(played.decisions) - 1
        slider = gr.Slider(maximum=last, value=0, visible=True)
        return played, [*replays, played.replay], str(path), slider, str(played)

    def draw_step(episode: Episode | None, step: int) -> Any:
        if episode is None:  # it was kept for an hour
            raise ValueError("play an episode first")
        return episode.picture(step), plot_step(episode, step)

    def draw_frontier(shown: PolicyOnShow, replays: list[Replay]) -> Any:
        return plot_frontier(shown.entries, replays)

    opened = [shown, limit, said, episode, replays, video, step, picture, candidates]
    for event, choice, source in (
        (page.load, choose, name),
        (name.input, choose, name),
        (hub_id.submit, choose_on_hub, hub_id),
    ):
        event(_told(choice), [source, episode], opened).success(
            draw_frontier, [shown, replays], frontier, **_DRAWING
        )
    drawn = (_told(draw_step), [episode, step], [picture, candidates])
    start.click(
        _told(play_it),
        [shown, limit, risk, seed, episode, replays],
        [episode, replays, video, step, said],
        show_progress_on=said,
        **_SIMULATOR,
    ).success(*drawn, **_DRAWING).success(draw_frontier, [shown, replays], frontier, **_DRAWING)
    step.input(*drawn, show_progress="hidden", trigger_mode="always_last", **_DRAWING)


def described(policy: PolicyOnShow) -> str:
    """A policy in a sentence."""
    if policy.task is None:
        return "trained on data without a simulator: `spi assess` says what to expect of it."
    known = "" if policy.entries else ", not evaluated yet (`spi evaluate` gives the frontier)"
    return f"trained for {policy.task.name}{known}."


def _forget(episode: Episode | None) -> None:
    """Remove the video of an episode that nobody looks at any more."""
    if episode is not None:
        episode.replay.path.unlink(missing_ok=True)


# ---- own data


def _data_tab() -> None:
    gr.Markdown(_OWN_DATA)
    with gr.Row():
        with gr.Column(scale=1):
            kinds = [*TABLE_SUFFIXES, ".npz", ".hdf5"]
            file = gr.File(label="Drop a file here", file_types=kinds, elem_id="upload")
            limits = gr.Textbox(label="Cost limits (empty: quartiles of the data)", placeholder="10 20 40")
            # Gradio refuses a field that is empty and has a minimum.
            steps = gr.Number(0, precision=0, minimum=0, label="Steps of an episode (0: as in the data)")
            updates = gr.Slider(
                100, MOST_UPDATES, BRIEF_UPDATES, step=100, label="Updates of the training", elem_id="updates"
            )
            risk = gr.Slider(0.01, 0.5, DEFAULT_RISK, step=0.01, label="Risk")
            look = gr.Button("Describe", elem_id="describe")
            start = gr.Button("Train briefly and assess", variant="primary", elem_id="train")
        with gr.Column(scale=2):
            tables = gr.HTML(elem_id="tables")
            picture = gr.Image(label="Episodes of the data", interactive=False)
            assessment = gr.HTML(elem_id="assessment")

    def describe_it(path: str | None, text: str) -> Any:
        found = describe(_given(path), numbers(text))
        return as_html(found.tables, found.remarks), found.picture

    def train_it(
        path: str | None,
        text: str,
        steps: int,
        updates: float,
        risk: float,
        progress: Any = gr.Progress(),  # noqa: B008 - how Gradio is told of it
    ) -> str:
        found = train_and_assess(
            _given(path),
            cost_limits=numbers(text),
            risk=risk,
            updates=int(updates),
            max_episode_steps=steps or None,
            on_update=lambda done, of: progress((done, of), desc="training", unit="updates"),
        )
        return as_html([found.table()], found.remarks)

    for event in (file.upload, look.click):
        event(_told(describe_it), [file, limits], [tables, picture], **_DATA)
    start.click(_told(train_it), [file, limits, steps, updates, risk], assessment, **_DATA)


def _given(path: str | None) -> str:
    if path is None:
        raise ValueError("drop a file first")
    return path


def _told(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let an error that says what is wrong be a message in the page; others go to the log, with where."""

    @functools.wraps(work)
    def told(*inputs: Any) -> Any:
        try:
            return work(*inputs)
        except Exception as error:
            if not is_explained(error):
                raise
            # The folder of an upload means nothing to anybody.
            uploads = [one for one in inputs if isinstance(one, str) and os.path.isabs(one)]
            text = explanation(error)
            for path in uploads:
                text = text.replace(path, os.path.basename(path))
            # Gradio takes it for HTML.
            raise gr.Error(html.escape(text, quote=False), duration=None, print_exception=False) from error

    return told
