"""Products of few rows with numbers in 8 bits, as they lie: what a CPU writes tokens with.

Such a product is bound by the bytes that it reads. Sums along what lies in a row are of integers:
what is multiplied becomes integers too, by a scale for each row, in as many bits as 32-bit sums
have room for: 16, or 12 over 8000 inputs. XLA's CPU backend makes of a sum of integer products one
loop at the memory's speed, if nothing else is fused into it and it is compiled with
COMPILER_OPTIONS. Sums across rows, of attention's values, go along in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce, wraps
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from lwm_core.quantize import LARGEST
from lwm_core.types import Quantized

Function = TypeVar("Function", bound=Callable)

COMPILER_OPTIONS: dict[str, str | int] = {
    # It would write all products down first, to sum them up in windows.
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
    "xla_cpu_prefer_vector_width": 512,
}
"""For the programs of a CPU that have such sums in them."""

MOST_ROWS = 8
"""For more rows the numbers are made plain, once for all of them."""
LARGEST_SUM = 2**31 - 1
"""The largest sum."""
GROUP = 32
"""So many numbers, or fewer, are summed in one go."""
SUMS = 4
"""A group is summed in so many independent parts: an addition waits for the one before it."""
TINY = 1e-30
"""No row has a smaller largest number: rows of zeros have a scale too."""


def alone(function: Function) -> Function:
    """A function that XLA compiles by itself, and into which it fuses nothing else."""
    compiled = jax.jit(function)

    @wraps(function)
    def called(*args: jax.Array) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return called  # type: ignore[return-value]


def product(x: jax.Array, weight: Quantized) -> jax.Array:
    """`x [rows, in]` times a weight `[out, in]`: float32 `[rows, out]`."""
    whole, scales = _in_integers(x)
    sums = _sums_over_inputs(weight.values, whole).astype(jnp.float32)
    return sums.T * scales * weight.scales


def scores(q: jax.Array, keys: Quantized) -> jax.Array:
    """Products of queries `[B, K, R, H]` and keys `[B, K, S, H]`: float32 `[B, K, R, S]`."""
    whole, scales = _in_integers(q)
    sums = _sums_over_heads(keys.values, whole).astype(jnp.float32)
    return sums * scales * keys.scales[:, :, None]


def weighted(weights: jax.Array, values: Quantized) -> jax.Array:
    """Sums of values `[B, K, S, H]` by weights `[B, K, R, S]`: float32 `[B, K, R, H]`.

    They are summed in float32, each value being made that as it is read: groups of slots, groups of
    their sums, and those. One after another, small ones would be lost beside a large one.
    """
    *outer, rows, slots = weights.shape
    size, group = values.values.shape[-1], _group(slots)
    cut = (weights * values.scales[:, :, None]).reshape(*outer, rows, -1, group)
    sums = _sums_over_groups(values.values.reshape(*outer, -1, group, size), cut)
    sums = sums.reshape(*outer, rows, -1, _group(slots // group), size).sum(axis=4)
    return lax.optimization_barrier(sums).sum(axis=3)  # or XLA makes the two sums one


def _group(count: int) -> int:
    """The largest number up to GROUP that divides another."""
    return next(size for size in range(GROUP, 0, -1) if count % size == 0)


def _in_integers(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Integers of 16 bits for `x [..., n]`, and the scale `[..., 1]` of each of its rows.

    They are no larger than those of which n, times numbers of 8 bits, can be summed in 32 bits.
    """
    x = x.astype(jnp.float32)
    largest = min(2**15 - 1, LARGEST_SUM // (LARGEST * x.shape[-1]))
    scales = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), TINY) / largest
    return jnp.round(x / scales).astype(jnp.int16), scales


@alone
def _sums_over_inputs(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """int8 `[out, in]`, int16 `[rows, in]`: int32 `[out, rows]`, each weight being read once."""
    return (weight[:, None].astype(jnp.int32) * rows.astype(jnp.int32)).sum(axis=-1)


@alone
def _sums_over_heads(keys: jax.Array, q: jax.Array) -> jax.Array:
    """int8 `[B, K, S, H]`, int16 `[B, K, R, H]`: int32 `[B, K, R, S]`."""
    return (keys[:, :, None].astype(jnp.int32) * q[:, :, :, None].astype(jnp.int32)).sum(axis=-1)


@alone
def _sums_over_groups(values: jax.Array, weights: jax.Array) -> jax.Array:
    """int8 `[B, K, N, G, H]`, float32 `[B, K, R, N, G]`: float32 `[B, K, R, N, H]`.

    Written out, so that XLA's CPU backend goes along H, as the values lie; in operations that are
    quick to trace, for there are many.
    """
    values, weights = values[:, :, None], weights[..., None]
    products = [
        lax.index_in_dim(values, slot, 4, keepdims=False).astype(jnp.float32)
        * lax.index_in_dim(weights, slot, 4, keepdims=False)
        for slot in range(values.shape[4])
    ]
    parts = [products[first::SUMS] for first in range(min(SUMS, len(products)))]
    return reduce(lax.add, [reduce(lax.add, part) for part in parts])
