"""The examiner's own pictures and clips: one plain anti-aliased shape on a plain ground.

Scenes are stratified: shape, colour and motion step through their full product (196 cells), so
that any multiple of 28 scenes holds every value equally often.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

SIDE, FRAMES, FPS, SUPERSAMPLING = 256, 16, 8, 4
SHAPES = ("circle", "square", "triangle", "star")
COLOURS: dict[str, tuple[RGB, RGB]] = {
    "red": ((255, 0, 0), (220, 20, 60)),
    "orange": ((255, 165, 0), (255, 128, 0)),
    "yellow": ((255, 255, 0), (255, 215, 0)),
    "green": ((0, 128, 0), (0, 255, 0)),
    "blue": ((0, 0, 255), (30, 110, 255)),
    "purple": ((128, 0, 128), (148, 50, 211)),
    "white": ((255, 255, 255), (235, 235, 235)),
}
USUAL_GROUNDS: tuple[tuple[str, RGB], ...] = (
    ("black", (0, 0, 0)),
    ("black", (16, 16, 16)),
    ("gray", (128, 128, 128)),
    ("gray", (80, 80, 80)),
)
RARE_GROUNDS: tuple[tuple[str, RGB], ...] = (
    ("white", (255, 255, 255)),
    ("blue", (0, 0, 110)),
    ("blue", (135, 206, 235)),
    ("green", (0, 90, 0)),
    ("red", (120, 0, 0)),
    ("purple", (70, 0, 90)),
    ("yellow", (240, 230, 140)),
)
RARE_SHARE = 0.15
DIRECTIONS: dict[str, Point] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CHANGES = ("growing", "shrinking", "still")
MOTIONS = (*DIRECTIONS, *CHANGES)


@dataclass(frozen=True)
class Scene:
    """What one clip shows. Sizes and centres are fractions of the picture, (first, last)."""

    shape: str
    colour: str
    ground: str
    motion: str
    rgb: RGB
    ground_rgb: RGB
    height: float  # of the outline, relative to its width; only triangles vary
    sizes: tuple[float, float]
    centres: tuple[Point, Point]

    @property
    def asked(self) -> dict[str, str]:
        """The truth by attribute; the four directions and the other motions are kept apart."""
        kind = "direction" if self.motion in DIRECTIONS else "change"
        return {"colour": self.colour, "shape": self.shape, kind: self.motion}

    @property
    def name(self) -> str:
        return f"{self.colour}_{self.shape}_{self.motion}_on_{self.ground}"


def outline(shape: str, height: float = 1.0) -> list[Point]:
    """The corners of `shape` in the box -0.5 … 0.5, y downwards; a circle is a 96-gon."""
    if shape == "square":
        return [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
    if shape == "triangle":
        return [(0.0, -height / 2), (0.5, height / 2), (-0.5, height / 2)]
    radii = (0.5, 0.5 * 0.382) * 5 if shape == "star" else (0.5,) * 96
    turn = 2 * math.pi / len(radii)
    return [(r * math.sin(i * turn), -r * math.cos(i * turn)) for i, r in enumerate(radii)]


def scenes(count: int, seed: int, *, moving_only: bool = False) -> list[Scene]:
    """`count` scenes in shuffled order; the same for the same `seed`."""
    source = random.Random(seed)
    motions = tuple(DIRECTIONS) if moving_only else MOTIONS
    chosen = [_scene(source, *_cell(index, motions)) for index in range(count)]
    source.shuffle(chosen)
    return chosen


def _cell(index: int, motions: Sequence[str]) -> tuple[str, str, str]:
    """Walk the product of shapes, colours and motions so that every margin fills evenly."""
    colours = tuple(COLOURS)
    row, column = divmod(index, len(colours))
    block = row // len(SHAPES)
    shape = SHAPES[(row + column) % len(SHAPES)]
    motion = motions[(row + 2 * column + block) % len(motions)]
    return shape, colours[column], motion


def _scene(source: random.Random, shape: str, colour: str, motion: str) -> Scene:
    rgb = source.choice(COLOURS[colour])
    grounds = RARE_GROUNDS if source.random() < RARE_SHARE else USUAL_GROUNDS
    visible = [g for g in grounds if g[0] != colour and contrast(rgb, g[1]) > 60]
    ground, ground_rgb = source.choice(visible)
    height = source.choice((math.sqrt(3) / 2, 1.0)) if shape == "triangle" else 1.0
    sizes, centres = _path(source, motion)
    return Scene(shape, colour, ground, motion, rgb, ground_rgb, height, sizes, centres)


def contrast(one: RGB, other: RGB) -> float:
    """Distance of two colours with the channels weighted as in luma (Rec. 601), 0 … 255."""
    weights = (0.299, 0.587, 0.114)
    return math.sqrt(sum(w * (a - b) ** 2 for w, a, b in zip(weights, one, other, strict=True)))


def _path(source: random.Random, motion: str) -> tuple[tuple[float, float], tuple[Point, Point]]:
    """Sizes a tenth to a half; a path of 20 to 50 %; the shape stays inside the picture."""
    if motion in ("growing", "shrinking"):
        small = source.uniform(0.1, 0.3)
        large = source.uniform(max(1.6 * small, small + 0.1), 0.5)
        sizes = (small, large) if motion == "growing" else (large, small)
        centre = (_inside(source, large / 2), _inside(source, large / 2))
        return sizes, (centre, centre)
    size, length = source.uniform(0.1, 0.5), source.uniform(0.2, 0.5)
    step = DIRECTIONS.get(motion, (0, 0))
    # The middle of the path needs room for half of it on both sides, along its axis.
    x, y = (_inside(source, (size + length * abs(axis)) / 2) for axis in step)
    half_x, half_y = step[0] * length / 2, step[1] * length / 2
    return (size, size), ((x - half_x, y - half_y), (x + half_x, y + half_y))


def _inside(source: random.Random, margin: float) -> float:
    return source.uniform(margin, 1 - margin)


def render(scene: Scene, time: float = 0.0) -> Image.Image:
    """The scene at `time` 0 … 1, [256, 256] RGB, supersampled and averaged down."""
    size = _between(scene.sizes, time)
    x, y = (_between(ends, time) for ends in zip(*scene.centres, strict=True))
    side = SIDE * SUPERSAMPLING
    picture = Image.new("RGB", (side, side), scene.ground_rgb)
    corners = [
        (side * (x + size * px), side * (y + size * py))
        for px, py in outline(scene.shape, scene.height)
    ]
    ImageDraw.Draw(picture).polygon(corners, fill=scene.rgb)
    return picture.reduce(SUPERSAMPLING)


def _between(ends: tuple[float, float], time: float) -> float:
    return ends[0] + time * (ends[1] - ends[0])


def frames(scene: Scene, count: int = FRAMES) -> list[Image.Image]:
    return [render(scene, index / (count - 1)) for index in range(count)]


def write_clip(path: Path, pictures: Sequence[Image.Image]) -> None:
    """H.264 in mp4, 4:2:0, x264's own default quality (crf 23)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def read_frames(path: Path) -> list[np.ndarray]:
    """All frames of a clip, or a picture as the only one; uint8 [H, W, 3] each."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
