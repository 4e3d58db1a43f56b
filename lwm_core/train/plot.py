"""Curves over steps as SVG, without colours of their own: a style sheet gives them by class.

Long curves are drawn by bins: a line through their means, and a band from the least to the
greatest value of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element

import numpy as np

from lwm_core.train.history import Series
from lwm_core.train.markup import element

WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 22, 10, 28
"""Margins: of the labels of values, and of those of steps."""
MOST_POINTS = 320
MOST_TICKS = 6
ROOM = 0.04
"""Share of the height that stays free above the curves and below them."""

Axis = Literal["near", "zero", "log"]
"""Where values are drawn: near to each other, all above 0, or by their logarithms."""


@dataclass(frozen=True)
class Curve:
    """A series to be drawn: in the colour of a number, with dots if its points are few."""

    name: str
    series: Series
    colour: int = 0
    is_dotted: bool = False


@dataclass(frozen=True)
class Scale:
    """From numbers to pixels: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Where values lie, float64; what is beyond the ends lies at the ends."""
        low, high, values = (self._even(one) for one in (self.low, self.high, values))
        share = np.clip((values - low) / (high - low), 0, 1)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """A few round numbers between the ends, both included."""
        return _decades(self.low, self.high) if self.is_log else _evenly(self.low, self.high)

    def _even(self, values: float | np.ndarray) -> np.ndarray:
        return np.log10(values) if self.is_log else np.asarray(values, float)


def plot(
    title: str,
    curves: Sequence[Curve],
    *,
    axis: Axis = "near",
    marks: Sequence[int] = (),
    write: Callable[[float], str] = lambda value: short(value),
) -> Element:
    """The curves in one panel; `marks` are steps to be marked, `write` the wording of values.

    There must be a point, and on a logarithmic axis all values above 0.
    """
    binned = [(curve, _binned(curve.series)) for curve in curves]
    across = _across(curves)
    down = _down([means for _, (_, means, _, _) in binned], axis)
    picture = element(
        "svg", role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}", aria_label=f"{title} over the steps"
    )
    picture.extend(_grid(across, down, write))
    for curve, (steps, means, lows, highs) in binned:
        x, colour = across(steps), f"c{curve.colour}"
        if (lows < highs).any():
            outline = np.r_[x, x[::-1]], np.r_[down(highs), down(lows)[::-1]]
            picture.append(element("path", class_=f"band {colour}", d=_line(*outline) + "Z"))
        kind = "dotted" if curve.is_dotted else "line"
        picture.append(element("path", class_=f"{kind} {colour}", d=_line(x, down(means))))
        if curve.is_dotted or len(x) == 1:
            picture.extend(_dots(x, down(means), colour))
    if marks:
        places = across(np.array(marks, float))
        strokes = "".join(f"M{x:.1f} {HEIGHT - BOTTOM}v-9" for x in places)
        picture.append(element("path", class_="mark", d=strokes))
    return picture


def short(value: float) -> str:
    """A number in few characters: `0.0003`, `2.505`, `12.5k`, `3M`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and unit != "k"):
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _binned(series: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, means, least and greatest values of at most `MOST_POINTS` bins of equal width."""
    steps, values = series
    if len(steps) <= MOST_POINTS:
        return steps.astype(float), values, values, values
    edges = np.linspace(steps[0], steps[-1] + 1, MOST_POINTS + 1)
    first = np.unique(np.searchsorted(steps, edges[:-1]))
    counts = np.diff(np.r_[first, len(steps)])
    middles, means = (np.add.reduceat(one, first) / counts for one in (steps, values))
    return middles, means, np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)


def _across(curves: Sequence[Curve]) -> Scale:
    first = min(int(curve.series.steps[0]) for curve in curves)
    last = max(int(curve.series.steps[-1]) for curve in curves)
    return Scale(first, max(last, first + 1), LEFT, WIDTH - RIGHT)


def _down(values: Sequence[np.ndarray], axis: Axis) -> Scale:
    """With room beyond the least and the greatest value."""
    low, high = (float(one) for one in (np.min(np.r_[*values]), np.max(np.r_[*values])))
    ends = HEIGHT - BOTTOM, TOP
    if axis == "log":
        room = max((high / low) ** ROOM, 1.1)
        return Scale(low / room, high * room, *ends, is_log=True)
    low = min(0.0, low) if axis == "zero" else low
    room = (high - low) * ROOM or abs(high) * ROOM or 1.0
    return Scale(low if axis == "zero" else low - room, high + room, *ends)


def _grid(across: Scale, down: Scale, write: Callable[[float], str]) -> list[Element]:
    """Lines and labels of values, labels of steps."""
    parts = []
    for tick, y in zip(down.ticks, down(np.array(down.ticks)), strict=True):
        parts.append(element("path", class_="grid", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"))
        parts.append(_label(write(tick), LEFT - 8, y + 4, "end"))
    steps = [tick for tick in across.ticks if tick == round(tick)]
    for step, x in zip(steps, across(np.array(steps)), strict=True):
        parts.append(_label(short(step), x, HEIGHT - 8, "middle"))
    return parts


def _label(text: str, x: float, y: float, anchor: str) -> Element:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _dots(x: np.ndarray, y: np.ndarray, colour: str) -> list[Element]:
    return [
        element("circle", class_=f"dot {colour}", cx=f"{one:.1f}", cy=f"{other:.1f}", r=3)
        for one, other in zip(x, y, strict=True)
    ]


def _line(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{one:.1f} {other:.1f}" for one, other in zip(x, y, strict=True))


def _evenly(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(least))
    unit = next(size * power for size in (1, 2, 5, 10) if size * power >= least)
    return [n * unit for n in range(math.ceil(low / unit), math.floor(high / unit) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, if they are few also 2 and 5 times them, if they are many only some."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(inside) > 2:
        return inside[:: -(-len(inside) // MOST_TICKS)]
    fine = [size * 10.0**power for power in powers for size in (1, 2, 5)]
    return [tick for tick in fine if low <= tick <= high] or _evenly(low, high)
