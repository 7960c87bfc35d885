"""The card of a policy: what is known about it, from its results file and its training record alone."""

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.tasks import DSRL_DATASET_REPO, RESERVED_NAMES
from spi_diffusers.evaluation.certificate import Certificate
from spi_diffusers.evaluation.summary import (
    SeedSummary,
    keeps_limit,
    shown,
    shown_share,
    spread_over,
    summarize_seeds,
)
from spi_diffusers.files import HUB_ID, RESULTS_FILE, read_json, short_name
from spi_diffusers.hub.policy_files import DEFAULT_LICENSE, PLOTS_FOLDER, PolicyFiles

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData

LIBRARY = "spi-diffusers"
_PLOT_TEXTS = {
    "limits.png": "Return and cost against the cost limit",
    "cost_return.png": "Cost and return of the played episodes and of the data's",
    "training.png": "Training curves",
}


def policy_card(
    files: PolicyFiles,
    repo_id: str,
    *,
    on_hub: bool = True,
    results: str = RESULTS_FILE,
    plots: Mapping[str, str] | None = None,
) -> str:
    """The card's text, `README.md` with its YAML header; the same policy and results give the same text.

    Commands load `repo_id`, a repository or (not `on_hub`) a local folder. `results` and `plots` (by name)
    say where readers find the files.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(keep_trailing_newline=True, autoescape=False, undefined=StrictUndefined)
    template = resources.files("spi_diffusers.hub").joinpath("card.md").read_text(encoding="utf-8")
    summaries, info = _summaries(files), files.train_info
    sizes = read_json(files.folder / "noise_model" / "config.json")
    conditioned = sizes.get("use_safety_weight", True)
    # What lies in the current folder by chance has no say in what a repository is called.
    name = repo_id.rpartition("/")[2] if on_hub else short_name(repo_id)
    plots = plots or {}
    return environment.from_string(template).render(
        card_data=str(_card_data(files, summaries, name)),
        name=name,
        on_hub=on_hub,
        repo_id=repo_id,
        task=files.task,
        conditioned=conditioned,
        observation_dim=sizes["observation_dim"],
        action_dim=sizes["action_dim"],
        max_episode_steps=files.index.get("max_episode_steps"),
        limits=[f"{limit:g}" for limit in sorted({summary.cost_limit for summary in summaries})],
        protocol=_protocol(files, summaries) if summaries else "",
        several_seeds=any(len(summary.train_seeds) > 1 for summary in summaries),
        uneven=len({summary.train_seeds for summary in summaries}) > 1,
        spread_over=spread_over(summaries),
        rows=[_row(summary) for summary in summaries],
        assessment=files.assessment,
        certificate=files.certificate,
        failures=[*_failures(summaries, conditioned), *_diverged(files)],
        results=results,
        plots=[(plots.get(plot, f"{PLOTS_FOLDER}/{plot}"), _PLOT_TEXTS[plot]) for plot in files.plots],
        replay=files.replay is not None and bool(summaries),
        limit=_example_limit(summaries),
        steps=files.index.get("max_episode_steps") or 100,
        info=info,
        minutes=f"{info['train_seconds'] / 60:.0f}" if info else "",
        local_data=_is_local(files),
        config=json.dumps(files.train_config, indent=2) if files.train_config else "",
        license=files.license,
        code_license=DEFAULT_LICENSE,
    )


def eval_results_yaml(files: PolicyFiles) -> bytes | None:
    """Content of the `.eval_results` file: figures of safe extraction with feedback where it was played, else
    of the first way that was, as notes say; and what is certified. None where there is neither.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    summaries = _summaries(files)
    entries = [*_certified(files.certificate)]
    for limit in sorted({summary.cost_limit for summary in summaries}):
        best = next(summary for summary in summaries if summary.cost_limit == limit)
        for metric, statistic in (("reward", best.normalized_reward), ("cost", best.normalized_cost)):
            entries.append(
                EvalResultEntry(
                    dataset_id=DSRL_DATASET_REPO,
                    task_id=f"{best.task}-limit-{limit:g}-normalized-{metric}",
                    value=round(statistic.mean, 4),
                    notes=f"{_how(best)}; ± {statistic.spread:.4f}; {best.episodes} episodes, training seeds "
                    f"{_listed(best.train_seeds)}; limit {'kept' if best.is_safe else 'not kept'} on average",
                )
            )
    if not entries:
        return None
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True).encode()


