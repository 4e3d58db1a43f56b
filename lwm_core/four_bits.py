"""Matrices in 4 bits, as they are stored: in groups of 32 inputs with a scale and a least value.

A number is `least + code * scale` with a code from 0 to 15; scales and least values are float16.
Two codes share a byte: those of columns 2i (its low half) and 2i + 1. It is GGUF's Q4_1, but for
the order of codes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GROUP = 32
"""Inputs that share a scale."""
_LARGEST = 15
_FINITE = np.finfo(np.float16).max


class Packed(NamedTuple):
    """A matrix `[out, in]`: codes uint8 `[out, in / 2]`, the others float16 `[out, in / 32]`."""

    codes: np.ndarray
    scales: np.ndarray
    least: np.ndarray


def pack(weight: np.ndarray) -> Packed:
    """A matrix `[out, in]` in 4 bits, `in` a multiple of 32; each number takes the nearest code."""
    groups = weight.astype(np.float32).reshape(len(weight), -1, GROUP)
    least = groups.min(axis=-1).clip(-_FINITE, _FINITE).astype(np.float16)
    reach = groups.max(axis=-1) - least
    scales = (reach / _LARGEST).clip(0, _FINITE).astype(np.float16)
    steps = np.where(scales > 0, scales, 1).astype(np.float32)
    codes = np.rint((groups - least[..., None]) / steps[..., None]).clip(0, _LARGEST)
    codes = codes.astype(np.uint8).reshape(weight.shape)
    return Packed(codes[:, ::2] | codes[:, 1::2] << 4, scales, least)


def unpack(packed: Packed) -> np.ndarray:
    """The numbers that a matrix stands for, float32 `[out, in]`."""
    codes = np.stack([packed.codes & _LARGEST, packed.codes >> 4], axis=-1)
    groups = codes.reshape(*packed.scales.shape, GROUP).astype(np.float32)
    scales, least = (part[..., None].astype(np.float32) for part in packed[1:])
    return (least + groups * scales).reshape(len(codes), -1)
