"""Two runs of one test: by how much they differ, and whether that is more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from lwm_core.errors import UsageError
from lwm_core.needle.identity import differing
from lwm_core.needle.results import read_answers
from lwm_core.needle.statistics import Pairs


@dataclass(frozen=True)
class Comparison:
    """How two models answered the same questions, in `by_length`; `names` are the models'."""

    names: tuple[str, str]
    by_length: dict[int, Pairs]

    @property
    def total(self) -> Pairs:
        """Over all lengths."""
        return reduce(add, self.by_length.values())

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "models": list(self.names),
            **_pairs_to_json(self.total),
            "lengths": [
                {"length": length, **_pairs_to_json(pairs)}
                for length, pairs in self.by_length.items()
            ],
        }


def compare(first: Path, second: Path) -> Comparison:
    """Pair the answers of two files, number by number.

    Raises UsageError for files of two tests, and as `read_answers` does.
    """
    (one, results), (other, other_results) = read_answers(first), read_answers(second)
    if difference := differing(one.test, other.test):
        raise UsageError(f"{first} and {second} are answers of two tests ({difference})")
    other_found = {result.case: result.found for result in other_results}
    by_length: dict[int, Pairs] = {}
    for result in results:
        for pair in zip(result.found, other_found[result.case], strict=True):
            pairs = by_length.get(result.case.length, Pairs())
            by_length[result.case.length] = pairs + Pairs.of(*pair)
    return Comparison((str(one.model.get("name")), str(other.model.get("name"))), by_length)


def _pairs_to_json(pairs: Pairs) -> dict[str, Any]:
    return {
        "asked": pairs.asked,
        "found": [pairs.first.share, pairs.second.share],
        "found_by_one": [pairs.only_first, pairs.only_second],
        "difference": pairs.difference,
        "p": pairs.p_value,
    }