def _certified(certificate: Certificate | None) -> "Iterable[EvalResultEntry]":
    """The bound on the share of episodes over each limit, if the policy has a task to compare it at."""
    from huggingface_hub import EvalResultEntry

    if certificate is None or certificate.task is None:
        return
    for row in certificate.limits:
        yield EvalResultEntry(
            dataset_id=DSRL_DATASET_REPO,
            task_id=f"{certificate.task}-limit-{row.cost_limit:g}-share-over-bound",
            value=round(row.over_bound, 4),
            notes="upper bound on the share of episodes over the limit, "
            f"{shown_share(certificate.confidence)} confidence; {row.over} of {row.episodes} episodes over, "
            f"{certificate.source}, risk {certificate.risk:g}",
        )


def _summaries(files: PolicyFiles) -> list[SeedSummary]:
    """By limit, and within a limit the way that keeps it most reliably first."""
    return sorted(
        summarize_seeds(files.entries),
        key=lambda s: (s.cost_limit, not s.told_limit, not s.feedback, s.risk or 0.0),
    )


def _card_data(files: PolicyFiles, summaries: list[SeedSummary], name: str) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    results = [result for summary in summaries for result in _eval_results(summary)]
    dataset = _hub_dataset(files)
    return ModelCardData(
        license=files.license,
        library_name=LIBRARY,
        pipeline_tag="reinforcement-learning",
        tags=["offline-rl", "safe-rl", "diffusers", "dsrl", *([files.task] if files.task else [])],
        datasets=[dataset] if dataset else None,
        model_name=name,
        eval_results=results or None,
    )


def _eval_results(summary: SeedSummary) -> "Iterable[EvalResult]":
    from huggingface_hub import EvalResult

    arguments = {
        "cost_limit": summary.cost_limit,
        "extraction": summary.extraction,
        "feedback": summary.feedback,
        **({} if summary.risk is None else {"risk": summary.risk}),
        "episodes": summary.episodes,
        "train_seeds": list(summary.train_seeds),
    }
    for name, statistic in (
        ("reward", summary.reward),
        ("cost", summary.cost),
        ("normalized_reward", summary.normalized_reward),
        ("normalized_cost", summary.normalized_cost),
    ):
        yield EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=summary.task,
            dataset_name=summary.task,
            metric_type=f"mean_{name}",
            metric_name=f"mean {name.replace('_', ' ')}, cost limit {summary.cost_limit:g}, {_how(summary)}",
            metric_value=round(statistic.mean, 4),
            metric_args=arguments | {"spread": round(statistic.spread, 4)},
        )


def _row(summary: SeedSummary) -> dict[str, Any]:
    digits = 0 if abs(summary.reward.mean) >= 100 else 2
    return {
        "limit": f"{summary.cost_limit:g}",
        "how": _how(summary),
        "return_": summary.reward.shown(digits, " ± "),
        "cost": summary.cost.shown(1, " ± "),
        "normalized_reward": summary.normalized_reward.shown(2, " ± "),
        "normalized_cost": summary.normalized_cost.shown(2, " ± "),
        "kept": summary.is_safe,
        "within": shown_share(summary.within_limit),
        "worst_cost": shown(summary.cost.worst, 1),
        "seeds": _listed(summary.train_seeds),
    }


