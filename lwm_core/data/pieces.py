"""The pieces of one source: its records in shuffled order, dealt to shards, cut to fit a row.

The order is a function of the seed, the source's name, the epoch and the block alone. Every piece
has a place in it, from which it is found again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from zlib import crc32

import numpy as np

from lwm_core.data.tally import LEAST_RECORDS, Tally
from lwm_core.errors import ConfigError, FormatError, RecordError

if TYPE_CHECKING:
    from lwm_core.data.entry import Encoder
    from lwm_core.data.packing import Weighted
    from lwm_core.data.records import Records

TooLong = Literal["split", "cut", "skip"]
"""What becomes of an example that is longer than a row: rows of its own, a row, or nothing."""
Weigh = Literal["token", "example"]
EXAMPLE = 256.0
"""Sum of the weights of an example, where every example counts alike: that of a frame's codes."""
MOST_SHUFFLED = 1 << 24
"""Records of a block at most: 128 MiB say in which order they come."""
TINY = 1e-9
"""Least sum of weights to divide by."""

Entry = tuple[int, Mapping[str, Any] | None]
"""A record and its number; None where it is malformed."""


@dataclass(frozen=True)
class Source:
    """Records to learn from, and how.

    `weight` is its share of the tokens, among the weights of all sources. Blocks of `shuffle`
    records are put in random order (1: as they come); those of a block that are this shard's are
    held in memory. `weigh` says what counts alike: every "token", as the encoder weighs it, or
    every "example", whatever its length.

    Raises ConfigError, naming the key, for values that can't be meant.
    """

    name: str
    records: Records
    encode: Encoder
    weight: float = 1.0
    shuffle: int = 1000
    weigh: Weigh = "token"

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"{self.name}: weight is {self.weight}; it must be above 0")
        if not 1 <= self.shuffle <= MOST_SHUFFLED:
            raise ConfigError(
                f"{self.name}: shuffle is {self.shuffle}; it must be from 1 to {MOST_SHUFFLED}"
            )
        if self.weigh not in get_args(Weigh):
            raise ConfigError(f"{self.name}: weigh is {self.weigh!r}; it may be token or example")


class Place(NamedTuple):
    """Where a piece begins: at token `start` of an example of a record of a source.

    The record is that at `offset` in its shuffled block; `example` counts what it is encoded to.
    """

    epoch: int = 0
    block: int = 0
    offset: int = 0
    example: int = 0
    start: int = 0


@dataclass(frozen=True)
class Piece:
    """An example, or a part of it, that fits a row: ids int32 and weights float32 `[T]`."""

    source: str
    place: Place
    ids: np.ndarray
    weights: np.ndarray

    @property
    def steps(self) -> int:
        """Predictions that it takes: one less than its tokens."""
        return len(self.ids) - 1

    @property
    def stop(self) -> int:
        """The token of its example before which it ends."""
        return self.place.start + len(self.ids)


@dataclass
class Counts(Tally):
    """What a shard met in a source: records in this epoch, and examples so far.

    Some examples are `too_long` for a row. What is `skipped` has nothing to predict, or is too
    long where that is the policy.
    """

    too_long: int = 0
    skipped: int = 0
    pieces: int = 0


@dataclass(frozen=True)
class Terms:
    """What holds for all sources of a stream: `shard` is a number and how many there are."""

    seed: int
    shard: tuple[int, int]
    length: int
    too_long: TooLong
    most_bad: float


