"""What the needle test found, by length and depth and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lwm_core.needle.questions import NeedleConfig
from lwm_core.needle.results import NeedleResult
from lwm_core.needle.statistics import Rate


@dataclass(frozen=True)
class Grid:
    """How many numbers were found of how many asked: each int64 `[depths, lengths]`."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    found: np.ndarray
    asked: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Share found, float64 `[depths, lengths]`; NaN where nothing was asked."""
        empty = np.full(self.asked.shape, np.nan)
        return np.divide(self.found, self.asked, where=self.asked > 0, out=empty)

    @property
    def by_length(self) -> list[Rate | None]:
        """For every length what was found at all depths; None where nothing was asked."""
        found, asked = (counts.sum(axis=0).tolist() for counts in (self.found, self.asked))
        return [Rate(one, of) if of else None for one, of in zip(found, asked, strict=True)]

    @property
    def total(self) -> Rate:
        """What was found of all; something must have been asked."""
        return Rate(int(self.found.sum()), int(self.asked.sum()))


def tabulate(results: Sequence[NeedleResult], config: NeedleConfig | None = None) -> Grid:
    """Results by length of the context and depth of the asked needle.

    With `config` its lengths and depths are there too, of which there is no result yet.
    """
    asked = [
        (result.case.length, needle.depth, found)
        for result in results
        for needle, found in zip(result.case.asked, result.found, strict=True)
    ]
    lengths = sorted({length for length, _, _ in asked}.union(config.lengths if config else ()))
    depths = sorted({depth for _, depth, _ in asked}.union(config.depths if config else ()))
    found_of, asked_of = np.zeros((2, len(depths), len(lengths)), np.int64)
    for length, depth, found in asked:
        cell = depths.index(depth), lengths.index(length)
        asked_of[cell] += 1
        found_of[cell] += found
    return Grid(tuple(lengths), tuple(depths), found_of, asked_of)


def to_json(results: Sequence[NeedleResult]) -> dict[str, Any]:
    """All results as plain values, without the long contexts; there must be one."""
    grid = tabulate(results)
    return {
        **_rate_to_json(grid.total),
        "lengths": [
            {"length": length, **_rate_to_json(rate)}
            for length, rate in zip(grid.lengths, grid.by_length, strict=True)
            if rate
        ],
        "results": [result.to_json() for result in results],
    }


def short_length(length: int) -> str:
    """A number of tokens as the command line takes it: `1536`, `8k`, `1m`."""
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if length % size == 0:
            return f"{length // size}{unit}"
    return str(length)


def _rate_to_json(rate: Rate) -> dict[str, Any]:
    return {"found": rate.share, "asked": rate.asked, "interval": list(rate.interval)}
