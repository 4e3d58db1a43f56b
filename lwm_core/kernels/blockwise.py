"""Attention in blocks of queries and keys, written for XLA: memory O(block²), on any device.

The queries of the heads that share a key head are rows of one matrix, so every product is a plain
matrix product. Blocks in which nobody sees anybody are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lwm_core.kernels.dense import MASKED, sees, visible
from lwm_core.quantize import plain
from lwm_core.types import Array, Attended, Places, Quantized


def attend(
    q: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_places: Places,
    k_places: Places,
    sofar: Attended | None = None,
    block: int | None = None,
) -> Attended:
    """Attention as the package describes it, in blocks of `block` tokens.

    Large blocks keep all cores busy, small ones skip more: by default a quarter of the keys, but
    at least 128 and at most 512.
    """
    layout = _Layout.of(q, k, block)
    if sofar is None:
        sofar = Attended(jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED))
    rows = layout.rows(q), layout.rows(sofar.out), layout.rows(sofar.lse[..., None])
    keys = layout.keys(k), layout.keys(v)
    out, lse = _over_heads(_attend)(*rows, *keys, *layout.marks(q_places, k_places))
    return Attended(layout.heads(out), layout.heads(lse)[..., 0])


def gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    lse: jax.Array,
    shift: jax.Array,
    d_out: jax.Array,
    sums: tuple[jax.Array, jax.Array, jax.Array],
    block: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients as the package describes them, in blocks of `block` tokens."""
    layout = _Layout.of(q, k, block)
    rows = (layout.rows(x) for x in (q, lse[..., None], shift[..., None], d_out, sums[0]))
    keys = (layout.keys(x) for x in (k, v, *sums[1:]))
    dq, dk, dv = _over_heads(_gradients)(*rows, *keys, *layout.marks(q_places, k_places))
    return layout.heads(dq), layout.tokens(dk), layout.tokens(dv)


