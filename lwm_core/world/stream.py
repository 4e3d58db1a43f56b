"""The endless stream: numbered examples of everything the embedded model learns from.

Example `index` of a stream is a function of the seed and the index alone, so that a stream
can be resumed anywhere and shared out among workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lwm_core.world import dialogue, retrieval
from lwm_core.world.landscapes import sample_landscape
from lwm_core.world.scenes import Purpose, Scene
from lwm_core.world.shape_scenes import sample_moving, sample_shapes
from lwm_core.world.words import Exchange

LANDSCAPES = {"see": 0.15, "make": 0.35}  # their share of the scenes
MIX = {"see": 0.4, "make": 0.2, "move": 0.1, "dialogue": 0.08, "repeat": 0.02, "retrieval": 0.2}
MOST_NEEDLES = 3


@dataclass(frozen=True)
class Example:
    """One thing to learn from.

    `see`: frames and exchanges about them. `make`: one exchange whose answer is the frames
    (its text is empty); `move`: the same of a shape that surely moves, and says which way.
    `dialogue`: exchanges. `repeat`: one exchange, whose answer is in the
    question. `retrieval`: one exchange.
    """

    kind: str
    exchanges: list[Exchange]
    frames: np.ndarray | None = None  # uint8 [F, size, size, 3]


def sample_scene(rng: np.random.Generator, *, frames: int, purpose: Purpose) -> Scene:
    """A random scene: mostly shapes, sometimes one of the landscapes."""
    sample = sample_landscape if rng.random() < LANDSCAPES[purpose] else sample_shapes
    return sample(rng, frames=frames, purpose=purpose)


def _retrieval(rng: np.random.Generator, haystack: str, characters: int) -> Exchange:
    """Mostly one needle, as in the plain test."""
    needles = int(rng.integers(2, MOST_NEEDLES + 1)) if rng.random() < 0.4 else 1
    asked = int(rng.integers(1, needles + 1))
    return retrieval.sample(rng, haystack, characters=characters, needles=needles, asked=asked)


def stream(
    seed: int,
    haystack: str,
    *,
    size: int = 64,
    frames: tuple[int, int] = (1, 16),
    characters: tuple[int, int] = (200, 6000),
    mix: Mapping[str, float] = MIX,
    start: int = 0,
) -> Iterator[Example]:
    """Examples number `start`, `start + 1`, … of the kinds in `mix` (name → share).

    `frames` and `characters` are the least and the most of a clip and of a retrieval text.
    """
    kinds, shares = list(mix), np.array(list(mix.values()))
    index = start
    while True:
        rng = np.random.default_rng((seed, index))
        kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
        if kind == "dialogue":
            yield Example(kind, dialogue.sample(rng))
        elif kind == "repeat":
            yield Example(kind, dialogue.repeat(rng))
        elif kind == "retrieval":
            length = int(np.exp(rng.uniform(*np.log(characters))))
            yield Example(kind, [_retrieval(rng, haystack, length)])
        elif kind == "move":
            length = max(2, int(rng.integers(frames[0], frames[1] + 1)))
            moving = sample_moving(rng, frames=length)
            yield Example(kind, [(moving.caption(), "")], moving.render(size))
        else:
            length = int(rng.integers(frames[0], frames[1] + 1))
            purpose: Purpose = "see" if kind == "see" else "make"
            scene = sample_scene(rng, frames=length, purpose=purpose)
            if kind == "see":
                exchanges = scene.questions(rng, int(rng.integers(2, 5)))
            else:
                exchanges = [(scene.prompt(rng), "")]
            yield Example(kind, exchanges, scene.render(size))
        index += 1
