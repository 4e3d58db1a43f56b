"""The four shapes as signed distances: any size, place and angle, with smooth edges.

A shape of diameter 1 touches the circle of diameter 1 or stands in the square around it;
`variant` (0..1) runs through the ways in which programs draw it (an equilateral or a
box-filling triangle, a slim or a stout star).
"""

from __future__ import annotations

import numpy as np

from lwm_core.world.canvas import Canvas, per_frame

SHAPES = ("circle", "square", "triangle", "star")


def coverage(
    canvas: Canvas,
    shape: str,
    centre: np.ndarray,
    diameter: np.ndarray,
    angle: float,
    variant: float,
) -> np.ndarray:
    """Coverage `[F, S, S]` of a shape: centre `[F, 2]`, diameter `[F]`, angle in radians."""
    x, y = canvas.x - per_frame(centre[:, 0]), canvas.y - per_frame(centre[:, 1])
    if angle:
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = cos * x + sin * y, cos * y - sin * x
    distance = _DISTANCES[shape](x, y, per_frame(diameter) / 2, variant)
    return canvas.inside(distance)


def _circle(x: np.ndarray, y: np.ndarray, radius: np.ndarray, variant: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _square(x: np.ndarray, y: np.ndarray, radius: np.ndarray, variant: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - radius * np.float32(0.85 + 0.15 * variant)


def _triangle(x: np.ndarray, y: np.ndarray, radius: np.ndarray, variant: float) -> np.ndarray:
    """Tip up; from equilateral in the circle (base at half the radius) to filling the square."""
    base = radius * np.float32(0.5 + 0.5 * variant)
    half_width = radius * np.float32(0.866 + 0.134 * variant)
    height = radius + base
    length = np.sqrt(height * height + half_width * half_width)
    sides = np.abs(x) * (height / length) - (y + radius) * (half_width / length)
    return np.maximum(sides, y - base)


def _star(x: np.ndarray, y: np.ndarray, radius: np.ndarray, variant: float) -> np.ndarray:
    """Five points, one up; inner radius 0.38 (a pentagram) to 0.5 of the outer.

    The plane is folded over the star's mirror lines onto one tenth of it, where the edge is
    one straight line from the tip (0, 1) to the inner corner at 36°.
    """
    x, y = np.abs(x), -y
    for turn in (72, 36):
        across, along = np.float32(np.cos(np.radians(turn))), np.float32(np.sin(np.radians(turn)))
        beyond = np.maximum(across * x - along * y, 0) * 2
        x, y = np.abs(x - beyond * across), y + beyond * along
    inner = 0.382 + 0.118 * variant
    edge = np.array([inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5) - 1])
    normal = np.array([-edge[1], edge[0]], np.float32) / np.float32(np.hypot(*edge))
    return x * normal[0] + (y - radius) * normal[1]


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
