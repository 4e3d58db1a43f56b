"""The file of metrics read back: a series of steps and values for every name."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """The finite values of one metric, float64 `[n]`, at rising steps, int64 `[n]`."""

    steps: np.ndarray
    values: np.ndarray


def read_history(path: Path) -> dict[str, Series]:
    """All metrics of a JSON-lines file, by name; none if there is no such file.

    Of a step that was taken twice the later line counts. Lines that can't be read, and values
    that are no finite numbers, are left out.
    """
    points: defaultdict[str, dict[int, float]] = defaultdict(dict)
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                step, metrics = _parsed(line)
                for name, value in metrics.items():
                    points[name][step] = value
    return {name: _series(of_name) for name, of_name in points.items()}


def _parsed(line: str) -> tuple[int, dict[str, float]]:
    """The step of a line and its finite metrics, which may be none."""
    try:
        document = json.loads(line)
        step = int(document.pop("step"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return 0, {}
    return step, {
        name: float(value)
        for name, value in document.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _series(points: dict[int, float]) -> Series:
    steps = sorted(points)
    return Series(np.array(steps, np.int64), np.array([points[step] for step in steps], float))
