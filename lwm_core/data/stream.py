"""The stream: batches of packed pieces of several sources, which goes on from wherever it stood.

Its whole position is a small JSON value: where each source is read on, and which pieces have been
read but lie in no batch yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from lwm_core.data.cursors import State, own_state
from lwm_core.data.packing import take_longest, to_batch
from lwm_core.data.pieces import Counts, Piece, Place, Reader, Source, Terms, TooLong
from lwm_core.data.tally import MOST_BAD
from lwm_core.errors import ConfigError
from lwm_core.types import Batch

PIECES_AHEAD = 256
"""Most pieces that wait for a row; of so many of mixed lengths some fill it well."""
TOKENS_AHEAD = 1 << 25
"""Tokens from which on no more pieces are read ahead: 256 MiB of memory."""


class Stream:
    """Endless batches, `rows` of `length` tokens, for one shard of a number of shards.

    Sources are mixed by tokens: the next piece is of that which is furthest behind its weight.
    Each example is in the batches of one shard, once in every epoch of its source. In every row
    the piece that has waited longest comes first, then the longest that fit.

    A stream made with the `cursor` of another goes on with exactly its next batch. It may have
    other rows, another length, and other weights of the sources from there on, and sources may
    join, leave and come back. Of several shards the cursors are joined, `cursors.join_cursors`;
    then there may be another number of shards. They go on where the one was that came least far
    in a source, and a source that comes back goes on with the first example that waited: so some
    examples are seen twice in that epoch, and none is lost.

    `too_long` examples are split into pieces of a row each (the last is shorter), cut, or skipped.
    Malformed records are passed over and counted, up to the share `most_bad` of what an epoch of
    their source has met.

    Raises ConfigError for values that can't be meant, and UsageError for a cursor that lacks
    shards. When batches are made, FormatError names a source that has nothing to learn from, more
    bad records than it may, or other records than the cursor was made of.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        rows: int,
        length: int,
        seed: int,
        *,
        shard: tuple[int, int] = (0, 1),
        too_long: TooLong = "split",
        most_bad: float = MOST_BAD,
        cursor: Mapping[str, Any] | None = None,
    ):
        names = [source.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"sources: at least one, each of another name; got {names}")
        if too_long not in get_args(TooLong):
            raise ConfigError(f"too_long is {too_long!r}; it may be split, cut or skip")
        if not 0 <= shard[0] < shard[1]:
            raise ConfigError(f"shard {shard[0]} of {shard[1]} is none")
        for name, value in (("rows", rows), ("length", length)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        self._rows = rows
        self._terms = Terms(seed, shard, length, too_long, most_bad)
        state: State = {}
        if cursor:
            state = own_state(cursor, shard) or _first_places(cursor["shards"])
        known = state.get("sources", {})
        latest = max((stood.get("turn", 0.0) for stood in known.values()), default=0.0)
        self._readers = [
            _reader(source, self._terms, known.get(source.name, {}), latest) for source in sources
        ]
        self._absent = {
            name: {"place": _least(name, [state]), "counts": _recounted(stood.get("counts", {}))}
            for name, stood in known.items()
            if name not in names
        }
        self._waiting = self._again(state.get("waiting", ()))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return to_batch([self._row() for _ in range(self._rows)], self._terms.length)

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the stream is after the batches that it has given: JSON without token ids."""
        shard, shards = self._terms.shard
        sources: dict[str, Any] = dict(self._absent)
        for reader in self._readers:
            sources[reader.source.name] = {
                "place": list(reader.place),
                "turn": reader.turn,
                "counts": dataclasses.asdict(reader.counts),
            }
        waiting = [[piece.source, *piece.place, piece.stop] for piece in self._waiting]
        return {"shards": [{"shard": shard, "of": shards, "sources": sources, "waiting": waiting}]}

    @property
    def counts(self) -> dict[str, int]:
        """What is to be known of it, so far and of this shard.

        Records that are `malformed`, of one epoch each, are counted of all sources, and examples
        that are `too_long`, or `left_out`: they, or parts of them, have nothing to predict, or are
        too long where that is the policy. `epoch/NAME` is that of a source, from 0.
        """
        each = [reader.counts for reader in self._readers]
        return {
            "malformed": sum(counts.worst for counts in each),
            "left_out": sum(counts.skipped for counts in each),
            "too_long": sum(counts.too_long for counts in each),
            **{f"epoch/{reader.source.name}": reader.place.epoch for reader in self._readers},
        }

    def _again(self, waiting: Sequence[Sequence[Any]]) -> list[Piece]:
        """The pieces that waited for a row, from where they were read."""
        stretches: dict[str, list[tuple[Place, int]]] = {}
        for name, *place, stop in waiting:
            stretches.setdefault(name, []).append((Place(*place), stop))
        again = {
            reader.source.name: reader.again(stretches.get(reader.source.name, ()))
            for reader in self._readers
        }
        return [piece for name, *_ in waiting if name in again for piece in next(again[name])]

    def _row(self) -> list[Piece]:
        """The piece that waits longest, then the longest that fit while any of those ahead does."""
        self._look_ahead()
        row = [self._waiting.pop(0)]
        room = self._terms.length - row[0].steps
        while True:
            self._look_ahead()
            fitting = take_longest(self._waiting, room)
            if not fitting:
                return row
            row += fitting
            room -= sum(piece.steps for piece in fitting)

    def _look_ahead(self) -> None:
        """Read pieces until enough wait to choose from."""
        tokens = sum(len(piece.ids) for piece in self._waiting)
        while not self._waiting or (len(self._waiting) < PIECES_AHEAD and tokens < TOKENS_AHEAD):
            piece = min(self._readers, key=lambda reader: reader.turn).read()
            self._waiting.append(piece)
            tokens += len(piece.ids)


def _reader(source: Source, terms: Terms, state: Mapping[str, Any], latest: float) -> Reader:
    """The reader of a source that goes on from a state; one that is new takes the latest turn."""
    place, counts = Place(*state.get("place", ())), Counts(**state.get("counts", {}))
    return Reader(source, terms, place, state.get("turn", latest), counts)


def _first_places(states: Sequence[State]) -> State:
    """The state of shards of another number than these are: where some of these had read least."""
    names = states[0]["sources"]
    return {"sources": {name: {"place": _least(name, states)} for name in names}}


def _recounted(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts of a source that goes back to records of this epoch, which are then met again."""
    again = Counts(**counts)
    again.begin_epoch()
    return dataclasses.asdict(again)


def _least(name: str, states: Sequence[State]) -> list[int]:
    """The first place of a source where a record is that some of these shards had not used up."""
    read = [state["sources"][name]["place"] for state in states]
    waiting = [
        place for state in states for of, *place, _ in state.get("waiting", ()) if of == name
    ]
    return [*min(read + waiting)[:3], 0, 0]
