"""The small layers of LLaMA: linear map, RMS norm, rotary embedding, SwiGLU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from lwm_core import integers
from lwm_core.costs import FEED_FORWARD_BLOCK
from lwm_core.types import Array, Quantized

FEWEST_ROWS, MOST_ROWS = 4, 64
"""A product on a CPU has at least so many rows, but for a single one of float32; with up to so many
the weights come first."""


class Adapted(NamedTuple):
    """A weight that stands for `weight [out, in] + b [out, r] a [r, in]`, which is never made."""

    weight: jax.Array
    a: jax.Array
    b: jax.Array


Weight = jax.Array | Adapted | Quantized
AnyWeight = TypeVar("AnyWeight", jax.Array, Adapted)


@jax.custom_vjp
def product(x: jax.Array, weight: Weight) -> jax.Array:
    """`x [..., in]` times `weight [out, in]` (Hugging Face's layout): float32 `[..., out]`.

    The operands are in the dtype of `x`, forward and backward; sums and the weight's gradient are
    float32. A weight in 8 bits has no gradient.
    """
    if isinstance(weight, Adapted):
        return product(x, weight.weight) + product(linear(x, weight.a), weight.b)
    if isinstance(weight, Quantized):
        return _product_of_8_bits(x, weight)
    weight = weight.astype(x.dtype)
    if math.prod(x.shape[:-1]) > MOST_ROWS:
        return _product(x, weight)
    return lax.platform_dependent(x, weight, cpu=_product_of_few, default=_product)


def _product_of_8_bits(x: jax.Array, weight: Quantized) -> jax.Array:
    if math.prod(x.shape[:-1]) > integers.MOST_ROWS:
        return _product_of_plain(x, weight)
    return lax.platform_dependent(x, weight, cpu=_product_of_integers, default=_product_of_plain)


def _product_of_plain(x: jax.Array, weight: Quantized) -> jax.Array:
    """The integers as numbers of the computation, which holds them exactly; their sums scaled."""
    return _product(x, weight.values.astype(x.dtype)) * weight.scales


def _product_of_integers(x: jax.Array, weight: Quantized) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    return integers.product(rows, weight).reshape(*x.shape[:-1], -1)


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return _contract(x, weight, (x.ndim - 1,), (1,))


def _product_of_few(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The product of up to MOST_ROWS rows, in the ways in which XLA's CPU backend is fast.

    Fewer than FEWEST_ROWS are filled up: for a single row of bfloat16 it would make all the weights
    float32 first, and two have slower kernels than four. Only one row of float32 is fast as it is.
    With the weights as the first operand several rows of float32 took a third to two thirds less
    time where these are large; the barrier keeps XLA from turning that product around again.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count > 1 or x.dtype == jnp.bfloat16:
        rows = jnp.pad(rows, ((0, max(FEWEST_ROWS - count, 0)), (0, 0)))
    if x.dtype == jnp.bfloat16:
        out = _product(rows, weight)
    else:
        out = lax.optimization_barrier(_contract(weight, rows, (1,), (1,))).T
    return out[:count].reshape(*x.shape[:-1], weight.shape[0])


def _contract(
    x: jax.Array, y: jax.Array, x_axes: tuple[int, ...], y_axes: tuple[int, ...]
) -> jax.Array:
    """Product over some axes of each, summed in float32."""
    return lax.dot_general(x, y, ((x_axes, y_axes), ((), ())), preferred_element_type=jnp.float32)


def _product_forward(x: jax.Array, weight: Weight) -> tuple:
    return product(x, weight), (x, weight)


def _product_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, Weight]:
    x, weight = saved
    d_x, d_weight = product_gradients(x, weight, cotangent)
    return d_x.astype(x.dtype), jax.tree.map(_as_stored, d_weight, weight)


def _as_stored(gradient: jax.Array, weight: jax.Array) -> jax.Array:
    return gradient.astype(weight.dtype)


def product_gradients(
    x: jax.Array, weight: AnyWeight, cotangent: jax.Array
) -> tuple[jax.Array, AnyWeight]:
    """Gradients of `product`, float32: of `x [..., in]` and of the weight `[out, in]`."""
    if isinstance(weight, Adapted):
        inner = linear(x, weight.a)
        d_x, d_weight = product_gradients(x, weight.weight, cotangent)
        d_inner, d_b = product_gradients(inner, weight.b, cotangent)
        more, d_a = product_gradients(x, weight.a, d_inner)
        return d_x + more, Adapted(d_weight, d_a, d_b)
    cotangent = cotangent.astype(x.dtype)
    d_x = _contract(cotangent, weight.astype(x.dtype), (x.ndim - 1,), (0,))
    return d_x, _outer(cotangent, x)


def _outer(cotangent: jax.Array, x: jax.Array) -> jax.Array:
    """Sum over all rows of the outer products of `cotangent [..., out]` and `x [..., in]`."""
    return lax.platform_dependent(cotangent, x, cpu=_outer_on_cpu, default=_sum_of_outer_products)


def _sum_of_outer_products(cotangent: jax.Array, x: jax.Array) -> jax.Array:
    rows = tuple(range(x.ndim - 1))
    return _contract(cotangent, x, rows, rows)


def _outer_on_cpu(cotangent: jax.Array, x: jax.Array) -> jax.Array:
    # XLA's CPU backend is fast over one axis of rows only. It sums bfloat16 over rows at a quarter
    # of the speed, unless it has to lay the transposed operand out anew.
    cotangent, x = (part.reshape(-1, part.shape[-1]) for part in (cotangent, x))
    if x.dtype != jnp.bfloat16:
        return _contract(cotangent, x, (0,), (0,))
    turned = with_layout_constraint(cotangent.T, Layout(major_to_minor=(0, 1)))
    return _contract(turned, x, (1,), (0,))


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def lookup(table: jax.Array | Quantized, ids: Array) -> jax.Array:
    """Rows of a table `[n, D]` by their numbers `[...]`: `[..., D]`."""
    if isinstance(table, Quantized):
        return table.values[ids] * table.scales[ids][..., None]
    if table.dtype != jnp.bfloat16:
        return table[ids]
    return lax.platform_dependent(
        table, ids, cpu=_lookup_bits, default=lambda table, ids: table[ids]
    )


def _lookup_bits(table: jax.Array, ids: Array) -> jax.Array:
    # XLA's CPU backend makes a whole table of bfloat16 float32 first, but not one of integers.
    bits = lax.bitcast_convert_type(table, jnp.uint16)
    return lax.bitcast_convert_type(bits[ids], jnp.bfloat16)


def _lookup_forward(table: jax.Array, ids: Array) -> tuple:
    return lookup(table, ids), (table, ids)


def _lookup_backward(saved: tuple, cotangent: jax.Array) -> tuple:
    table, ids = saved
    return jnp.zeros_like(table).at[ids].add(cotangent), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def linear(x: jax.Array, weight: Weight) -> jax.Array:
    """`x [..., in]` times `weight [out, in]`: summed in float32, returned in the dtype of `x`."""
    return product(x, weight).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm (Zhang and Sennrich 2019) of the last axis, computed in float32.

    The backward pass makes its float32 values again: they are cheaper to make than to keep.
    """
    return _normalised(x, eps)[0].astype(x.dtype) * weight.astype(x.dtype)


def _normalised(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """The norm without a weight, and what `x` was multiplied by, float32 `[..., 1]`."""
    x32 = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return x32 * scale, scale


def _rms_norm_backward(eps: float, saved: tuple, cotangent: jax.Array) -> tuple:
    """All sums in float32, which is also what XLA's CPU backend is fast at."""
    x, weight = saved
    normalised, scale = _normalised(x, eps)
    d_out = cotangent.astype(jnp.float32)
    d_weight = (d_out * normalised).sum(tuple(range(x.ndim - 1)))
    d_out *= weight.astype(jnp.float32)
    along = jnp.mean(d_out * normalised, axis=-1, keepdims=True)
    d_x = (d_out - normalised * along) * scale
    return d_x.astype(x.dtype), d_weight.astype(weight.dtype)


rms_norm.defvjp(lambda x, weight, eps: (rms_norm(x, weight, eps), (x, weight)), _rms_norm_backward)


def rope_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Rotary frequencies `theta^(-2i / head_dim)`, float64 `[head_dim / 2]`.

    The original LWM formed them in float32 where theta fits 16 bits and in float64 above (its
    array library promoted by the value of theta); at a million tokens the difference is visible,
    and the published weights were trained with it.
    """
    dtype = np.float32 if theta < 2**16 else np.float64
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (1 / np.power(dtype(theta), exponents.astype(dtype))).astype(np.float64)


def _exact_product(x: jax.Array, high: np.ndarray, low: np.ndarray) -> jax.Array:
    """`x * (high + low)` rounded once to float32, by Dekker's exact product (1971)."""

    def split(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        top = lax.reduce_precision(value, exponent_bits=8, mantissa_bits=11)
        return top, value - top

    rounded = x * high
    (x_top, x_rest), (high_top, high_rest) = split(x), split(jnp.asarray(high))
    error = x_top * high_top - rounded
    error = error + x_top * high_rest + x_rest * high_top + x_rest * high_rest
    return rounded + (error + x * low)


def rope_tables(positions: Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles (Su et al. 2021), float32 `[B, T, head_dim / 2]`.

    As in the original, `position * frequency` is formed exactly and rounded once to float32.
    """
    frequencies = rope_frequencies(head_dim, theta)
    high = frequencies.astype(np.float32)
    low = (frequencies - high).astype(np.float32)
    angles = _exact_product(jnp.asarray(positions, jnp.float32)[..., None], high, low)
    tables = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    # XLA's CPU backend would compute them anew for every head of every layer; what comes out of a
    # product it keeps.
    kept = lax.platform_dependent(
        tables,
        cpu=lambda tables: tables @ jnp.eye(head_dim, dtype=jnp.float32),
        default=lambda tables: tables,
    )
    return kept[..., : head_dim // 2], kept[..., head_dim // 2 :]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate component j with component j + H/2 (Hugging Face's order) in float32.

    `x [B, heads, T, H]`, tables `[B, T, H/2]`; returns the shape and dtype of `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


@jax.custom_vjp
def swiglu(x: jax.Array, gate: Weight, up: Weight, down: Weight) -> jax.Array:
    """Gated feed-forward layer (Shazeer 2020): `down(silu(gate x) * up x)` of `x [..., D]`.

    Inner activations exist for FEED_FORWARD_BLOCK tokens at a time, in the backward pass too. The
    gate is applied to the products' float32 sums: to round them first costs a CPU more than it
    saves.
    """
    weights: tuple = gate, up, down
    if not isinstance(gate, Quantized):
        weights = jax.tree.map(lambda weight: weight.astype(x.dtype), weights)
    gate, up, down = weights
    return _fed_forward(x, lambda rows: (product(rows, gate), product(rows, up)), down)


def joined_swiglu(x: jax.Array, gate_up: Weight, down: Weight) -> jax.Array:
    """As `swiglu`, with the rows of gate above those of up in one weight; it does not learn."""
    return _fed_forward(x, lambda rows: jnp.split(product(rows, gate_up), 2, axis=-1), down)


def _fed_forward(
    x: jax.Array, gate_and_up: Callable[[jax.Array], Sequence[jax.Array]], down: Weight
) -> jax.Array:
    """Forward through both halves, block by block."""

    def one_block(rows: jax.Array) -> jax.Array:
        gated, raised = gate_and_up(rows)
        return linear((jax.nn.silu(gated) * raised).astype(x.dtype), down)

    out = lax.map(one_block, in_blocks(x, FEED_FORWARD_BLOCK))
    return out_of_blocks(out, (*x.shape[:-1], out.shape[-1]))


def _swiglu_backward(saved: tuple, cotangent: jax.Array) -> tuple:
    x, *weights = saved
    gate, up, down = jax.tree.map(lambda weight: weight.astype(x.dtype), weights)

    def one_block(sums: list, parts: tuple) -> tuple[list, jax.Array]:
        rows, d_rows = parts
        gated, raised = product(rows, gate), product(rows, up)
        sigmoid = jax.nn.sigmoid(gated)
        inner = (gated * sigmoid * raised).astype(x.dtype)
        d_inner, d_down = product_gradients(inner, down, d_rows)
        d_gated = d_inner * raised * sigmoid * (1 + gated * (1 - sigmoid))
        from_gate, d_gate = product_gradients(rows, gate, d_gated)
        from_up, d_up = product_gradients(rows, up, d_inner * gated * sigmoid)
        sums = jax.tree.map(jnp.add, sums, [d_gate, d_up, d_down])
        return sums, (from_gate + from_up).astype(x.dtype)

    zeros = jax.tree.map(lambda weight: jnp.zeros(weight.shape, jnp.float32), weights)
    blocks = in_blocks(x, FEED_FORWARD_BLOCK), in_blocks(cotangent, FEED_FORWARD_BLOCK)
    sums, d_x = lax.scan(one_block, zeros, blocks)
    return out_of_blocks(d_x, x.shape), *jax.tree.map(_as_stored, sums, weights)


swiglu.defvjp(lambda *parts: (swiglu(*parts), parts), _swiglu_backward)


def in_blocks(x: jax.Array, block: int, features: int = 1) -> jax.Array:
    """The tokens of `x [..., *features]` as `[blocks, tokens, *features]`.

    As many blocks of at most `block` tokens as it takes, all of one size, so that little or nothing
    is filled up (with zeros); `features` counts the dimensions that are no tokens.
    """
    tokens = math.prod(x.shape[: x.ndim - features])
    blocks = -(-tokens // block)
    rows = x.reshape(tokens, *x.shape[x.ndim - features :])
    rows = jnp.pad(rows, ((0, -tokens % blocks), *((0, 0),) * features))
    return rows.reshape(blocks, -1, *rows.shape[1:])


def out_of_blocks(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `in_blocks`, for an array of this shape."""
    rows = blocks.reshape(-1, *blocks.shape[2:])
    tokens = math.prod(shape) // math.prod(blocks.shape[2:])
    return rows[:tokens].reshape(shape)
