"""Rows as the original fills them: one example behind the other, cut where a row is full.

Tokens see those of other examples before them in their row. It is here to train as the original
did; packing in which examples do not see each other (`stream`) is the better way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from lwm_core.data.cursors import State, own_state
from lwm_core.data.entry import Encoder
from lwm_core.data.packing import Weighted
from lwm_core.data.records import Records
from lwm_core.data.tally import MOST_BAD, Tally
from lwm_core.errors import ConfigError, FormatError, RecordError
from lwm_core.types import Batch

Pad = Literal["none", "text", "vision"]
"""How an example fills its row; what each way is, `Concatenated` says."""


class _Piece(NamedTuple):
    """What a record gave: ids int32 and weights float32, each `[tokens]`.

    `before` is what had been met when it was read.
    """

    epoch: int
    record: int
    before: Tally
    ids: np.ndarray
    weights: np.ndarray


class Concatenated:
    """Endless batches `[rows, length]` of the records of one source, in their own order.

    `pad` is one of the original's ways, with its oddities:

    - "none": examples follow one another through all rows.
    - "text": each is cut or filled up to `length + 1` tokens, but rows are cut every `length`
      tokens, so that row r begins r tokens before its example; what is left when a batch is full
      is dropped, which with one row is every second example.
    - "vision": each has a row of its own; where it is cut, its weights stand one place too early.

    What fills up is `bos_id` of weight 0; with `begin_with_bos` it also stands first in every row,
    in the place of what was there. Of `shard` (r, n) only records r, r + n, … are read, and `rows`
    are those of the shard. Malformed records are passed over and counted, up to the share
    `most_bad` of an epoch.

    A `cursor` continues where it was taken, bit for bit so long as the settings are the same. Of
    several shards the cursors are joined, `cursors.join_cursors`; another number of shards goes on
    with the first record of which one had not used up all: some are seen twice, and none is lost.

    Raises ConfigError for another `pad`, and UsageError for a cursor that lacks shards. When
    batches are made, FormatError says that a whole epoch gives nothing to learn from, or more bad
    records than it may.
    """

    def __init__(
        self,
        records: Records,
        encode: Encoder,
        rows: int,
        length: int,
        *,
        bos_id: int,
        pad: Pad = "none",
        begin_with_bos: bool = False,
        shard: tuple[int, int] = (0, 1),
        most_bad: float = MOST_BAD,
        cursor: Mapping[str, Any] | None = None,
    ):
        if pad not in get_args(Pad):
            raise ConfigError(f"pad is {pad!r}; it may be {', '.join(get_args(Pad))}")
        self._records, self._encode = records, encode
        self._rows, self._length = rows, length
        self._bos_id, self._pad, self._begin_with_bos = bos_id, pad, begin_with_bos
        self._shard, self._most_bad = shard, most_bad
        self._why = ""
        self._pieces: list[_Piece] = []
        state: State = {"epoch": 0, "record": 0}
        if cursor:
            state = own_state(cursor, shard) or _least(cursor["shards"])
        self._next = (state["epoch"], state["record"])
        self._used = state.get("used", 0)
        self._met = Tally(**state.get("met", {}))
        self._coming = self._examples(*self._next)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        inputs, targets, weights = self._vision() if self._pad == "vision" else self._run()
        if self._begin_with_bos:
            inputs[:, 0] = self._bos_id
        positions = np.tile(np.arange(self._length, dtype=np.int32), (self._rows, 1))
        return Batch(inputs, targets, positions, np.ones_like(positions), weights)

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next batch begins: the record, and how many of its tokens are used."""
        epoch, record, met = self._pieces[0][:3] if self._pieces else (*self._next, self._met)
        place = {"epoch": epoch, "record": record, "used": self._used, "met": asdict(met)}
        return {"shards": [{"shard": self._shard[0], "of": self._shard[1], **place}]}

    @property
    def counts(self) -> dict[str, int]:
        """How many records of an epoch were `malformed`: not readable, or without what is needed.

        And the `epoch` and number of the `record` that was read last.
        """
        epoch, after = self._next
        return {"malformed": self._met.worst, "epoch": epoch, "record": after - 1}

    def _run(self) -> tuple[np.ndarray, ...]:
        """Inputs, targets and weights `[rows, length]` out of one run of tokens."""
        size = self._rows * self._length
        # The original waits for one token more than it needs.
        while sum(len(piece.ids) for piece in self._pieces) - self._used <= size + 1:
            piece = next(self._coming)
            self._pieces.append(self._padded(piece) if self._pad == "text" else piece)
        run = slice(self._used, self._used + size + 1)
        ids = np.concatenate([piece.ids for piece in self._pieces])[run]
        weights = np.concatenate([piece.weights for piece in self._pieces])[run]
        self._drop(size)
        shape = self._rows, self._length
        return tuple(x.reshape(shape).copy() for x in (ids[:-1], ids[1:], weights[1:]))

    def _vision(self) -> tuple[np.ndarray, ...]:
        """Inputs, targets and weights `[rows, length]`, an example a row."""
        while len(self._pieces) < self._rows:
            self._pieces.append(next(self._coming))
        shape = self._rows, self._length
        inputs, targets = (np.full(shape, self._bos_id, np.int32) for _ in range(2))
        weights = np.zeros(shape, np.float32)
        for row, piece in enumerate(self._pieces):
            ids = piece.ids[: self._length + 1]
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, : len(ids) - 1] = ids[1:]
            first = 1 if len(piece.ids) <= self._length else 2  # as in the original
            kept = piece.weights[first : self._length + 1]
            weights[row, : len(kept)] = kept
        self._pieces.clear()
        return inputs, targets, weights

    def _padded(self, piece: _Piece) -> _Piece:
        """An example cut or filled up to one token more than a row has."""
        size = self._length + 1
        missing = (0, max(0, size - len(piece.ids)))
        ids = np.pad(piece.ids[:size], missing, constant_values=self._bos_id)
        return piece._replace(ids=ids, weights=np.pad(piece.weights[:size], missing))

    def _drop(self, used: int) -> None:
        """Forget what was used, and what padding leaves behind."""
        if self._pad == "text":
            self._pieces.clear()
            return
        self._used += used
        while self._used >= len(self._pieces[0].ids):
            self._used -= len(self._pieces.pop(0).ids)

    def _examples(self, epoch: int, start: int) -> Iterator[_Piece]:
        """What the records of the shard give, pass after pass."""
        rank, ways = self._shard
        found = start > 0
        while True:
            for number, record in self._records.read(start + (rank - start) % ways, ways):
                self._next = (epoch, number + 1)
                before = replace(self._met)
                example = self._example(number, record)
                if example.ids:
                    found = True
                    ids = np.array(example.ids, np.int32)
                    weights = np.array(example.weights, np.float32)
                    yield _Piece(epoch, number, before, ids, weights)
            if not found:
                raise FormatError(
                    f"{self._records.name}: there is nothing to learn from{self._why}"
                )
            epoch, start, found = epoch + 1, 0, False
            self._met.begin_epoch()

    def _example(self, number: int, record: dict[str, Any] | None) -> Weighted:
        """What one record gives: no tokens if it is bad. Raises FormatError when too many are."""
        self._met.records += 1
        try:
            if record is None:
                raise RecordError(f"record {number} is no JSON object")
            return reduce(add, self._encode(number, record), Weighted([], []))
        except RecordError as error:
            self._why = f"; the last: {error}"
            self._met.refuse(self._records.name, str(error), self._most_bad)
            return Weighted([], [])


def _least(states: Sequence[State]) -> State:
    """The first record of which one of these shards had not used up all."""
    epoch, record = min((state["epoch"], state["record"]) for state in states)
    return {"epoch": epoch, "record": record}
