"""Scenes of the world by number, and what their pixels show, measured."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np

from lwm_core.world import sample_shapes

SIZE = 64


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng((2026, seed))


def lone_shapes(count: int, purpose: str, frames: int):
    """Clean scenes of one shape."""
    scenes = (
        sample_shapes(generator(i), frames=frames, purpose=purpose) for i in itertools.count()
    )
    clean = (s for s in scenes if len(s.actors) == 1 and s.noise_seed is None)
    return list(itertools.islice(clean, count))


def shares(frames: np.ndarray) -> np.ndarray:
    """How much of each pixel a lone shape covers, `[F, S, S]`; the ground is the median colour."""
    ground = np.median(frames.reshape(-1, 3), 0)
    away = np.abs(frames.astype(float) - ground).sum(-1)
    return away / away.max()


def centroid(share: np.ndarray) -> np.ndarray:
    """Centre of mass (x, y) of one frame, in parts of the side."""
    y, x = np.mgrid[: share.shape[0], : share.shape[1]] + 0.5
    return np.array([(x * share).sum(), (y * share).sum()]) / share.sum() / len(share)


def colour_name(pixel: np.ndarray) -> str:
    """A colour's name by hue, saturation and brightness."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    if value < 0.2:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.8 else "gray"
    ends = {
        15: "red",
        45: "orange",
        75: "yellow",
        170: "green",
        255: "blue",
        330: "purple",
        361: "red",
    }
    return next(name for end, name in ends.items() if hue * 360 < end)


def shape_name(share: np.ndarray) -> str:
    """An upright shape's name by how much of its bounding box it fills."""
    filled = share > 0.5
    box = np.ptp(np.flatnonzero(filled.any(0))) + 1, np.ptp(np.flatnonzero(filled.any(1))) + 1
    part = share.sum() / (box[0] * box[1])
    return (
        "star"
        if part < 0.475
        else "triangle"
        if part < 0.64
        else "circle"
        if part < 0.9
        else "square"
    )
