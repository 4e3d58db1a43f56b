"""Scenes of one or two shapes on a plain ground, each going its own way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from lwm_core.world import words
from lwm_core.world.canvas import Canvas
from lwm_core.world.colours import GROUND_COLOURS, SHAPE_COLOURS, Colour, canonical, nearby, plain
from lwm_core.world.scenes import Purpose, Scene, finish, noise_seed
from lwm_core.world.shapes import SHAPES, coverage

LEAST_CONTRAST = 0.25  # between a shape and its ground, in RGB of 0..1
NAMED = 0.06  # a patch is named after a shape that covers more of it
LARGEST = 0.5  # diameter of a lone shape
LARGEST_OF_TWO = 0.375
SMALLEST = 0.1
PATCH = 1 / 8
"""Boxes of shapes to make begin at multiples of it; those that don't grow or shrink are multiples.

In parts of the side. It is a patch of the embedded model's image tokenizer, so that few different
codes are to be learned.
"""
STEP = PATCH
"""How far they go in a frame until they reach a border; half as far in clips of more than `LONG`.

So a frame has the codes of the one before (or the one two before), one place further.
"""
LONG = 9
TRAVEL = (0.15, 0.75)  # the way of a shape to see, in parts of the side
MOVING = {"see": 0.66, "make": 0.9}
"""Share of those that move among the shapes that move, grow or shrink."""
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Actor:
    """One shape on its way: centre `[F, 2]` and diameter `[F]` in parts of the picture's side."""

    thing: words.Thing
    colour: Colour
    centre: np.ndarray
    diameter: np.ndarray
    angle: float  # radians
    variant: float  # 0..1, see shapes.py

    def coverage(self, canvas: Canvas) -> np.ndarray:
        """How much of each pixel it covers: `[F, S, S]`."""
        return coverage(
            canvas, self.thing.shape, self.centre, self.diameter, self.angle, self.variant
        )


@dataclass(frozen=True)
class ShapeScene(Scene):
    """One or two shapes over a plain ground."""

    actors: tuple[Actor, ...]
    ground: str
    ground_colour: Colour

    def plain(self) -> Self:
        """The same scene without noise and without shades: each colour as most programs have it."""
        actors = tuple(replace(a, colour=plain(a.thing.colour)) for a in self.actors)
        return replace(super().plain(), actors=actors, ground_colour=plain(self.ground))

    def render(self, size: int) -> np.ndarray:
        """Frames as uint8 `[frames, size, size, 3]`, with the noise that belongs to the scene."""
        canvas = Canvas(self.frames, size, self.ground_colour)
        for actor in self.actors:
            canvas.paint(actor.coverage(canvas), actor.colour)
        return finish(canvas, self.noise_seed)

    def shapes_at(self, grid: int) -> np.ndarray:
        """The shape at each of `grid * grid` patches: int32 `[frames, grid, grid]`.

        It is the last painted of those that cover more than NAMED of the patch.
        """
        fine = 8  # points of a patch's side that are looked at
        canvas = Canvas(self.frames, fine * grid)
        names = np.zeros((self.frames, grid, grid), np.int32)
        for actor in self.actors:
            covered = actor.coverage(canvas).reshape(self.frames, grid, fine, grid, fine)
            names[covered.mean((2, 4)) > NAMED] = 1 + SHAPES.index(actor.thing.shape)
        return names

    @property
    def story(self) -> words.Story:
        """The names of what is in it."""
        return words.Story(tuple(a.thing for a in self.actors), self.ground, self.frames > 1)

    def caption(self) -> str:
        """`a red circle moving left on a black background`."""
        return words.caption(self.story)

    def prompt(self, rng: np.random.Generator) -> str:
        """A wish for this scene, as a user would type it."""
        return words.prompt(self.story, rng, big=all(a.diameter[0] > 0.38 for a in self.actors))

    def questions(self, rng: np.random.Generator, count: int) -> list[words.Exchange]:
        """Questions with answers; the first is the overall one."""
        return words.questions(self.story, rng, count)


