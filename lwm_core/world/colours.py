"""Colours by name: the values that plain programs use for them, and values nearby.

A name stands for a region of hue, saturation and brightness that no other name overlaps,
so that the word is always the right answer for the pixels.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue in 0..1


@dataclass(frozen=True)
class Region:
    """What a colour's name covers: ranges in HSV, and the values programs write for it."""

    hue: tuple[float, float]  # degrees
    saturation: tuple[float, float]
    value: tuple[float, float]
    canonical: tuple[tuple[int, int, int], ...]


REGIONS = {
    "red": Region(
        (-6, 7), (0.78, 1), (0.75, 1), ((255, 0, 0), (220, 30, 30), (220, 40, 40), (230, 25, 25))
    ),
    "orange": Region(
        (25, 40),
        (0.82, 1),
        (0.9, 1),
        ((255, 140, 0), (255, 165, 0), (255, 127, 14), (245, 130, 20)),
    ),
    "yellow": Region(
        (51, 61),
        (0.75, 1),
        (0.9, 1),
        ((255, 255, 0), (255, 230, 0), (250, 220, 40), (240, 220, 30)),
    ),
    "green": Region(
        (100, 145), (0.65, 1), (0.5, 1), ((0, 255, 0), (0, 128, 0), (0, 200, 0), (40, 180, 60))
    ),
    "blue": Region(
        (206, 242), (0.7, 1), (0.65, 1), ((0, 0, 255), (30, 60, 230), (40, 80, 220), (30, 100, 255))
    ),
    "purple": Region(
        (270, 298),
        (0.52, 1),
        (0.5, 0.9),
        ((128, 0, 128), (160, 32, 240), (150, 40, 200), (140, 40, 180)),
    ),
    "white": Region(
        (0, 360), (0, 0.04), (0.93, 1), ((255, 255, 255), (240, 240, 240), (250, 250, 250))
    ),
    "gray": Region(
        (0, 360), (0, 0.04), (0.38, 0.64), ((128, 128, 128), (110, 110, 110), (150, 150, 150))
    ),
    "black": Region((0, 360), (0, 0.3), (0, 0.1), ((0, 0, 0), (10, 10, 10), (20, 20, 20))),
}
SHAPE_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
GROUND_COLOURS = ("black", "gray", *SHAPE_COLOURS)


def plain(name: str) -> Colour:
    """The value that most programs write for `name`."""
    red, green, blue = (channel / 255 for channel in REGIONS[name].canonical[0])
    return red, green, blue


def canonical(name: str, rng: np.random.Generator) -> Colour:
    """A value that programs write for `name`, at most 6/255 away from it per channel."""
    values = rng.choice(REGIONS[name].canonical) + rng.uniform(-4, 4) + rng.uniform(-2, 2, 3)
    red, green, blue = (np.clip(values, 0, 255) / 255).tolist()
    return red, green, blue


def nearby(name: str, rng: np.random.Generator) -> Colour:
    """Any value that people would call `name`."""
    region = REGIONS[name]
    hue, saturation, value = (
        rng.uniform(*span) for span in (region.hue, region.saturation, region.value)
    )
    return colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
