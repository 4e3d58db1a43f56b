"""Points and lines over two axes that begin at zero, as a picture: what the benchmarks plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 760, 520
LEFT, TOP, RIGHT, BOTTOM = 90, 60, 30, 70
"""Margins in pixels."""
FONT_SIZE = 16
COLOURS = ("#00224e", "#c0392b", "#7c7b78", "#2e8b57")


@dataclass(frozen=True)
class Curve:
    """Numbers over others, drawn as dots or joined by a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


def plot(title: str, across: str, up: str, curves: Sequence[Curve]) -> Image.Image:
    """All curves in one picture, with the names of what goes across and up."""
    return _Plot(curves).drawn(title, across, up)


class _Plot:
    """Curves on their way to a picture."""

    def __init__(self, curves: Sequence[Curve]):
        self.curves = curves
        self.most = [max(max(getattr(c, axis)) for c in curves) * 1.04 for axis in "xy"]
        self.picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.picture)
        self.font = ImageFont.load_default(FONT_SIZE)

    def drawn(self, title: str, across: str, up: str) -> Image.Image:
        self._write((WIDTH / 2, 20), title, "mm")
        self._write((WIDTH / 2, HEIGHT - 20), across, "mm")
        self._write((LEFT - 70, TOP - 18), up, "lm")
        self._draw_axes()
        for index, curve in enumerate(self.curves):
            self._draw_curve(curve, COLOURS[index])
            self._write((LEFT + 20, TOP + 16 + 24 * index), curve.name, "lm", COLOURS[index])
        return self.picture

    def _at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        right, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + right * x / self.most[0], HEIGHT - BOTTOM - down * y / self.most[1]

    def _draw_axes(self) -> None:
        for x in _round_numbers(self.most[0]):
            self.draw.line((self._at(x, 0), self._at(x, self.most[1])), fill="#e4e4e4")
            self._write((self._at(x, 0)[0], HEIGHT - BOTTOM + 16), f"{x:g}", "mm")
        for y in _round_numbers(self.most[1]):
            self.draw.line((self._at(0, y), self._at(self.most[0], y)), fill="#e4e4e4")
            self._write((LEFT - 10, self._at(0, y)[1]), f"{y:g}", "rm")

    def _draw_curve(self, curve: Curve, colour: str) -> None:
        points = [self._at(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        if not curve.dots:
            self.draw.line(points, fill=colour, width=2)
            return
        for x, y in points:
            self.draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)

    def _write(self, at: tuple[float, float], text: str, anchor: str, fill: str = "black") -> None:
        self.draw.text(at, text, fill, self.font, anchor=anchor)


def _round_numbers(most: float) -> list[float]:
    """From 0 up to `most` in at most eight steps of one, two or five times a power of ten."""
    power = 10.0 ** np.floor(np.log10(most / 8))
    step = next(power * times for times in (1, 2, 5, 10) if most / (power * times) <= 8)
    return (np.arange(int(most / step) + 1) * step).tolist()
