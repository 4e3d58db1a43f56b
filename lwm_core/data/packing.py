"""Masked sequence packing: whole examples side by side in rows, invisible to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from lwm_core.types import Batch

MISSES = 30
"""After so many examples that found no room a batch is full enough."""


class Packable(Protocol):
    """What can lie in a row: token ids and their weights as targets, `[T]` each."""

    @property
    def ids(self) -> Sequence[int] | np.ndarray: ...

    @property
    def weights(self) -> Sequence[float] | np.ndarray: ...

    @property
    def steps(self) -> int:
        """Predictions that it takes: one less than its tokens."""
        ...


P = TypeVar("P", bound=Packable)


@dataclass(frozen=True)
class Weighted:
    """Token ids of one training example, and how much each counts as a target."""

    ids: list[int]
    weights: list[float]

    def __add__(self, other: Weighted) -> Weighted:
        return Weighted(self.ids + other.ids, self.weights + other.weights)

    @property
    def steps(self) -> int:
        """Predictions that it takes: one less than its tokens."""
        return len(self.ids) - 1


def weigh(ids: list[int], weight: float) -> Weighted:
    """Ids that all count alike."""
    return Weighted(ids, [weight] * len(ids))


def fill_rows(examples: Iterator[Weighted], rows: int, length: int) -> list[list[Weighted]]:
    """Take examples into the fullest row that still holds them, until `MISSES` found no room."""
    packed: list[list[Weighted]] = [[] for _ in range(rows)]
    room = [length] * rows
    misses = 0
    while misses < MISSES:
        example = next(examples)
        fits = [row for row in range(rows) if room[row] >= example.steps]
        if not fits:
            misses += 1
            continue
        best = min(fits, key=room.__getitem__)
        packed[best].append(example)
        room[best] -= example.steps
    return packed


def take_longest(waiting: list[P], room: int) -> list[P]:
    """Take out the longest that fits into the room that is left, again and again.

    This is best fit decreasing: what is short is kept for the gaps that nothing else fills. Of
    equals the first is taken.
    """
    taken = []
    for at in sorted(range(len(waiting)), key=lambda at: -waiting[at].steps):
        if waiting[at].steps <= room:
            taken.append(at)
            room -= waiting[at].steps
    found = [waiting[at] for at in taken]
    for at in sorted(taken, reverse=True):
        del waiting[at]
    return found


def to_batch(rows: Sequence[Sequence[Packable]], length: int) -> Batch:
    """Packed rows as one `Batch` of `[rows, length]`; each token's target is its next.

    Every example is a segment of its own, numbered from 1, with positions from 0.
    """
    whole, fractions = np.int32, np.float32
    inputs, targets, positions, segments = (np.zeros((len(rows), length), whole) for _ in range(4))
    weights = np.zeros((len(rows), length), fractions)
    for index, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row, start=1):
            place = (index, slice(start, start + example.steps))
            inputs[place] = example.ids[:-1]
            targets[place] = example.ids[1:]
            weights[place] = example.weights[1:]
            positions[place] = np.arange(example.steps)
            segments[place] = segment
            start += example.steps
    return Batch(inputs, targets, positions, segments, weights)
