"""The heat map of the needle test: a picture of what was found at which length and depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lwm_core.needle.report import Grid, short_length, tabulate
from lwm_core.needle.results import NeedleResult

LEFT, TOP, RIGHT, BOTTOM = 84, 92, 124, 84
"""Margins in pixels: of the depths, the title, the scale of colours, the lengths."""
CELL, MAP = (72, 40), (1440, 800)
"""Most pixels across and down: of a cell, and of all cells together."""
LEAST_MAP = 400, 160
"""Pixels that title and scale need."""
SCALE_WIDTH, FONT_SIZE = 20, 18
LONGEST_NAME = 48
COLOURS = np.array([[0, 34, 78], [66, 78, 108], [125, 124, 120], [188, 175, 111], [254, 232, 56]])
"""Red, green, blue at 0, 25, 50, 75, 100 %: five points of cividis (Nunez et al. 2018), which
gets lighter evenly and looks the same to colour-blind eyes."""


def heat_map(results: Sequence[NeedleResult], name: str = "") -> np.ndarray:
    """Results as a picture, uint8 `[height, width, 3]`: a column a length, a row a depth.

    `name` (of the model) stands above. Labels and figures that find no room are left out.
    """
    return np.asarray(_Chart(tabulate(results)).drawn(name))


class _Chart:
    """A grid on its way to a picture."""

    def __init__(self, grid: Grid):
        self.grid = grid
        count = len(grid.lengths), len(grid.depths)
        cell = [max(1, min(CELL[i], MAP[i] // count[i])) for i in (0, 1)]
        size = [max(count[i] * cell[i], LEAST_MAP[i]) for i in (0, 1)]
        self.across = np.linspace(LEFT, LEFT + size[0], count[0] + 1).round().astype(int).tolist()
        self.down = np.linspace(TOP, TOP + size[1], count[1] + 1).round().astype(int).tolist()
        shape = self.across[-1] + RIGHT, self.down[-1] + BOTTOM
        self.picture = Image.new("RGB", shape, "white")
        self.draw = ImageDraw.Draw(self.picture)
        self.font = ImageFont.load_default(FONT_SIZE)

    def drawn(self, name: str) -> Image.Image:
        """The whole picture."""
        total = self.grid.total
        low, high = total.interval
        middle = (LEFT + self.across[-1]) / 2
        self._write(middle, 20, name[-LONGEST_NAME:])
        self._write(middle, 46, f"{total.share:.0%} found (95 % interval {low:.0%} to {high:.0%})")
        self._write(middle, self.down[-1] + 60, "context length (tokens)")
        self._write(LEFT / 2, TOP - 20, "depth %")
        self._draw_cells()
        self._label_axes()
        self._draw_scale()
        return self.picture

    def _write(self, x: float, y: float, text: str, fill: str = "black") -> None:
        self.draw.text((x, y), text, fill, self.font, anchor="mm")

    def _draw_cells(self) -> None:
        room = self.across[1] - LEFT, self.down[1] - TOP
        has_room = room[0] > self._width("100%0") and room[1] > FONT_SIZE
        gap = 2 if has_room else 1
        for row, column in np.argwhere(self.grid.asked > 0).tolist():
            share = float(self.grid.share[row, column])
            left, right = self.across[column : column + 2]
            top, bottom = self.down[row : row + 2]
            self.draw.rectangle((left, top, right - gap, bottom - gap), fill=_colour(share))
            if has_room:
                fill = "white" if share < 0.5 else "black"
                self._write((left + right) / 2, (top + bottom) / 2, f"{share:.0%}", fill)

    def _label_axes(self) -> None:
        names = [short_length(length) for length in self.grid.lengths]
        widest = max(map(self._width, names)) + self._width("0")
        for column, x in _spread(self.across, widest):
            self._write(x, self.down[-1] + 22, names[column])
        for row, y in _spread(self.down, FONT_SIZE):
            self._write(LEFT / 2, y, f"{self.grid.depths[row]:g}")

    def _draw_scale(self) -> None:
        left, bottom = self.across[-1] + 24, self.down[-1]
        for y in range(TOP, bottom):
            colour = _colour((bottom - 1 - y) / (bottom - 1 - TOP))
            self.draw.line((left, y, left + SCALE_WIDTH, y), fill=colour)
        for percent in (0, 50, 100):
            y = bottom - (bottom - TOP) * percent / 100
            self.draw.text((left + SCALE_WIDTH + 8, y), f"{percent}%", "black", self.font, "lm")

    def _width(self, text: str) -> float:
        return self.font.getlength(text)


def _spread(edges: Sequence[int], room: float) -> Iterator[tuple[int, float]]:
    """Cells whose labels, `room` pixels each, don't touch: number and middle, from the last on."""
    count = len(edges) - 1
    step = math.ceil(room / min(np.diff(edges)))
    for cell in range(count - 1, -1, -step):
        yield cell, (edges[cell] + edges[cell + 1]) / 2


def _colour(share: float) -> tuple[int, ...]:
    points = np.linspace(0, 1, len(COLOURS))
    return tuple(round(np.interp(share, points, channel)) for channel in COLOURS.T)
