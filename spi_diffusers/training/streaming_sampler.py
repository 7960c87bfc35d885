"""Batches from data that stays in its files: shuffled within a buffer, reproducible, resumable exactly.

An epoch visits every row of the dataset's episodes once. The rows of its files are cut into pieces of at most
a sixteenth of the buffer; the pieces are put into a random order, and the buffer is filled with one after the
other. When it is full, its rows are shuffled and handed out; then it is filled with the next pieces. All
orders follow from the seed and the number of the epoch, so a position is three numbers, and to resume means
to fill one buffer again.

Compared with drawing from memory: rows are drawn without replacement, and rows that lie far from each other
in the files share a batch only if their pieces are in the buffer at the same time.
"""

import hashlib
import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.parquet_rows import ParquetRows, Range
from spi_diffusers.data.streaming import StreamedDataset
from spi_diffusers.data.transitions import DatasetError
from spi_diffusers.data.units import Units
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.training.checkpoint import CheckpointError
from spi_diffusers.training.sampler import Sampler, no_next_action, scale_actions, take_slice, to_device
from spi_diffusers.training.settle import say_range

logger = logging.getLogger(__name__)

#: Pieces that the buffer holds at least: fewer would mix too little, more would cost more reading.
PIECES_PER_BUFFER = 16
#: Parts the random orders of this file from each other and from all other uses of the seed.
_EPOCH, _BUFFER = 0x5350_0001, 0x5350_0002


