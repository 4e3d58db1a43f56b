"""Colour, outline and movement of a shape, read from pixels alone.

The ground is the median of the border; the shape is the largest region far from it. Its soft mask
is normalised by centroid and standard deviations, then compared (intersection over union) with
ideal outlines that went through the same normalisation at several rotations and blurs.
"""

from __future__ import annotations

import colorsys
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .clips import DIRECTIONS, SHAPES, outline

SIDE = 128  # every picture is measured at this size, [SIDE, SIDE]
CELL = 48  # of a normalised outline, which spans SPREAD standard deviations to each side
SPREAD = 2.6
LEAST_CONTRAST = 40.0  # of shape and ground, Euclidean in RGB
LEAST_LIKENESS = 0.78  # with the best template; true shapes reach 0.84 even at 6 pixels, blurred
MOST_STRETCH = 1.5  # a longer box is neither circle, square, triangle nor star
LEAST_PATH = 0.06  # of the picture: less is no movement
HUES = ((16, "red"), (46, "orange"), (70, "yellow"), (165, "green"), (258, "blue"),
        (335, "purple"), (361, "red"))  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What a picture shows; the centre in fractions of the picture, `shape` None if unlike all."""

    colour: str
    shape: str | None
    ground: str
    centre: tuple[float, float]


def measure(picture: np.ndarray) -> Finding | None:
    """Find the shape in uint8 [H, W, 3]; None where nothing stands out from the ground."""
    pixels = _resize(picture)
    rim = np.ones((SIDE, SIDE), dtype=bool)
    rim[4:-4, 4:-4] = False
    ground = np.median(pixels[rim], axis=0)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    peak = np.percentile(distance, 99.9)
    if peak < LEAST_CONTRAST:
        return None
    region = largest_region(distance > peak / 2)
    level = np.percentile(distance[region], 75)
    region = largest_region((distance > level / 2) & _dilate(region, SIDE // 16))
    soft = _sharpen(distance / level) * _dilate(region, 3)
    x, y, *_ = _moments(soft)
    colour = name_colour(_core(pixels, distance, region), of_shape=True)
    return Finding(colour, match_shape(soft), name_colour(ground), (x / SIDE, y / SIDE))


def _resize(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float64)


def _dilate(mask: np.ndarray, steps: int = 1) -> np.ndarray:
    """Grow a mask over its four neighbours, `steps` times."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def largest_region(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected part of a bool [H, W] mask."""
    best, rest = np.zeros_like(mask), mask.copy()
    while rest.sum() > best.sum():
        part = np.zeros_like(mask)
        part.flat[rest.argmax()] = True
        while (grown := _dilate(part) & rest).sum() > part.sum():
            part = grown
        best = max(best, part, key=np.sum)
        rest &= ~part
    return best


def _core(pixels: np.ndarray, distance: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The median colour of the region without its edge; of a tiny one, its strongest quarter."""
    inner = ~_dilate(~region, 3)
    if inner.sum() < 12:
        inner = region & (distance >= np.percentile(distance[region], 75))
    return np.median(pixels[inner], axis=0)


def name_colour(rgb: np.ndarray, *, of_shape: bool = False) -> str:
    """A colour's name by hue, or by lightness where it has little colour.

    A shape that is blurred into its ground loses lightness, so that its white begins at a half.
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255))
    if value < 0.16:
        return "black"
    if saturation < 0.25:
        return "white" if value > (0.5 if of_shape else 0.72) else "gray"
    return next(name for end, name in HUES if hue * 360 < end)


def _sharpen(soft: np.ndarray) -> np.ndarray:
    return np.clip((soft - 0.25) / 0.5, 0, 1)


def _moments(soft: np.ndarray) -> tuple[float, float, float, float]:
    """Centroid x, y and standard deviations x, y of a mask, in pixels."""
    found = []
    for weights in (soft.sum(0), soft.sum(1)):
        at = np.arange(len(weights)) + 0.5
        mean = np.average(at, weights=weights)
        found.append((mean, np.sqrt(np.average((at - mean) ** 2, weights=weights))))
    (x, width), (y, height) = found
    return x, y, width, height


def _normalise(soft: np.ndarray) -> np.ndarray:
    """The mask seen through a window that follows its centroid and deviations, [CELL, CELL]."""
    x, y, width, height = _moments(soft)
    # The window may leave the picture: room is added on all sides, and the centre moves with it.
    x, y, width, height = x + SIDE, y + SIDE, SPREAD * width, SPREAD * height
    image = Image.fromarray(np.pad(soft, SIDE).astype(np.float32))
    box = (x - width, y - height, x + width, y + height)
    return np.asarray(image.resize((CELL, CELL), Image.Resampling.BILINEAR, box))


@cache
def templates() -> dict[str, list[np.ndarray]]:
    """For each shape its ideal outline, turned by up to 12 degrees and blurred by 0 to 12 %."""
    bank: dict[str, list[np.ndarray]] = {shape: [] for shape in SHAPES}
    for shape, turn, blur in itertools.product(SHAPES, (-12, -6, 0, 6, 12), (0, 0.04, 0.08, 0.12)):
        image = Image.new("L", (4 * SIDE, 4 * SIDE))
        corners = [(SIDE * (2 + 2 * x), SIDE * (2 + 2 * y)) for x, y in outline(shape)]
        ImageDraw.Draw(image).polygon(corners, fill=255)
        image = image.rotate(turn, Image.Resampling.BICUBIC).reduce(4)
        image = image.filter(ImageFilter.GaussianBlur(blur * SIDE / 2))
        bank[shape].append(_normalise(_sharpen(np.asarray(image) / 255)))
    return bank


def match_shape(soft: np.ndarray) -> str | None:
    """The shape whose template overlaps the mask best; None where none does well."""
    *_, width, height = _moments(soft)
    seen = _normalise(soft)
    likeness = {
        shape: max(np.minimum(seen, ideal).sum() / np.maximum(seen, ideal).sum() for ideal in bank)
        for shape, bank in templates().items()
    }
    best = max(likeness, key=lambda shape: likeness[shape])
    stretched = max(width / height, height / width) > MOST_STRETCH
    return None if stretched or likeness[best] < LEAST_LIKENESS else best


def measure_film(frames: Sequence[np.ndarray]) -> dict[str, str | None]:
    """Colour and shape by majority over the frames, direction by the path of the centre."""
    found = [finding for finding in map(measure, frames) if finding]
    if len(found) < 2:
        return dict.fromkeys(("colour", "shape", "ground", "direction"))
    majority: dict[str, str | None] = {
        name: Counter(getattr(finding, name) for finding in found).most_common(1)[0][0]
        for name in ("colour", "shape", "ground")
    }
    return majority | {"direction": direction(np.array([finding.centre for finding in found]))}


def direction(centres: np.ndarray) -> str | None:
    """Where centres [F, 2] go; None if hardly anywhere, slanting, or back and forth."""
    path = centres[-1] - centres[0]
    axis = int(np.abs(path).argmax())
    steps = np.diff(centres[:, axis]) * np.sign(path[axis])
    if abs(path[axis]) < LEAST_PATH or abs(path[axis]) < 1.5 * abs(path[1 - axis]):
        return None
    if steps[steps < 0].sum() < -0.25 * abs(path[axis]):
        return None
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], path)))
