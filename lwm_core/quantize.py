"""Numbers in 8 bits: runs of them with a scale each, by the largest of the run."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lwm_core.types import Quantized

LARGEST = 127


def quantize(x: jax.Array) -> Quantized:
    """`x [..., H]` in 8 bits: each run of H numbers is rounded to 255 even steps about zero."""
    x = x.astype(jnp.float32)
    scales = jnp.abs(x).max(axis=-1) / LARGEST
    steps = x / jnp.where(scales > 0, scales, 1.0)[..., None]
    return Quantized(jnp.round(steps).astype(jnp.int8), scales)


def plain(x: jax.Array | Quantized, dtype: jnp.dtype) -> jax.Array:
    """The numbers themselves, `[..., H]` in `dtype`."""
    if isinstance(x, Quantized):
        return (x.values.astype(jnp.float32) * x.scales[..., None]).astype(dtype)
    return x.astype(dtype)