def cut_into_pieces(rows: ParquetRows, buffer_size: int) -> list[Range]:
    """Cut rows into pieces (first row, row after the last), none longer than a sixteenth of the buffer.

    A row group that is small enough is one piece, as it is read as a whole anyway.
    """
    longest = max(buffer_size // PIECES_PER_BUFFER, 1)
    pieces = []
    for group in rows.row_groups:
        size = group.stop - group.start
        edges = np.linspace(group.start, group.stop, -(-size // longest) + 1).astype(int)
        pieces += [(int(start), int(stop)) for start, stop in pairwise(edges)]
    return pieces


@dataclass(frozen=True)
class _Buffer:
    """Rows in memory.

    Attributes:
        columns: by name, in the order of the dataset.
        order: the order in which rows are handed out; rows that may not be drawn are missing.
        next_piece: position, in the epoch's order of pieces, of the first piece after the buffer.
    """

    columns: dict[str, Tensor]
    order: Tensor
    next_piece: int


class StreamingSampler(Sampler):
    """Draws transitions of a dataset that is read in parts.

    Every process reads the same rows and takes its slice of each batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: StreamedDataset,
        normalizer: ObservationNormalizer,
        units: Units,
        **options: Any,
    ):
        super().__init__(config, dataset, normalizer, units, **options)
        self._dataset = dataset
        self._check_extremes()
        self._seed = config.seed
        self._buffer_size = config.shuffle_buffer
        self._with_next_action = "next_action" in self._columns_needed
        self._pieces = cut_into_pieces(dataset.rows, self._buffer_size)
        digest = hashlib.sha256(repr(self._pieces).encode()).digest()
        self._layout = int.from_bytes(digest[:8], "little", signed=True)
        self._epoch, self._first_piece, self._handed_out = 0, 0, 0
        self._buffer: _Buffer | None = None
        self._empty_buffers = 0

    def _check_extremes(self) -> None:
        """Refuse actions outside the range now, and not when their part of the data is read."""
        low, high, clip = self._action_range
        seen = torch.from_numpy(np.stack(self._dataset.extremes["action"])).float()
        try:
            scale_actions(seen, low, high, clip)
        except DatasetError:
            raise DatasetError(
                f"{self._dataset.source}: column 'action' reaches from {seen[0].tolist()} to "
                f"{seen[1].tolist()}, outside {say_range(low, high)}. Give the environment's range as "
                "action_low and action_high, or set clip_actions=true if the environment clipped them itself."
            ) from None

    def get_state(self) -> Tensor:
        """State of the generator, then epoch, first piece of the buffer, rows handed out, pieces' digest."""
        numbers = [self._epoch, self._first_piece, self._handed_out, self._layout]
        position = torch.tensor(numbers, dtype=torch.int64)
        return torch.cat([super().get_state(), position.view(torch.uint8)])

    def set_state(self, state: Tensor) -> None:
        """Continue from a state that `get_state` returned, of a sampler of the same data and settings.

        Raises:
            CheckpointError: The checkpoint is of a sampler from memory, or the files' row groups differ from
                those at the start of the run.
        """
        size = len(self.generator.get_state())
        if len(state) != size + 32:
            raise CheckpointError("the checkpoint is of a run that did not stream its data")
        *position, layout = state[size:].clone().view(torch.int64).tolist()
        if layout != self._layout:
            raise CheckpointError(
                f"{self._dataset.source}: its row groups differ from those at the start of the run; resume "
                "with the original files"
            )
        super().set_state(state[:size])
        self._epoch, self._first_piece, self._handed_out = position
        self._buffer = None

    def _transitions(self) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        missing = self.batch_size
        while missing:
            buffer = self._filled_buffer()
            index = buffer.order[self._handed_out : self._handed_out + missing]
            parts.append({name: column.index_select(0, index) for name, column in buffer.columns.items()})
            self._handed_out += len(index)
            missing -= len(index)
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        own = {name: take_slice(value, 0, *self._slice) for name, value in whole.items()}
        return {name: to_device(value, self._device) for name, value in own.items()}

    def _filled_buffer(self) -> _Buffer:
        """The buffer, filled anew if it is handed out."""
        while self._buffer is None or self._handed_out >= len(self._buffer.order):
            if self._buffer is not None:
                self._first_piece, self._handed_out = self._buffer.next_piece, 0
                if self._first_piece == len(self._pieces):
                    self._epoch, self._first_piece = self._epoch + 1, 0
            columns = None if self._buffer is None else self._buffer.columns
            self._buffer = None
            self._buffer = self._fill(columns)
            self._empty_buffers = 0 if len(self._buffer.order) else self._empty_buffers + 1
            if self._empty_buffers > len(self._pieces):
                raise no_next_action(self._dataset.source)
        return self._buffer

    def _fill(self, old: dict[str, Tensor] | None) -> _Buffer:
        """Read the pieces from `_first_piece` on that fit; memory of the `old` buffer is used again."""
        order = np.random.default_rng([self._seed, _EPOCH, self._epoch]).permutation(len(self._pieces))
        chosen: list[Range] = []
        size, stop = 0, self._first_piece
        while stop < len(order):
            start, end = self._pieces[order[stop]]
            if chosen and size + end - start > self._buffer_size:
                break
            chosen.append((start, end))
            size, stop = size + end - start, stop + 1
        chosen.sort()
        columns = self._read(chosen, size, old)
        rows = torch.cat([torch.arange(start, end) for start, end in chosen])
        may_be_drawn = self._dataset.episodes.hold_rows(rows)
        if self._with_next_action:
            may_be_drawn &= columns.pop("has_next")
        drawable = may_be_drawn.nonzero().flatten()
        rng = np.random.default_rng([self._seed, _BUFFER, self._epoch, self._first_piece])
        shuffled = torch.from_numpy(rng.permutation(len(drawable)))
        return _Buffer(columns, drawable[shuffled], stop)

    def _read(self, pieces: list[Range], size: int, old: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Read pieces into one tensor per column, in the order of the dataset."""
        starts = np.array([start for start, _ in pieces])
        offsets = np.cumsum([0, *(stop - start for start, stop in pieces)])
        columns: dict[str, Tensor] = {}
        truncated = torch.empty(size, dtype=torch.bool)
        for first, batch in self._dataset.read(pieces):
            piece = int(np.searchsorted(starts, first, side="right")) - 1
            begin = int(offsets[piece]) + first - pieces[piece][0]
            place = slice(begin, begin + len(batch))
            for name, values in self._training_columns(batch, self._dataset.source, first).items():
                if name not in columns:
                    columns[name] = _room(size, values, None if old is None else old.get(name))
                columns[name][place] = values
            truncated[place] = batch.truncated
        if self._with_next_action:
            columns |= self._next_actions(pieces, columns["action"], columns["terminated"], truncated)
        return columns

    def _next_actions(
        self, pieces: list[Range], action: Tensor, terminated: Tensor, truncated: Tensor
    ) -> dict[str, Tensor]:
        """a_{i+1} of each row, also across the edges of pieces, and whether a row has one or needs none."""
        following = torch.cat([action[1:], action[-1:]])
        ends = terminated | truncated
        last = np.cumsum([stop - start for start, stop in pieces]) - 1
        starts = {start for start, _ in pieces}
        for row, (_, stop) in zip(last.tolist(), pieces, strict=True):
            if not ends[row] and stop not in starts:
                _, batch = next(iter(self._dataset.read([(stop, stop + 1)])))
                following[row] = self._training_columns(batch, self._dataset.source, stop)["action"][0]
        next_action = torch.where(ends.unsqueeze(-1), torch.zeros_like(action), following)
        return {"next_action": next_action, "has_next": ~ends | terminated}


def _room(size: int, like: Tensor, old: Tensor | None) -> Tensor:
    """An uninitialized tensor for `size` rows; memory that the buffer before has left is used again."""
    if old is not None and len(old) >= size:
        return old[:size]
    return torch.empty((size, *like.shape[1:]), dtype=like.dtype)