@dataclass
class Reader:
    """Reads the pieces of a source for one shard, epoch after epoch, from a place on.

    After each piece, `place` is where the next begins: a reader that starts there goes on with it.
    `turn` is how much has been read for the weight of the source; a mixture reads on where that is
    least.
    """

    source: Source
    terms: Terms
    place: Place
    turn: float
    counts: Counts

    def __post_init__(self) -> None:
        self._pieces = self._endless()
        self._reason = ""

    def read(self) -> Piece:
        """The next piece.

        Raises FormatError when none comes, epoch after epoch, or when too many records are bad.
        """
        piece = next(self._pieces)
        self.turn += piece.steps / self.source.weight
        return piece

    def again(self, stretches: Iterable[tuple[Place, int]]) -> Iterator[list[Piece]]:
        """Pieces that were read before, each by its place and the token before which it ends.

        Where rows have become shorter it is cut anew. Raises FormatError when it is not there.
        """

        @cache
        def entries(epoch: int, block: int) -> dict[int, Entry]:
            return next(self._blocks(epoch, block))[1]

        @cache
        def examples(epoch: int, block: int, offset: int) -> list[Weighted]:
            index, record = entries(epoch, block)[offset]
            return [] if record is None else self.source.encode(index, record)

        for place, stop in stretches:
            try:
                example = examples(*place[:3])[place.example]
            except (StopIteration, LookupError, RecordError) as error:
                name = self.source.name
                raise FormatError(
                    f"{name}: its records have changed since this run began"
                ) from error
            yield list(self._cut(example, place, stop))

    def _endless(self) -> Iterator[Piece]:
        for index, record in self._dealt():
            for number, example in enumerate(self._encoded(index, record)):
                if number >= self.place.example:
                    yield from self._useful(number, example)

    def _dealt(self) -> Iterator[Entry]:
        """The records of this shard; when one is handed out, `place` is in it."""
        useless = 0
        while True:
            before = replace(self.counts)
            epoch, is_rest, found = self.place.epoch, any(self.place[1:]), False
            for block, entries in self._blocks(epoch, self.place.block):
                found = True
                for offset in sorted(entries):
                    entry = entries.pop(offset)  # or a block would be held while the next is read
                    if (block, offset) < self.place[1:3]:
                        continue
                    if (block, offset) > self.place[1:3]:
                        self.place = Place(epoch, block, offset)
                    yield entry
                    self.place = Place(epoch, block, offset + 1)
            if not found and next(self.source.records.read(0), None) is None:
                raise FormatError(f"{self.source.name} holds no records")
            is_useful = is_rest or self.counts.pieces > before.pieces
            useless = 0 if is_useful else useless + self.counts.records
            if useless >= LEAST_RECORDS:
                raise self._useless(before)
            self.place = Place(epoch + 1)
            self.counts.begin_epoch()

    def _blocks(self, epoch: int, first: int) -> Iterator[tuple[int, dict[int, Entry]]]:
        """The blocks of an epoch from number `first` on, with this shard's records by offset.

        Of n shards each has every n-th record, in every epoch from another one on, so that in the
        end all get as many.
        """
        size, (shard, shards) = self.source.shuffle, self.terms.shard
        start, name = first * size, crc32(self.source.name.encode())
        mine = self.source.records.read(start + (shard - epoch - start) % shards, shards)
        for block, group in groupby(mine, lambda entry: entry[0] // size):
            rng = np.random.default_rng((self.terms.seed, name, epoch, block))
            offsets = rng.permutation(size)
            yield block, {int(offsets[entry[0] % size]): entry for entry in group}

    def _useless(self, before: Counts) -> FormatError:
        """What an epoch that began with these counts says of a source that gives nothing."""
        now = self.counts
        return FormatError(
            f"{self.source.name}: nothing to learn in rows of {self.terms.length} tokens; of "
            f"{now.records} records {now.malformed} are bad; of the others' examples "
            f"{now.too_long - before.too_long} are too long, {now.skipped - before.skipped} skipped"
            f"{f'; the last bad one: {self._reason}' if self._reason else ''}"
        )

    def _encoded(self, index: int, record: Mapping[str, Any] | None) -> list[Weighted]:
        """The examples of a record, which is counted if it is new; none of a bad one."""
        self.counts.records += not any(self.place[3:])
        if record is None:
            return self._bad(f"record {index} can't be read")
        try:
            return self.source.encode(index, record)
        except RecordError as error:
            return self._bad(str(error))

    def _bad(self, reason: str) -> list[Weighted]:
        """Count a bad record. Raises FormatError when they are too many."""
        self._reason = reason
        self.counts.refuse(self.source.name, reason, self.terms.most_bad)
        return []

    def _useful(self, number: int, example: Weighted) -> Iterator[Piece]:
        """The pieces of an example that have something to predict, from `place` on."""
        if number > self.place.example:
            self.place = self.place._replace(example=number, start=0)
        end = len(example.ids)
        is_long = end - 1 > self.terms.length
        if self.place.start == 0:
            self.counts.too_long += is_long
            self.counts.skipped += end < 2 or (is_long and self.terms.too_long == "skip")
        for piece in self._cut(example, self.place, end):
            is_last = piece.stop == end or self.terms.too_long == "cut"
            following = (number + 1, 0) if is_last else (number, piece.stop - 1)
            self.place = Place(*self.place[:3], *following)
            if piece.weights[1:].any():
                self.counts.pieces += 1
                yield piece
            else:
                self.counts.skipped += 1

    def _cut(self, example: Weighted, place: Place, stop: int) -> Iterator[Piece]:
        """An example from a place to token `stop`, in pieces that fit a row.

        A piece begins with the last token of the one before: each target is there once.
        """
        length, too_long = self.terms.length, self.terms.too_long
        if stop - place.start - 1 > length and too_long != "split":
            stop = place.start + (length + 1 if too_long == "cut" else 0)
        kept = stop if too_long == "cut" else len(example.ids)
        scale = 1.0
        if self.source.weigh == "example":
            scale = EXAMPLE / max(sum(example.weights[1:kept]), TINY)
        for start in range(place.start, stop - 1, length):
            part = slice(start, min(start + length + 1, stop))
            ids, weights = example.ids[part], example.weights[part]
            yield Piece(
                self.source.name,
                place._replace(start=start),
                np.array(ids, np.int32),
                np.array(weights, np.float32) * scale,
            )
