"""What the needle test found: a table, plain values, and a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lwm_core.needle.trial import NeedleResult

CELL_WIDTH, CELL_HEIGHT, MARGIN, FONT_SIZE = 72, 40, 84, 18
SCALE = np.array([[0, 34, 78], [66, 78, 108], [125, 124, 120], [188, 175, 111], [254, 232, 56]])
"""Red, green, blue at 0, 25, 50, 75, 100 %: five points of cividis (Nunez et al. 2018), which
gets lighter evenly and looks the same to colour-blind eyes."""


@dataclass(frozen=True)
class Grid:
    """Share of numbers found: float64 `[depths, lengths]`, NaN where nothing was asked."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    share: np.ndarray


def tabulate(results: Sequence[NeedleResult]) -> Grid:
    """Results by length of the context and depth of the asked needle."""
    asked = [
        (result.case.length, needle.depth, found)
        for result in results
        for needle, found in zip(result.case.asked, result.found, strict=True)
    ]
    lengths = sorted({length for length, _, _ in asked})
    depths = sorted({depth for _, depth, _ in asked})
    found_of, asked_of = np.zeros((2, len(depths), len(lengths)))
    for length, depth, found in asked:
        cell = depths.index(depth), lengths.index(length)
        asked_of[cell] += 1
        found_of[cell] += found
    share = np.divide(found_of, asked_of, where=asked_of > 0, out=np.full_like(asked_of, np.nan))
    return Grid(tuple(lengths), tuple(depths), share)


def share_found(results: Sequence[NeedleResult]) -> float:
    """The share of all asked numbers that were found; there must be a result."""
    return float(np.mean([found for result in results for found in result.found]))


def to_json(results: Sequence[NeedleResult]) -> dict[str, Any]:
    """All results as plain values, without the long contexts."""
    return {
        "found": share_found(results),
        "results": [
            {
                "length": result.case.length,
                "round": result.case.round,
                "needles": [
                    {
                        "city": needle.city,
                        "number": needle.number,
                        "depth": needle.depth,
                        "present": needle.text in result.case.prompt,
                    }
                    for needle in result.case.needles
                ],
                "asked": [needle.city for needle in result.case.asked],
                "answer": result.answer,
                "found": list(result.found),
            }
            for result in results
        ],
    }


def heat_map(results: Sequence[NeedleResult]) -> np.ndarray:
    """Results as a picture, uint8 `[height, width, 3]`: a column a length, a row a depth."""
    grid = tabulate(results)
    width = MARGIN + CELL_WIDTH * max(4, len(grid.lengths)) + MARGIN // 4
    height = MARGIN + CELL_HEIGHT * len(grid.depths) + MARGIN
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_SIZE)

    def write(column: float, row: float, text: str, fill: str = "black") -> None:
        place = (MARGIN + CELL_WIDTH * column, MARGIN + CELL_HEIGHT * row)
        draw.text(place, text, fill, font, anchor="mm")

    middle = (width / 2 - MARGIN) / CELL_WIDTH
    write(middle, -1.4, f"{share_found(results):.0%} of the numbers found")
    write(-0.6, -0.5, "depth %")
    write(middle, len(grid.depths) + 1.4, "context length (tokens)")
    for column, length in enumerate(grid.lengths):
        write(column + 0.5, len(grid.depths) + 0.5, _short(length))
    for row, depth in enumerate(grid.depths):
        write(-0.5, row + 0.5, f"{depth:g}")
        for column, share in enumerate(grid.share[row]):
            if not np.isnan(share):
                draw.rectangle(_cell(column, row), fill=_colour(share))
                write(column + 0.5, row + 0.5, f"{share:.0%}", "white" if share < 0.5 else "black")
    return np.asarray(picture)


def _short(length: int) -> str:
    return str(length) if length % 1024 else f"{length // 1024}k"


def _cell(column: int, row: int) -> tuple[int, int, int, int]:
    left, top = MARGIN + CELL_WIDTH * column, MARGIN + CELL_HEIGHT * row
    return left, top, left + CELL_WIDTH - 2, top + CELL_HEIGHT - 2


def _colour(share: float) -> tuple[int, ...]:
    points = np.linspace(0, 1, len(SCALE))
    return tuple(round(np.interp(share, points, channel)) for channel in SCALE.T)
