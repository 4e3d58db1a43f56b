"""A clip of float pictures to paint on; every stroke paints all frames at once.

Places and lengths are in parts of the picture's side: x to the right, y down, 0..1.
Whatever may move is an array with one value per frame; a plain number stays put.
Edges are anti-aliased by the distance to them: a pixel is covered in proportion to how far
its centre lies inside, over the width of one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lwm_core.world.colours import Colour


def per_frame(value: ArrayLike) -> np.ndarray:
    """`[F]` or a number → float32 `[F, 1, 1]` or `[1, 1, 1]`, ready to meet a picture."""
    return np.asarray(value, np.float32).reshape(-1, 1, 1)


@dataclass(frozen=True)
class Spots:
    """Soft spots: centres x, y `[F, N]` (or `[1, N]`), widths and heights (standard deviations)."""

    x: np.ndarray
    y: np.ndarray
    width: ArrayLike
    height: ArrayLike


class Canvas:
    """Pixels float32 in 0..1, and the strokes that scenes are made of.

    They are `[1, S, S, 3]`, one picture for all frames, until the first stroke that moves;
    what stands still is therefore best painted first.
    """

    def __init__(self, frames: int, size: int, colour: Colour = (0.0, 0.0, 0.0)) -> None:
        self.frames, self.size = frames, size
        self.pixels = np.empty((1, size, size, 3), np.float32)
        self.pixels[:] = colour
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x = centres[None, None, :]
        self.y = centres[None, :, None]

    def inside(self, distance: np.ndarray, softness: float = 0.0) -> np.ndarray:
        """Coverage 0..1 from a signed distance (negative inside) in parts of the side."""
        width = max(1 / self.size, softness)
        return np.clip(0.5 - distance * np.float32(1 / width), 0, 1)

    def paint(self, coverage: np.ndarray, colour: ArrayLike) -> None:
        """Lay `colour` (`[3]` or `[F, 1, 1, 3]`) over the pictures; coverage `[F or 1, S, S]`."""
        coverage = coverage[..., None]
        self.pixels = self.pixels + coverage * (np.asarray(colour, np.float32) - self.pixels)

    def ramp(self, top: ArrayLike, bottom: ArrayLike, start: float = 0.0, end: float = 1.0) -> None:
        """A vertical gradient of two colours, `[3]` or `[F, 3]`, between two heights."""
        top, bottom = (np.asarray(c, np.float32).reshape(-1, 1, 1, 3) for c in (top, bottom))
        share = np.clip((self.y[..., None] - start) / (end - start), 0, 1)
        self.pixels = np.repeat(top + share * (bottom - top), self.size, axis=2)

    def disc(
        self, x: ArrayLike, y: ArrayLike, radius: ArrayLike, softness: float = 0.0
    ) -> np.ndarray:
        """Coverage `[F, S, S]` of a circle."""
        dx, dy = self.x - per_frame(x), self.y - per_frame(y)
        return self.inside(np.sqrt(dx * dx + dy * dy) - per_frame(radius), softness)

    def box(
        self, left: ArrayLike, top: ArrayLike, right: ArrayLike, bottom: ArrayLike
    ) -> np.ndarray:
        """Coverage `[F, S, S]` of an upright rectangle: exact, one axis at a time."""
        left, top, right, bottom = (per_frame(edge) for edge in (left, top, right, bottom))
        half = 0.5 / self.size

        def along(axis: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
            overlap = np.minimum(axis + half, end) - np.maximum(axis - half, start)
            return np.clip(overlap * np.float32(self.size), 0, 1)

        return along(self.x, left, right) * along(self.y, top, bottom)

    def wedge(self, x: float, top: float, bottom: float, half_width: float) -> np.ndarray:
        """Coverage `[1, S, S]` of an upright triangle with its tip at (x, top)."""
        slope = half_width / (bottom - top)
        sides = (np.abs(self.x - x) - (self.y - top) * slope) / np.hypot(1, slope)
        return self.inside(np.maximum(sides, self.y - bottom).astype(np.float32))

    def light(self, spots: Spots, colours: np.ndarray) -> np.ndarray:
        """What spots of light, colours `[F, N, 3]`, add to the pixels: `[F, S, S, 3]`.

        A spot is a product of two bell curves, so that all of them add up in one matrix product.
        """
        across, down = self._bells(spots.x, spots.width), self._bells(spots.y, spots.height)
        coloured = across[..., None] * colours[:, :, None, :].astype(np.float32)  # [F, N, S, 3]
        flat = coloured.reshape(*coloured.shape[:2], self.size * 3)
        return (down.transpose(0, 2, 1) @ flat).reshape(-1, self.size, self.size, 3)

    def veil(self, spots: Spots, colour: Colour) -> None:
        """Paint spots that hide what is behind them: clouds, drops, flakes."""
        across, down = self._bells(spots.x, spots.width), self._bells(spots.y, spots.height)
        self.paint(1 - np.exp(-(down.transpose(0, 2, 1) @ across)), colour)

    def _bells(self, centre: np.ndarray, sigma: ArrayLike) -> np.ndarray:
        """Bell curves `[F, N, S]` along one axis around centres `[F, N]`."""
        sigma = np.asarray(sigma, np.float32)[..., None]
        distance = (self.x - np.asarray(centre, np.float32)[..., None]) / sigma
        return np.exp(-0.5 * distance * distance)

    def finished(self) -> np.ndarray:
        """The clip as uint8 `[F, S, S, 3]`."""
        pixels = (np.clip(self.pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
        return np.repeat(pixels, self.frames // len(pixels), axis=0)