def sample_shapes(rng: np.random.Generator, *, frames: int, purpose: Purpose) -> ShapeScene:
    """A random scene of one or two shapes."""
    count = 2 if rng.random() < (0.25 if purpose == "see" else 0.05) else 1
    ground, ground_colour = _ground(rng, purpose)
    still = 0.5 if purpose == "make" and frames == 1 else 0.14
    things = _things(rng, count, ground, still, MOVING[purpose])
    paths = _paths(rng, things, frames, purpose)
    actors = []
    for thing, (centre, diameter) in zip(things, paths, strict=True):
        tilted = purpose == "see" and rng.random() < 0.15
        actors.append(
            Actor(
                replace(thing, first=_place(centre[0]), last=_place(centre[-1])),
                _visible_colour(rng, thing.colour, ground_colour, purpose),
                centre,
                diameter,
                rng.uniform(-0.25, 0.25) if tilted else 0.0,
                _variant(rng, thing.shape, purpose),
            )
        )
    return ShapeScene(
        frames, tuple(actors), ground, ground_colour, noise_seed=noise_seed(rng, purpose)
    )


def sample_moving(rng: np.random.Generator, *, frames: int) -> ShapeScene:
    """A random scene to make of one shape that moves left, right, up or down."""
    while True:
        scene = sample_shapes(rng, frames=frames, purpose="make")
        if len(scene.actors) == 1 and scene.actors[0].thing.motion in WAYS:
            return scene


def _ground(rng: np.random.Generator, purpose: Purpose) -> tuple[str, Colour]:
    """Black is most usual, then gray, then colours (white among them)."""
    draw = rng.random()
    name = (
        "black" if draw < 0.38 else "gray" if draw < 0.62 else words.pick(rng, GROUND_COLOURS[2:])
    )
    return name, _colour(rng, name, purpose)


def _colour(rng: np.random.Generator, name: str, purpose: Purpose) -> Colour:
    if purpose == "make":
        return plain(name)
    return canonical(name, rng) if rng.random() < 0.5 else nearby(name, rng)


def _visible_colour(
    rng: np.random.Generator, name: str, ground: Colour, purpose: Purpose
) -> Colour:
    """A colour called `name`: of 8 tries the first that stands out from the ground."""
    for _ in range(8):
        colour = _colour(rng, name, purpose)
        if np.abs(np.subtract(colour, ground)).max() >= LEAST_CONTRAST:
            break
    return colour


def _things(
    rng: np.random.Generator, count: int, ground: str, still: float, moving: float
) -> list[words.Thing]:
    """Shapes that differ from the ground in colour and from each other in colour or shape.

    `still` is the share of those that stand still, `moving` of those that move among the others.
    """
    colours = [name for name in SHAPE_COLOURS if name != ground]
    things: list[words.Thing] = []
    while len(things) < count:
        motions = words.DIRECTIONS if rng.random() < moving else ("grow", "shrink")
        motion = "still" if rng.random() < still else words.pick(rng, motions)
        thing = words.Thing(words.pick(rng, colours), words.pick(rng, SHAPES), motion)
        if all(thing.name != other.name for other in things):
            things.append(thing)
    return things


def _place(centre: np.ndarray) -> str:
    """The part of the picture where `centre` `[2]` is."""
    column, row = np.digitize(centre, (0.4, 0.6))
    return words.PLACES[row][column]


def _variant(rng: np.random.Generator, shape: str, purpose: Purpose) -> float:
    """Most programs fill the square's box; of triangles and stars all forms are usual."""
    if purpose == "make":
        return 0.0 if shape == "star" else 1.0
    return 1.0 if shape == "square" and rng.random() < 0.7 else float(rng.random())


Path = tuple[np.ndarray, np.ndarray]  # centre [F, 2] and diameter [F]


