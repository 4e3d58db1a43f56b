"""Frames in bytes to the image tokenizer's pixels, to codes and back, in batches of few sizes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lwm_core.config import VQConfig
from lwm_core.types import Array
from lwm_core.vqgan import VQGAN, decode, encode

AT_ONCE = 8
"""Frames per compiled call, at most."""
CPU_PIXELS = 4 * 256 * 256
"""Pixels of them together on a CPU: of the published size 4 frames, for which encoding takes 1.6 GB
beside the weights. More gain nothing."""


def frames_at_once(config: VQConfig) -> int:
    """How many frames one compiled call takes, at most: a power of two."""
    on_cpu = jax.default_backend() == "cpu"
    most = min(AT_ONCE, CPU_PIXELS // config.resolution**2) if on_cpu else AT_ONCE
    return 1 << max(1, most).bit_length() - 1


def batches(config: VQConfig, frames: int) -> list[int]:
    """How many frames each call takes: powers of two, so that few programs serve all counts. The
    last may be more than there are."""
    whole, rest = divmod(frames, frames_at_once(config))
    return [frames_at_once(config)] * whole + [1 << (rest - 1).bit_length()] * bool(rest)


def encode_frames(model: VQGAN, frames: np.ndarray) -> np.ndarray:
    """Frames, uint8 `[F, resolution, resolution, 3]`, to codes, int32 `[F, grid * grid]`, some at a
    time; F is 1 or more."""
    return _in_batches(lambda part: encode(model, to_unit(part)), frames, model.config)


def decode_frames(model: VQGAN, codes: np.ndarray) -> np.ndarray:
    """Codes, int32 `[F, grid * grid]`, to frames, uint8 `[F, resolution, resolution, 3]`, some at a
    time; F is 1 or more."""
    return _in_batches(lambda part: to_bytes(decode(model, part)), codes, model.config)


def _in_batches(
    work: Callable[[np.ndarray], Array], rows: np.ndarray, config: VQConfig
) -> np.ndarray:
    """What `work` makes of `rows`; where the last are fewer than a batch, it is filled up."""
    made, begun = [], 0
    for size in batches(config, len(rows)):
        part = rows[begun : begun + size]
        filled = np.pad(part, ((0, size - len(part)), *[(0, 0)] * (rows.ndim - 1)), mode="edge")
        made.append(work(filled)[: len(part)])
        begun += size
    return np.concatenate(made)


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def to_bytes(pixels: jax.Array) -> np.ndarray:
    """Pixels in [-1, 1] to uint8, truncated as the original does."""
    return ((np.asarray(pixels) + 1.0) * 127.5).astype(np.uint8)


def make_ready_to_decode(model: VQGAN, frames: int) -> None:
    """Compile what `decode_frames` calls for so many frames, so that its first call need not."""
    for size in set(batches(model.config, frames)):
        codes = jax.ShapeDtypeStruct((size, model.config.grid**2), jnp.int32)
        decode.lower(model, codes).compile()
