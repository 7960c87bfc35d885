"""From the episodes that were kept to a dataset: thinned to the size that is wanted, and written.

Thinning keeps what matters for safe learning: the best episodes within each cost limit, and the spread over
the plane of cost return and return.
"""

import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from spi_diffusers.collection.config import CollectionError, CollectionSpec
from spi_diffusers.collection.description import describe_collection
from spi_diffusers.collection.episodes import Episode
from spi_diffusers.data.card import EPISODES_FILE, STATS_FILE
from spi_diffusers.data.tasks import as_path
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.files import read_json

SOURCE = "collected by this package in the real simulator"
#: Where in `stats.json` the settings of a finished collection are.
STATS_KEY = "collection"
_TRIALS_IN_PROPORTION = 8
_BEST_SHARE = 0.4  # of the transitions, for the best episodes within each cost limit
_BINS = 20  # cells along each axis of the plane of cost return and return


def write_collection(spec: CollectionSpec, episodes: Sequence[Episode]) -> TransitionDataset:
    """Choose as many episodes as fit, write them, and return the dataset as written.

    The spec's work folder serves to find out how large a choice is. CollectionError if no choice fits,
    FileExistsError if the folder has the config already and `overwrite` is off.
    """
    lengths, returns, costs = (
        np.array(values)
        for values in zip(*((len(e.reward), e.return_, e.cost_return) for e in episodes), strict=True)
    )
    record = {STATS_KEY: _full_record(spec)}
    wanted = int(lengths.sum())
    for trial in itertools.count(1):
        chosen = thin_episodes(
            lengths, returns, costs, wanted, cost_limits=spec.task.cost_limits, seed=spec.seed
        )
        if not chosen:
            break
        dataset = _to_dataset(spec, [episodes[index] for index in chosen])
        description = describe_collection(dataset, spec, episodes_kept=len(episodes))
        size = _written_size(dataset, spec)
        words = len(json.dumps([SOURCE, description])) + len(json.dumps(record, indent=2))
        if size + words <= spec.max_bytes:
            write_parquet_dataset(
                dataset,
                spec.folder,
                source=SOURCE,
                description=description,
                location=as_path(spec.folder.resolve().name),  # the card is alike wherever it lies
                more_stats=record,
                overwrite=spec.overwrite,
            )
            return dataset
        # A little less than in proportion, so that few trials are enough.
        too_large = size if size > spec.max_bytes else size + words
        wanted = int(wanted * spec.max_bytes / too_large * 0.995)
        if trial >= _TRIALS_IN_PROPORTION:  # where few long episodes fit, the same ones may be chosen again
            wanted = min(wanted, len(dataset) - 1)
    raise CollectionError(
        f"{spec.task.name}: no choice of episodes fits into {spec.max_bytes} bytes. What was collected is "
        "kept: the same collection with a larger max_bytes (--max-bytes) goes on from it"
    )


def is_collected(spec: CollectionSpec) -> bool:
    """Whether the folder has the dataset that this collection writes.

    False also where nothing says by which settings it was collected, or a file is gone.
    """
    dataset = spec.folder / spec.task.name
    if not (any(dataset.glob("train-*.parquet")) and (dataset / EPISODES_FILE).is_file()):
        return False
    try:
        return read_json(dataset / STATS_FILE).get(STATS_KEY) == _full_record(spec)
    except (OSError, ValueError):
        return False


def thin_episodes(
    lengths: np.ndarray,
    returns: np.ndarray,
    costs: np.ndarray,
    num_transitions: int,
    *,
    cost_limits: Sequence[float],
    seed: int,
) -> list[int]:
    """Choose whole episodes of together at most so many transitions: the best safe ones, and the spread.

    40% of the transitions go in turn to the best episode within each cost limit that is not chosen yet. The
    rest is spread over a 20 x 20 grid over (cost return, return), whose cells are filled evenly.

    `lengths` int64, `returns` and `costs` float64 are (E,). Returns positions, ascending; all of them where
    everything fits, none where no episode does. The same seed gives the same choice.
    """
    if lengths.sum() <= num_transitions:
        return list(range(len(lengths)))
    best_first = np.argsort(-returns, kind="stable")
    queues = [iter(best_first[costs[best_first] <= limit].tolist()) for limit in cost_limits]
    chosen: set[int] = set()
    used = 0
    while queues:
        for queue in list(queues):
            episode = next((e for e in queue if e not in chosen), None)
            if episode is None or used + lengths[episode] > _BEST_SHARE * num_transitions:
                queues.remove(queue)
                continue
            chosen.add(episode)
            used += lengths[episode]
    for episode in _evenly_over_the_plane(returns, costs, chosen, seed):
        if used + lengths[episode] <= num_transitions:
            chosen.add(episode)
            used += lengths[episode]
    return sorted(chosen)


def _evenly_over_the_plane(
    returns: np.ndarray, costs: np.ndarray, chosen: Collection[int], seed: int
) -> Iterator[int]:
    """Episodes that are not chosen yet, such that the cells of a grid fill evenly from the emptiest up."""
    cells: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    column, row = _bin(costs), _bin(returns)
    for episode in np.random.default_rng(seed).permutation(len(returns)).tolist():
        cells[int(column[episode]), int(row[episode])].append(episode)
    filled = {cell: sum(episode in chosen for episode in members) for cell, members in cells.items()}
    waiting = {cell: [e for e in members if e not in chosen] for cell, members in cells.items()}
    level = 0
    while any(waiting.values()):
        level += 1
        for cell, members in waiting.items():
            if filled[cell] < level and members:
                yield members.pop()
                filled[cell] += 1


def _bin(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(len(values), dtype=np.int64)
    return np.minimum(((values - low) / (high - low) * _BINS).astype(np.int64), _BINS - 1)


def _full_record(spec: CollectionSpec) -> dict:
    """What decides the dataset: the episodes that are collected, and to what size they are thinned."""
    return spec.record() | {"max_bytes": spec.max_bytes}


def _written_size(dataset: TransitionDataset, spec: CollectionSpec) -> int:
    """Bytes of the config's folder, except for the words about it and the record."""
    written = write_parquet_dataset(dataset, spec.work / "trial", source="trial", overwrite=True)
    size = sum(file.stat().st_size for file in (written / spec.task.name).iterdir())
    shutil.rmtree(written)
    return size


def _to_dataset(spec: CollectionSpec, episodes: Sequence[Episode]) -> TransitionDataset:
    """The episodes, one after the other, as a dataset."""

    def ends(terminated: bool) -> np.ndarray:
        rows = [np.arange(len(e.reward)) == len(e.reward) - 1 for e in episodes]
        return np.concatenate(
            [row & (e.terminated == terminated) for row, e in zip(rows, episodes, strict=True)]
        )

    columns = {
        "observation": np.concatenate([episode.observation[:-1] for episode in episodes]),
        "next_observation": np.concatenate([episode.observation[1:] for episode in episodes]),
        **{
            name: np.concatenate([getattr(episode, name) for episode in episodes])
            for name in ("action", "reward", "cost")
        },
        "terminated": ends(True),
        "truncated": ends(False),
    }
    return TransitionDataset.from_columns(columns, task=spec.task, source=f"collection of {spec.task.name}")