def _paths(
    rng: np.random.Generator, things: list[words.Thing], frames: int, purpose: Purpose
) -> list[Path]:
    """A path for every shape: of 60 tries the first in which they don't touch at the start."""
    largest = LARGEST if len(things) == 1 else LARGEST_OF_TWO
    path = _path if purpose == "see" else _steady_path
    for _ in range(60):
        paths = [path(rng, thing.motion, frames, largest) for thing in things]
        if len(paths) == 1 or _apart(*paths):
            break
    return paths


def _apart(one: Path, other: Path) -> bool:
    """Whether two shapes don't touch in the first frame."""
    gap = np.hypot(*(one[0][0] - other[0][0]))
    return bool(gap > 0.56 * (one[1][0] + other[1][0]))


def _path(rng: np.random.Generator, motion: str, frames: int, largest: float) -> Path:
    """Any way, frame by frame, of a shape to see; always wholly inside the picture."""
    course = _course(rng, frames) if frames > 1 else np.zeros(1)
    first, last = _sizes(rng, motion, largest)
    room = 1 - max(first, last)
    travel = np.zeros(2)
    if motion in WAYS:
        travel = np.array(WAYS[motion]) * min(room, rng.uniform(*TRAVEL))
    start = _start(rng, travel, room, margin=0)
    centre = max(first, last) / 2 + start + course[:, None] * travel
    return centre, first + (last - first) * course


def _steady_path(rng: np.random.Generator, motion: str, frames: int, largest: float) -> Path:
    """The way of a shape to make: from patch to patch, as far in every frame as in the one before.

    A picture may begin a clip, so there is room for one.
    """
    planned = frames if frames > 1 else int(rng.integers(8, 17))
    step = STEP if planned <= LONG else STEP / 2
    steps = np.arange(planned)
    if motion in ("grow", "shrink"):
        diameter = np.minimum(1.5 * PATCH + step / 2 * steps, largest)
        diameter = diameter if motion == "grow" else diameter[::-1]
    else:
        diameter = np.full(planned, PATCH * rng.integers(3, int(largest / PATCH) + 1))
    room = (1 - diameter.max()) // PATCH * PATCH
    travel = np.zeros(2)
    if motion in WAYS:
        travel = np.array(WAYS[motion]) * min(room, step * (planned - 1))
    reserved = np.sign(travel) * np.ceil(abs(travel) / PATCH) * PATCH  # rounding stays inside
    start = np.round(_start(rng, reserved, room, margin=0.2) / PATCH) * PATCH
    moved = np.clip(steps[:, None] * step * np.sign(travel), -abs(travel), abs(travel))
    return (diameter.max() / 2 + start + moved)[:frames], diameter[:frames]


def _start(
    rng: np.random.Generator, travel: np.ndarray, room: float, *, margin: float
) -> np.ndarray:
    """Where the box of a shape begins, `[2]`, so that it has `travel` before it."""
    first, last = np.maximum(0, -travel), room - np.maximum(0, travel)
    return first + (last - first) * rng.uniform(margin, 1 - margin, 2)


def _sizes(rng: np.random.Generator, motion: str, largest: float) -> tuple[float, float]:
    """The first and the last diameter of a shape to see."""
    if motion not in ("grow", "shrink"):
        size = rng.uniform(SMALLEST, largest)
        return size, size
    small = rng.uniform(SMALLEST, largest / 1.5)
    big = rng.uniform(1.5 * small, largest)
    return (small, big) if motion == "grow" else (big, small)


def _course(rng: np.random.Generator, frames: int) -> np.ndarray:
    """How much of its way a shape has gone, `[F]` from 0 to 1: mostly steady."""
    time = np.linspace(0, 1, frames)
    style = rng.random()
    if style < 0.55:
        return time
    if style < 0.7:  # frames taken at uneven times
        return np.sort(np.concatenate([[0, 1], rng.random(len(time) - 2)])) * 0.6 + time * 0.4
    if style < 0.8:  # slow at both ends
        return time * time * (3 - 2 * time)
    if style < 0.9:  # stops at a border or where it arrives
        return np.minimum(1, time * rng.uniform(1.1, 1.7))
    return np.maximum(0, 1 - (1 - time) * rng.uniform(1.1, 1.5))  # waits before it starts
