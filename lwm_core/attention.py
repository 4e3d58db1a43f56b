"""Attention by position and segment: `attend(...) -> (out, lse)`, dense or in blocks.

A query sees a key when both have the same segment and the key's position is not later, whatever
their order in memory. With the log-sum-exp beside the output, partial results over parts of the
keys merge exactly, so caches, chunks and rings are all this one call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lwm_core.errors import UsageError
from lwm_core.types import Array

MASKED = -1e30
"""Score of an invisible key, and log-sum-exp of a query that sees none: finite, so never NaN."""

DENSE_LIMIT = 128
"""Up to so many queries the dense form is smaller than one block and faster."""


class Places(NamedTuple):
    """Where tokens stand: positions and segments, int32 `[B, T]`. Segment 0 is padding."""

    positions: Array
    segments: Array


class Attended(NamedTuple):
    """Output `[B, T, N, H]` in the queries' dtype and its log-sum-exp, float32 `[B, T, N]`."""

    out: jax.Array
    lse: jax.Array


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    implementation: str = "auto",
) -> Attended:
    """Attention of `q [B, T, N, H]` to `k, v [B, S, K, H]`, scaled by `H^-0.5`; K divides N.

    Scores, softmax and sums are float32 whatever the inputs. A query that sees no key gets zeros.
    `implementation` is tried first; where it does not serve (`auto`: always) the others follow in
    the table's order. Raises UsageError for an unknown implementation.
    """
    check_implementation(implementation)
    for name in sorted(IMPLEMENTATIONS, key=lambda name: name != implementation):
        try:
            return IMPLEMENTATIONS[name](q, k, v, q_places, k_places)
        except NotImplementedError:
            continue
    raise NotImplementedError(f"no attention implementation serves q {q.shape}, k {k.shape}")


def check_implementation(name: str) -> None:
    """Raise UsageError unless attention can be computed in a way of this name."""
    if name not in ("auto", *IMPLEMENTATIONS):
        known = ", ".join(["auto", *IMPLEMENTATIONS])
        raise UsageError(f"attention {name!r} is unknown; choose one of {known}")


def merge(first: Attended, second: Attended) -> Attended:
    """Join attention over two disjoint sets of keys by their log-sum-exp (Dao et al. 2022)."""
    lse = jnp.logaddexp(first.lse, second.lse)
    parts = [
        part.out.astype(jnp.float32) * jnp.exp(part.lse - lse)[..., None]
        for part in (first, second)
    ]
    return Attended((parts[0] + parts[1]).astype(first.out.dtype), lse)


def visible(q_places: Places, k_places: Places) -> Array:
    """Which query sees which key: bool `[..., T, S]` for places `[..., T]` and `[..., S]`."""
    q_positions, q_segments = (x[..., :, None] for x in q_places)
    k_positions, k_segments = (x[..., None, :] for x in k_places)
    return (k_positions <= q_positions) & (k_segments == q_segments) & (k_segments != 0)


def dense(q: jax.Array, k: jax.Array, v: jax.Array, q_places: Places, k_places: Places) -> Attended:
    """All scores at once, `[B, T, S]` for every head: for few queries, and the truth in tests."""
    batch, length, heads, size = q.shape
    grouped = q.reshape(batch, length, k.shape[2], -1, size)
    mask = visible(q_places, k_places)[:, None, None]
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, dot("btkgh,bskh->bkgts", grouped, k) * size**-0.5, MASKED)
    top = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    safe_total = jnp.where(total > 0, total, 1.0)
    out = dot("bkgts,bskh->btkgh", (weights / safe_total).astype(v.dtype), v)
    lse = jnp.where(total > 0, top + jnp.log(safe_total), MASKED)[..., 0]
    return Attended(
        out.astype(q.dtype).reshape(q.shape),
        lse.transpose(0, 3, 1, 2).reshape(batch, length, heads),
    )


def blockwise(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    block: int | None = None,
) -> Attended:
    """Attention in blocks of queries and keys: memory O(block²), invisible blocks are skipped.

    Large blocks keep all cores busy, small ones skip more: by default a quarter of the keys, but
    at least 128 and at most 512.

    The queries of the heads that share a key head are rows of one matrix, so every product is a
    plain matrix product. Raises NotImplementedError for few queries, where `dense` is better.
    """
    if q.shape[1] <= DENSE_LIMIT:
        raise NotImplementedError(f"blockwise attention serves more than {DENSE_LIMIT} queries")
    return attend_blocks(q, k, v, q_places, k_places, block)


def attend_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    block: int | None = None,
) -> Attended:
    """As `blockwise`, for any number of queries."""
    layout = _Layout.of(q, k, block)
    rows = layout.rows(q), layout.keys(k), layout.keys(v)
    out, lse = _over_heads(_attend_blocks)(*rows, *layout.marks(q_places, k_places))
    return Attended(layout.heads(out), layout.heads(lse[..., None])[..., 0])


def gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    attended: Attended,
    d_out: jax.Array,
    d_lse: jax.Array,
    block: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a part of the keys adds to the gradients of q, and the gradients of that part.

    `attended` is the result over all keys, whose log-sum-exp makes the weights of this part, so
    that parts can be added in any order, as on a ring (Liu et al. 2023). All float32.
    """
    layout = _Layout.of(q, k, block)
    rows = layout.rows(q), layout.keys(k), layout.keys(v)
    lse, d_lse = (layout.rows(x[..., None])[..., 0] for x in (attended.lse, d_lse))
    results = _over_heads(_gradients_of_blocks)(
        *rows,
        layout.rows(attended.out),
        lse,
        layout.rows(d_out),
        d_lse,
        *layout.marks(q_places, k_places),
    )
    return layout.heads(results[0]), layout.tokens(results[1]), layout.tokens(results[2])


class _Layout(NamedTuple):
    """How `[B, T, N, H]` lies in blocks: the queries of the heads that share a key head are rows
    of one matrix, `[B, K, blocks, block, H]`."""

    length: int
    keys_length: int
    heads_of_keys: int
    group: int
    block: int

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, block: int | None) -> _Layout:
        """The layout for these queries and keys."""
        block = block or min(max(k.shape[1] // 4 // 128 * 128, 128), 512)
        return cls(q.shape[1], k.shape[1], k.shape[2], q.shape[2] // k.shape[2], block)

    def rows(self, x: jax.Array) -> jax.Array:
        """`[B, T, N, H]` as rows."""
        batch, length, _, size = x.shape
        x = x.reshape(batch, length, self.heads_of_keys, self.group, size).transpose(0, 2, 1, 3, 4)
        return _blocks(x.reshape(batch, self.heads_of_keys, -1, size), 2, self.block)

    def keys(self, x: jax.Array) -> jax.Array:
        """`[B, S, K, H]` as rows."""
        return _blocks(x.transpose(0, 2, 1, 3), 2, self.block)

    def marks(self, q_places: Places, k_places: Places) -> tuple[Places, Places]:
        """The places of rows and keys, `[B, blocks, block]`."""
        q_marks = (_blocks(jnp.repeat(x, self.group, axis=1), 1, self.block) for x in q_places)
        k_marks = (_blocks(x, 1, self.block) for x in k_places)
        return Places(*q_marks), Places(*k_marks)

    def heads(self, rows: jax.Array) -> jax.Array:
        """Rows as `[B, T, N, H]`: the inverse of `rows`."""
        batch, size = rows.shape[0], rows.shape[-1]
        rows = rows.reshape(batch, self.heads_of_keys, -1, size)[:, :, : self.length * self.group]
        rows = rows.reshape(batch, self.heads_of_keys, self.length, self.group, size)
        return rows.transpose(0, 2, 1, 3, 4).reshape(batch, self.length, -1, size)

    def tokens(self, rows: jax.Array) -> jax.Array:
        """Rows of keys as `[B, S, K, H]`: the inverse of `keys`."""
        batch, size = rows.shape[0], rows.shape[-1]
        rows = rows.reshape(batch, self.heads_of_keys, -1, size)[:, :, : self.keys_length]
        return rows.transpose(0, 2, 1, 3)


def _over_heads(function: Callable) -> Callable:
    """A function of one head's rows over rows and key heads; the last two arguments are marks."""
    # On a CPU a head at a time stays in cache; elsewhere all heads at once fill the device.
    over = _loop if jax.default_backend() == "cpu" else jax.vmap

    def mapped(*args: object) -> object:
        axes = (0,) * (len(args) - 2) + (None, None)
        return over(over(function, in_axes=axes), in_axes=0)(*args)

    return mapped


IMPLEMENTATIONS: dict[str, Callable[..., Attended]] = {"blockwise": blockwise, "dense": dense}
"""In the order in which `auto` tries them."""


def _loop(function: Callable, in_axes: int | tuple[int | None, ...]) -> Callable:
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


