"""A scene: something that can be seen and told.

All that is random is drawn from one generator when the scene is made; rendering and telling
are then pure functions. Scenes to *see* have the whole variety of clips that people may
show; scenes to *make* have what a short prompt describes: steady, clean and clearly visible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

from lwm_core.world.canvas import Canvas
from lwm_core.world.noise import degrade
from lwm_core.world.words import Exchange

Purpose = Literal["see", "make"]

NOISY_SHARE = 0.65  # of the scenes to see


@dataclass(frozen=True)
class Scene(ABC):
    """Something that is seen for `frames` frames (one: a picture) and can be told."""

    frames: int
    noise_seed: int | None = field(default=None, kw_only=True)

    def plain(self) -> Self:
        """The same scene without noise; named colours are as most programs have them."""
        return replace(self, noise_seed=None)

    @abstractmethod
    def render(self, size: int) -> np.ndarray:
        """Frames as uint8 `[frames, size, size, 3]`."""

    @abstractmethod
    def shapes_at(self, grid: int) -> np.ndarray:
        """The shape at each of `grid * grid` patches: int32 `[frames, grid, grid]`.

        0 is none, or a landscape; 1 is the first of SHAPES.
        """

    @abstractmethod
    def prompt(self, rng: np.random.Generator) -> str:
        """A wish for this scene, as a user would type it."""

    @abstractmethod
    def questions(self, rng: np.random.Generator, count: int) -> list[Exchange]:
        """Questions with answers; the first is the overall one."""


def finish(canvas: Canvas, noise_seed: int | None) -> np.ndarray:
    """The painted clip, with noise if a seed for it is given."""
    frames = canvas.finished()
    return frames if noise_seed is None else degrade(frames, np.random.default_rng(noise_seed))


def noise_seed(rng: np.random.Generator, purpose: Purpose) -> int | None:
    """A seed for the noise of a scene, or None if it stays clean."""
    noisy = purpose == "see" and rng.random() < NOISY_SHARE
    return int(rng.integers(2**31)) if noisy else None