def _failures(summaries: list[SeedSummary], conditioned: bool) -> Iterable[str]:
    """The limits that were not kept, in one sentence each; computed, not claimed."""
    if not summaries:
        yield "Unknown, as it has not been evaluated."
        return
    any_failure = False
    for summary in summaries:
        where = f"Cost limit {summary.cost_limit:g}, {_how(summary)}"
        exceeded = shown_share(1 - summary.within_limit)
        if not summary.is_safe:
            yield (
                f"{where}: **the limit was not kept**. The mean cost was {shown(summary.cost.mean, 1)}, and "
                f"{exceeded} of {summary.episodes} episodes exceeded the limit."
            )
        elif not keeps_limit(summary.normalized_cost.worst):
            yield (
                f"{where}: kept on average, but not by every training seed; the worst one's mean cost was "
                f"{shown(summary.cost.worst, 1)}, and {exceeded} of {summary.episodes} episodes exceeded the "
                "limit."
            )
        elif summary.within_limit < 1:
            yield (
                f"{where}: kept on average, but {exceeded} of {summary.episodes} episodes exceeded the limit."
            )
        else:
            continue
        any_failure = True
    if not any_failure:
        episodes = sum(summary.episodes for summary in summaries)
        yield f"No limit was exceeded: all {episodes} episodes stayed within theirs."
    if any(summary.extraction == "reward" for summary in summaries):
        at = ", here at a safety weight of 0.5" if conditioned else ""
        yield f"Extraction by reward alone (Eq. 12 of the paper{at}) does not look at the limit."
    safe = [summary for summary in summaries if summary.told_limit]
    if len({s.cost_limit for s in safe}) > 1 and len({(s.reward.mean, s.cost.mean) for s in safe}) == 1:
        yield (
            f"The limits tested do not bind: the policy does the same at all of them, at a mean cost of "
            f"{shown(safe[0].cost.mean, 1)}. How well it keeps a tighter limit is not known."
        )


def _diverged(files: PolicyFiles) -> Iterable[str]:
    """Trainings without figures: a mean over the others alone would flatter."""
    for run in files.diverged:
        yield f"Training seed {run.train_seed} is in no figure here: {run.message}."


def _how(summary: SeedSummary) -> str:
    if summary.extraction == "reward":
        return "reward extraction"
    risk = "" if summary.risk is None else f", risk {summary.risk:g}"
    return f"safe extraction, cost {'' if summary.feedback else 'not '}fed back{risk}"


def _protocol(files: PolicyFiles, summaries: list[SeedSummary]) -> str:
    eval_seeds = sorted({seed for entry in files.entries for seed in entry.eval_seeds})
    episodes = sorted({entry.episodes for entry in files.entries})
    train_seeds = sorted({seed for summary in summaries for seed in summary.train_seeds})
    own = files.train_info["train_seed"]
    text = (
        f"{_listed(episodes)} episodes per limit, way of choosing actions, and training seed; evaluation "
        f"seeds {_listed(eval_seeds)}."
    )
    if len(train_seeds) == 1:
        return f"{text} One training seed, {own}."
    return (
        f"{text} Figures are means over training seeds {_listed(train_seeds)}; the weights here are those of "
        f"seed {own}."
    )


def _example_limit(summaries: list[SeedSummary]) -> float:
    """A limit that was kept if there is one: an example is no place for one that is known to fail."""
    kept: list[Any] = [s.cost_limit for s in summaries if s.told_limit and s.feedback and s.is_safe]
    return kept[len(kept) // 2] if kept else 20.0


def _hub_dataset(files: PolicyFiles) -> str | None:
    """Id on the Hub of what it was trained on, as the training record has it: `org/name@commit (config)`."""
    source = str(files.train_info.get("dataset", {}).get("id", ""))
    name, mark, _ = source.partition("@")
    return name if mark and HUB_ID.fullmatch(name) else None


def _is_local(files: PolicyFiles) -> bool:
    """Whether the data was a folder or a file, which readers of the card do not have.

    A folder may be called like a dataset on the Hub; the training record tells which it was. DSRL's own
    repository is no dataset of the Hub's: its files are read.
    """
    dataset = files.train_config.get("dataset")
    if dataset is None or dataset in RESERVED_NAMES or dataset.lower() == DSRL_DATASET_REPO.lower():
        return False
    return _hub_dataset(files) is None


def _listed(numbers: Iterable[int]) -> str:
    ordered = sorted(set(numbers))
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(str(number) for number in ordered)