def _blocks(x: Array, axis: int, block: int) -> jax.Array:
    """Cut an axis into `[blocks, block]`, padded with zeros (segment 0, so never visible)."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % block)
    x = jnp.pad(x, padding)
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def _reachable(q_marks: Places, k_marks: Places) -> jax.Array:
    """Whether any query of a block may see any key of another: bool `[q blocks, k blocks]`."""
    real = k_marks.segments != 0
    earliest = jnp.where(real, k_marks.positions, jnp.iinfo(jnp.int32).max).min(-1)
    in_time = earliest <= q_marks.positions.max(-1)[:, None]
    first, last = (getattr(k_marks.segments, f)(-1) for f in ("min", "max"))
    low, high = (getattr(q_marks.segments, f)(-1)[:, None] for f in ("min", "max"))
    return in_time & (first <= high) & (last >= low) & (last > 0) & (high > 0)


_times = partial(lax.dot_general, preferred_element_type=jnp.float32)
_AB = (((1,), (0,)), ((), ()))
_ABT = (((1,), (1,)), ((), ()))
_ATB = (((0,), (0,)), ((), ()))


@jax.custom_vjp
def _attend_blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, q_marks: Places, k_marks: Places
) -> tuple[jax.Array, jax.Array]:
    """One head: `q [q blocks, block, H]`, `k, v [k blocks, block, H]`, marks `[blocks, block]`.

    Running maximum and sum over key blocks (Milakov and Gimelshein 2018; Dao et al. 2022).
    Returns `out` like q and `lse [q blocks, block]`.
    """
    reachable = _reachable(q_marks, k_marks)

    def one_block(parts: tuple) -> tuple[jax.Array, jax.Array]:
        q_block, marks, reach = parts

        def add(carry: tuple, keys: tuple) -> tuple:
            out, top, total = carry
            k_block, v_block, k_mark = keys
            mask = visible(marks, k_mark)
            scores = _times(q_block, k_block, _ABT) * q.shape[-1] ** -0.5
            scores = jnp.where(mask, scores, MASKED)
            new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
            weights = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            out = out * shrink + _times(weights.astype(v.dtype), v_block, _AB)
            return out, new_top, total * shrink + weights.sum(-1, keepdims=True)

        def step(carry: tuple, keys: tuple) -> tuple[tuple, None]:
            seen, *rest = keys
            return lax.cond(seen, add, lambda carry, _: carry, carry, tuple(rest)), None

        rows = (q_block.shape[0], 1)
        start = (
            jnp.zeros(q_block.shape, jnp.float32),
            jnp.full(rows, MASKED / 2, jnp.float32),  # so that what is masked weighs nothing
            jnp.zeros(rows, jnp.float32),
        )
        (out, top, total), _ = lax.scan(step, start, (reach, k, v, k_marks))
        safe_total = jnp.where(total > 0, total, 1.0)
        lse = jnp.where(total > 0, top + jnp.log(safe_total), MASKED)
        return (out / safe_total).astype(q.dtype), lse[:, 0]

    return lax.map(one_block, (q, q_marks, reachable))


def _attend_blocks_forward(*args: object) -> tuple:
    out, lse = _attend_blocks(*args)
    return (out, lse), (*args, out, lse)


def _attend_blocks_backward(saved: tuple, cotangents: tuple) -> tuple:
    q, k, v, q_marks, k_marks, out, lse = saved
    d_out, d_lse = cotangents
    dq, dk, dv = _gradients_of_blocks(q, k, v, out, lse, d_out, d_lse, q_marks, k_marks)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


def _gradients_of_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    d_lse: jax.Array,
    q_marks: Places,
    k_marks: Places,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients, float32, with the scores of a block pair made again from the log-sum-exp."""
    scale = q.shape[-1] ** -0.5
    # Each score's gradient is weight * (d_weight - shift): the softmax's own term and that of lse.
    shift = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - d_lse
    reachable = _reachable(q_marks, k_marks)

    def one_block(sums: tuple, parts: tuple) -> tuple[tuple, jax.Array]:
        q_block, d_block, marks, lse_block, shift_block, reach = parts

        def add(carry: tuple, index: jax.Array) -> tuple:
            dq, dk, dv = carry
            k_block, v_block = k[index], v[index]
            mask = visible(marks, Places(k_marks.positions[index], k_marks.segments[index]))
            scores = _times(q_block, k_block, _ABT) * scale
            weights = jnp.where(mask, jnp.exp(scores - lse_block[:, None]), 0.0)
            d_weights = _times(d_block, v_block, _ABT)
            d_scores = (weights * (d_weights - shift_block[:, None]) * scale).astype(q.dtype)
            dq = dq + _times(d_scores, k_block, _AB)
            dk = dk.at[index].add(_times(d_scores, q_block, _ATB))
            dv = dv.at[index].add(_times(weights.astype(q.dtype), d_block, _ATB))
            return dq, dk, dv

        def step(carry: tuple, part: tuple) -> tuple[tuple, None]:
            seen, index = part
            return lax.cond(seen, add, lambda carry, _: carry, carry, index), None

        start = (jnp.zeros(q_block.shape, jnp.float32), *sums)
        (dq, dk, dv), _ = lax.scan(step, start, (reach, jnp.arange(k.shape[0])))
        return (dk, dv), dq

    start = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (dk, dv), dq = lax.scan(one_block, start, (q, d_out, q_marks, lse, shift, reachable))
    return dq, dk, dv


_attend_blocks.defvjp(_attend_blocks_forward, _attend_blocks_backward)
