"""The endless stream: numbered examples of everything the embedded model learns from.

Example `index` of a stream is a function of the seed and the index alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lwm_core.world import dialogue, retrieval
from lwm_core.world.landscapes import sample_landscape
from lwm_core.world.scenes import Purpose, Scene
from lwm_core.world.shape_scenes import sample_moving, sample_shapes
from lwm_core.world.words import Exchange

LANDSCAPES = {"see": 0.15, "make": 0.35}  # their share of the scenes
MIX = {
    "see": 0.4,
    "make": 0.2,
    "move": 0.1,
    "dialogue": 0.06,
    "repeat": 0.02,
    "notes": 0.06,
    "retrieval": 0.16,
}
MOST_NEEDLES = 3
PART_FIRST = 0.5
"""Share of the scenes that are asked for a part of them before they are asked for the whole."""


@dataclass(frozen=True)
class Example:
    """One thing to learn from.

    `see`: frames and exchanges about them. `make`: one exchange whose answer is the frames
    (its text is empty); `move`: the same of a shape that surely moves, and says which way.
    `dialogue`: exchanges. `repeat`: one exchange, whose answer is in the
    question. `notes`: one exchange about a number in the user's words. `retrieval`: one about a
    number in a text, its prompt whole, from the system's words to `ASSISTANT: `.
    """

    kind: str
    exchanges: list[Exchange]
    frames: np.ndarray | None = None  # uint8 [F, size, size, 3]


def sample_scene(rng: np.random.Generator, *, frames: int, purpose: Purpose) -> Scene:
    """A random scene: mostly shapes, sometimes one of the landscapes."""
    sample = sample_landscape if rng.random() < LANDSCAPES[purpose] else sample_shapes
    return sample(rng, frames=frames, purpose=purpose)


@dataclass(frozen=True)
class _Range:
    """What the examples of a stream may be like."""

    haystack: str
    size: int
    frames: tuple[int, int]
    characters: tuple[int, int]

    def length(self, rng: np.random.Generator) -> int:
        """The frames of one clip."""
        return int(rng.integers(self.frames[0], self.frames[1] + 1))

    def text(self, rng: np.random.Generator) -> int:
        """The characters of one text; short ones are as usual as long ones."""
        return int(np.exp(rng.uniform(*np.log(self.characters))))


def _see(rng: np.random.Generator, given: _Range) -> Example:
    """A scene and two to four questions; any of them may be the first that a person asks."""
    scene = sample_scene(rng, frames=given.length(rng), purpose="see")
    exchanges = scene.questions(rng, int(rng.integers(2, 5)))
    if rng.random() < PART_FIRST:
        exchanges = exchanges[1:] + exchanges[:1]
    return Example("see", exchanges, scene.render(given.size))


def _make(rng: np.random.Generator, given: _Range) -> Example:
    scene = sample_scene(rng, frames=given.length(rng), purpose="make")
    return Example("make", [(scene.prompt(rng), "")], scene.render(given.size))


def _move(rng: np.random.Generator, given: _Range) -> Example:
    scene = sample_moving(rng, frames=max(2, given.length(rng)))
    return Example("move", [(scene.caption(), "")], scene.render(given.size))


def _retrieval(rng: np.random.Generator, given: _Range) -> Example:
    """Mostly one needle, as in the plain test."""
    needles = int(rng.integers(2, MOST_NEEDLES + 1)) if rng.random() < 0.4 else 1
    asked = int(rng.integers(1, needles + 1))
    exchange = retrieval.sample(
        rng, given.haystack, characters=given.text(rng), needles=needles, asked=asked
    )
    return Example("retrieval", [exchange])


def _notes(rng: np.random.Generator, given: _Range) -> Example:
    """Notes are short: a text of any length up to that of a retrieval text, and more often less."""
    characters = int(rng.integers(given.text(rng)))
    return Example("notes", [retrieval.notes(rng, given.haystack, characters=characters)])


_MAKERS: dict[str, Callable[[np.random.Generator, _Range], Example]] = {
    "see": _see,
    "make": _make,
    "move": _move,
    "dialogue": lambda rng, _: Example("dialogue", dialogue.sample(rng)),
    "repeat": lambda rng, _: Example("repeat", dialogue.repeat(rng)),
    "notes": _notes,
    "retrieval": _retrieval,
}


def stream(
    seed: int,
    haystack: str,
    *,
    size: int = 64,
    frames: tuple[int, int] = (1, 16),
    characters: tuple[int, int] = (200, 6000),
    mix: Mapping[str, float] = MIX,
) -> Iterator[Example]:
    """Examples number 0, 1, … of the kinds in `mix` (name → share).

    `frames` and `characters` are the least and the most of a clip (two at least, where something
    is to move) and of a retrieval text. Raises KeyError for an unknown kind.
    """
    makers, shares = [_MAKERS[kind] for kind in mix], np.array(list(mix.values()))
    given = _Range(haystack, size, frames, characters)
    for index in itertools.count():
        rng = np.random.default_rng((seed, index))
        yield makers[rng.choice(len(makers), p=shares / shares.sum())](rng, given)
