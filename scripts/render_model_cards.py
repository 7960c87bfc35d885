"""Render model_cards/ from the committed results: the card of every task's policy, as it is published.

    python scripts/render_model_cards.py            # model_cards/spi-<task>.md, for each results/<task>.json
    python scripts/render_model_cards.py --check    # only say whether they are up to date

A card's weights are those of training seed 0; its figures are of all seeds.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from helpers import RESULTS, ROOT, dataset_of, results_of, script_parser

from spi_diffusers.cli import run_with_messages
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.hub.card import policy_card
from spi_diffusers.hub.policy_files import PolicyFiles

CARDS = ROOT / "model_cards"
ORGANISATION = "org"  # whoever publishes them puts their own here


def card_of(task: str) -> str:
    """The card of a task's policy, which loads it from `org/spi-<task>`."""
    known, results = get_task(task), results_of(task)
    entries = read_results(results)
    first = next(entry for entry in entries if entry.train_seed == 0)
    settings = {"task": known.name, "output_dir": f"outputs/{task}-seed0"}
    if dataset := dataset_of(task):
        settings["dataset"] = dataset
    config = make_train_config(settings)
    if config.updates != first.updates:
        raise SystemExit(
            f"{results}: {first.updates} updates, but the preset has {config.updates}: run make results"
        )
    info = {
        "algorithm": first.algorithm,
        "train_seed": first.train_seed,
        "updates": first.updates,
        "train_seconds": first.train_seconds,
        "dataset": first.dataset,
        "versions": first.versions,
    }
    sizes = {
        "observation_dim": known.observation_dim,
        "action_dim": known.action_dim,
        "use_safety_weight": config.spi.conditioned,
    }
    plot = RESULTS / f"{task}_limits.png"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "noise_model").mkdir()
        (Path(folder) / "noise_model" / "config.json").write_text(json.dumps(sizes))
        files = PolicyFiles(
            folder=Path(folder),
            index={"task": known.name, "max_episode_steps": known.max_episode_steps},
            train_info=info,
            train_config=config.to_dict(),
            entries=tuple(entries),
            plots={"limits.png": plot},
            diverged=tuple(read_results(results).diverged),
        )
        return policy_card(
            files,
            f"{ORGANISATION}/spi-{task}",
            results=os.path.relpath(results, CARDS),
            plots={"limits.png": os.path.relpath(plot, CARDS)},
        )


def cards() -> Iterator[tuple[Path, str]]:
    """Path and text of the card of every task that has results."""
    for task in (task.short_name for task in TASKS.values()):
        if results_of(task).exists():
            yield CARDS / f"spi-{task}.md", card_of(task)


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the cards are up to date")
    args = parser.parse_args()
    rendered = dict(cards())
    if not args.check:
        for path, text in rendered.items():
            path.write_text(text, encoding="utf-8")
            print(f"Written: {path.relative_to(ROOT)}")
        return 0
    present = {path: path.read_text(encoding="utf-8") for path in CARDS.glob("spi-*.md")}
    wrong = sorted(path.name for path in present.keys() | rendered if present.get(path) != rendered.get(path))
    if wrong:
        print(f"not up to date: {', '.join(wrong)}; run scripts/render_model_cards.py", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
