"""Scenes of the six landscapes: when they are looked at, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from lwm_core.world.canvas import Canvas
from lwm_core.world.colours import SHAPE_COLOURS, canonical, plain
from lwm_core.world.landscape_words import TALES
from lwm_core.world.painters import PAINTERS, Look
from lwm_core.world.scenes import Purpose, Scene, finish, noise_seed
from lwm_core.world.words import Exchange, dressed, pick, sentence, typed

PACE = 0.1  # of the whole course, from frame to frame, in scenes to make
VIEWS = 6  # of each landscape, in scenes to make: a small model learns few of them well


@dataclass(frozen=True)
class LandscapeScene(Scene):
    """One of the six landscapes at the moments `[F]` of its course, 0..1."""

    name: str
    moments: np.ndarray
    look: Look
    names: dict[str, str]  # the words for the look: `colour` and `way`
    seed: int  # of the details

    def plain(self) -> Self:
        """The same scene without noise, its car or ball in the usual shade of its colour."""
        return replace(super().plain(), look=replace(self.look, colour=plain(self.names["colour"])))

    def render(self, size: int) -> np.ndarray:
        """Frames as uint8 `[frames, size, size, 3]`, with the noise that belongs to the scene."""
        canvas = Canvas(self.frames, size)
        PAINTERS[self.name](canvas, self.moments, np.random.default_rng(self.seed), self.look)
        return finish(canvas, self.noise_seed)

    def shapes_at(self, grid: int) -> np.ndarray:
        """There are no shapes to name."""
        return np.zeros((self.frames, grid, grid), np.int32)

    def prompt(self, rng: np.random.Generator) -> str:
        """A wish for this scene, as a user would type it."""
        tale = TALES[self.name]
        wish = tale.caption if rng.random() < 0.4 else pick(rng, tale.prompts)
        return dressed(rng, wish.format(**self.names))

    def questions(self, rng: np.random.Generator, count: int) -> list[Exchange]:
        """Questions with answers; the first is the overall one."""
        tale = TALES[self.name]
        overall, parts = tale.exchanges(is_clip=self.frames > 1)
        asked = [pick(rng, overall)]
        while len(asked) < count:
            asked += [parts[i] for i in rng.permutation(len(parts))[: count - len(asked)]]
        return [
            (typed(rng, pick(rng, questions)), sentence(answer.format(**self.names)))
            for questions, answer in asked
        ]


def sample_landscape(
    rng: np.random.Generator, *, frames: int, purpose: Purpose, name: str | None = None
) -> LandscapeScene:
    """A random view of a landscape, by default of any of the six."""
    name = name or pick(rng, tuple(PAINTERS))
    colour, way = pick(rng, SHAPE_COLOURS), pick(rng, ("left", "right"))
    to_make = purpose == "make"
    return LandscapeScene(
        frames,
        name,
        _moments(rng, frames, purpose),
        Look(plain(colour) if to_make else canonical(colour, rng), 1.0 if way == "right" else -1.0),
        {"colour": colour, "way": way},
        int(rng.integers(VIEWS if to_make else 2**31)),
        noise_seed=noise_seed(rng, purpose),
    )


def _moments(rng: np.random.Generator, frames: int, purpose: Purpose) -> np.ndarray:
    """When the frames are: scenes to make begin early and go on at one pace."""
    if purpose == "make":
        start = PACE * rng.integers(2)
        return start + np.linspace(0, min(PACE * (frames - 1), 1 - start), frames)
    if frames == 1:
        return rng.uniform(0, 1, 1)
    length = rng.uniform(0.45, 1)
    return rng.uniform(0, 1 - length) + length * np.linspace(0, 1, frames)