class _Layout(NamedTuple):
    """How heads lie in blocks, `[B, K, blocks, block, H]`; a group of heads shares a key head."""

    length: int
    keys_length: int
    heads_of_keys: int
    group: int
    block: int

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array | Quantized, block: int | None) -> _Layout:
        """The layout for these queries and keys."""
        _, heads_of_keys, length, _ = jax.tree.leaves(k)[0].shape
        block = block or min(max(length // 4 // 128 * 128, 128), 512)
        return cls(q.shape[2], length, heads_of_keys, q.shape[1] // heads_of_keys, block)

    def rows(self, x: jax.Array) -> jax.Array:
        """`[B, N, T, H]` as rows, token by token."""
        batch, _, length, size = x.shape
        x = _bits(x).reshape(batch, self.heads_of_keys, self.group, length, size).swapaxes(2, 3)
        return _blocks(x.reshape(batch, self.heads_of_keys, -1, size), 2, self.block)

    def keys(self, x: jax.Array | Quantized) -> jax.Array | Quantized:
        """`[B, K, S, H]` in blocks."""
        return jax.tree.map(lambda part: _blocks(_bits(part), 2, self.block), x)

    def marks(self, q_places: Places, k_places: Places) -> tuple[Places, Places]:
        """The places of rows and keys, `[B, blocks, block]`."""
        q_marks = (_blocks(jnp.repeat(x, self.group, axis=1), 1, self.block) for x in q_places)
        k_marks = (_blocks(x, 1, self.block) for x in k_places)
        return Places(*q_marks), Places(*k_marks)

    def heads(self, rows: jax.Array) -> jax.Array:
        """Rows as `[B, N, T, H]`: the inverse of `rows`."""
        batch, size = rows.shape[0], rows.shape[-1]
        rows = rows.reshape(batch, self.heads_of_keys, -1, size)[:, :, : self.length * self.group]
        rows = rows.reshape(batch, self.heads_of_keys, self.length, self.group, size)
        return rows.swapaxes(2, 3).reshape(batch, -1, self.length, size)

    def tokens(self, rows: jax.Array) -> jax.Array:
        """Blocks of keys as `[B, K, S, H]`: the inverse of `keys`."""
        batch, size = rows.shape[0], rows.shape[-1]
        return rows.reshape(batch, self.heads_of_keys, -1, size)[:, :, : self.keys_length]


def _blocks(x: Array, axis: int, block: int) -> jax.Array:
    """Cut an axis into `[blocks, block]`, padded with zeros (segment 0, so never visible)."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % block)
    x = jnp.pad(x, padding)
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def _bits(x: jax.Array) -> jax.Array:
    """bfloat16 as bits: XLA's CPU backend makes it float32 to take it apart, but not integers."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _numbers(x: jax.Array) -> jax.Array:
    """The inverse of `_bits`."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def _over_heads(function: Callable) -> Callable:
    """A function of one head's arrays over rows and key heads; the last two arguments are marks."""

    def over(way: Callable, *args: object) -> object:
        axes = (0,) * (len(args) - 2) + (None, None)
        return way(way(function, in_axes=axes), in_axes=0)(*args)

    def mapped(*args: object) -> object:
        # On a CPU a head at a time stays in cache; elsewhere all heads at once fill the device.
        return lax.platform_dependent(
            *args, cpu=partial(over, _one_by_one), default=partial(over, jax.vmap)
        )

    return mapped


def _one_by_one(function: Callable, in_axes: int | tuple[int | None, ...]) -> Callable:
    """Like `jax.vmap` over leading axes, but one after another."""

    def looped(*args: object) -> object:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        mapped = tuple(arg for arg, axis in zip(args, axes, strict=True) if axis is not None)

        def one(parts: tuple) -> object:
            rest = iter(parts)
            return function(
                *(arg if axis is None else next(rest) for arg, axis in zip(args, axes, strict=True))
            )

        return lax.map(one, mapped)

    return looped


def reachable(q_marks: Places, k_marks: Places) -> jax.Array:
    """Whether any query of a block may see any key of another: bool `[q blocks, k blocks]`."""
    real = k_marks.segments != 0
    earliest = jnp.where(real, k_marks.positions, jnp.iinfo(jnp.int32).max).min(-1)
    in_time = earliest <= q_marks.positions.max(-1)[:, None]
    first, last = (getattr(k_marks.segments, f)(-1) for f in ("min", "max"))
    low, high = (getattr(q_marks.segments, f)(-1)[:, None] for f in ("min", "max"))
    return in_time & (first <= high) & (last >= low) & (last > 0) & (high > 0)


def _reached(q_marks: Places, k_marks: Places) -> tuple[jax.Array, jax.Array]:
    """For each block of queries the blocks of keys, those that it reaches first, and their number.

    A loop over that number skips the others under `vmap` too, where a condition would compute both
    of its ways; elsewhere XLA would copy every block to find that there is nothing to do.
    """
    reach = reachable(q_marks, k_marks)
    return jnp.argsort(~reach, axis=1), reach.sum(axis=1)


_times = partial(lax.dot_general, preferred_element_type=jnp.float32)
_AB = (((1,), (0,)), ((), ()))
_ABT = (((1,), (1,)), ((), ()))


def _attend(
    q: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_marks: Places,
    k_marks: Places,
) -> tuple[jax.Array, jax.Array]:
    """One head: `q, out [q blocks, block, H]`, `lse [q blocks, block, 1]`, keys and marks alike.

    Running maximum and sum over key blocks (Milakov and Gimelshein 2018; Dao et al. 2022), which
    begin with what was seen so far. Returns `out` and `lse`. Queries, keys and values in bfloat16
    come as `_bits`.
    """

    def one_block(parts: tuple) -> tuple[jax.Array, jax.Array]:
        q_block, out, lse, marks, (blocks, count) = parts
        q_block = _numbers(q_block)

        def add(turn: jax.Array, carry: tuple) -> tuple:
            out, top, total = carry
            picked = jax.tree.map(lambda x: _numbers(x[blocks[turn]]), (k, v, k_marks))
            k_block, v_block, k_mark = picked
            scores = _times(q_block, plain(k_block, q_block.dtype), _ABT) * q.shape[-1] ** -0.5
            scores = jnp.where(visible(marks, k_mark), scores, MASKED)
            new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
            weights = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            seen = _times(weights.astype(q_block.dtype), plain(v_block, q_block.dtype), _AB)
            out = out * shrink + seen
            return out, new_top, total * shrink + weights.sum(-1, keepdims=True)

        began = lse > MASKED / 2
        # What is masked weighs nothing against a top that is half as low.
        start = out, jnp.where(began, lse, MASKED / 2), began.astype(jnp.float32)
        out, top, total = lax.fori_loop(0, count, add, start)
        safe_total = jnp.where(total > 0, total, 1.0)
        return out / safe_total, jnp.where(total > 0, top + jnp.log(safe_total), MASKED)

    return lax.map(one_block, (q, out, lse, q_marks, _reached(q_marks, k_marks)))


def _gradients(
    q: jax.Array,
    lse: jax.Array,
    shift: jax.Array,
    d_out: jax.Array,
    dq: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dk: jax.Array,
    dv: jax.Array,
    q_marks: Places,
    k_marks: Places,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds to one head's gradients, with the scores of a block pair made again.

    All but the sums come in bfloat16 as `_bits`.
    """
    scale = q.shape[-1] ** -0.5
    turned_k = k.swapaxes(1, 2)

    def one_block(sums: tuple, parts: tuple) -> tuple[tuple, jax.Array]:
        q_block, lse_block, shift_block, d_block, dq_block, marks, (blocks, count) = parts
        q_block, d_block = _numbers(q_block), _numbers(d_block)

        def add(turn: jax.Array, carry: tuple) -> tuple:
            dq, dk, dv = carry
            index = blocks[turn]
            k_block, turned, v_block = (_numbers(x[index]) for x in (k, turned_k, v))
            # With keys as rows and the sums of dq turned, no product is over the rows of both its
            # matrices, which XLA's CPU backend is slow at. With several devices a transposed mask
            # would make it take the weights for transposed ones, and multiply in float32.
            mask = sees(marks, Places(*(x[index][:, None] for x in k_marks)))
            scores = _times(k_block, q_block, _ABT) * scale
            weights = jnp.where(mask, jnp.exp(scores - lse_block.T), 0.0)
            d_weights = _times(v_block, d_block, _ABT)
            d_scores = (weights * (d_weights - shift_block.T) * scale).astype(q_block.dtype)
            dq = dq + _times(turned, d_scores, _AB)
            dk = dk.at[index].add(_times(d_scores, q_block, _AB))
            dv = dv.at[index].add(_times(weights.astype(q_block.dtype), d_block, _AB))
            return dq, dk, dv

        dq, dk, dv = lax.fori_loop(0, count, add, (dq_block.T, *sums))
        return (dk, dv), dq.T

    parts = q, lse, shift, d_out, dq, q_marks, _reached(q_marks, k_marks)
    (dk, dv), dq = lax.scan(one_block, (dk, dv), parts)
    return dq, dk, dv
