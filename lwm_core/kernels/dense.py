"""Attention as it is defined: all scores at once. For few queries, and the truth in tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lwm_core import integers
from lwm_core.quantize import plain
from lwm_core.types import Array, Attended, Places, Quantized

MASKED = -1e30
"""Score of an invisible key, and log-sum-exp of a query that sees none: finite, so never NaN."""
RUN = 2**17
"""Numbers of the values that a lone query sums at a time: so many lie in a core's own cache."""


def visible(q_places: Places, k_places: Places) -> Array:
    """Which query sees which key: bool `[..., T, S]` for places `[..., T]` and `[..., S]`."""
    q, k = (x[..., :, None] for x in q_places), (x[..., None, :] for x in k_places)
    return sees(Places(*q), Places(*k))


def sees(q: Places, k: Places) -> Array:
    """Whether queries see keys: bool of the shape that their places have when broadcast."""
    return (k.positions <= q.positions) & (k.segments == q.segments) & (k.segments != 0)


def attend(
    q: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_places: Places,
    k_places: Places,
) -> Attended:
    """Attention of `q [B, N, T, H]` to `k, v [B, K, S, H]`, scaled by `H^-0.5`, in q's dtype.

    Scores, softmax and sums are float32. A query that sees no key gets zeros.
    """
    batch, heads, length, size = q.shape
    heads_of_keys = jax.tree.leaves(k)[0].shape[1]
    group = heads // heads_of_keys
    rows = q.reshape(batch, heads_of_keys, group * length, size)
    mask = jnp.tile(visible(q_places, k_places), (1, group, 1))[:, None]
    scores = jnp.where(mask, _scores(rows, k) * size**-0.5, MASKED)
    top = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    safe_total = jnp.where(total > 0, total, 1.0)
    out = _weighted(weights / safe_total, v, q.dtype)
    lse = jnp.where(total > 0, top + jnp.log(safe_total), MASKED)
    return Attended(out.astype(q.dtype).reshape(q.shape), lse.reshape(batch, heads, length))


def _scores(q: jax.Array, k: jax.Array | Quantized) -> jax.Array:
    """Products of queries `[B, K, R, H]` and keys `[B, K, S, H]`: float32 `[B, K, R, S]`."""

    def of_plain(q: jax.Array, k: jax.Array | Quantized) -> jax.Array:
        # With the many keys first XLA's CPU backend reads them once, as they lie.
        return _dot("bksh,bkrh->bksr", plain(k, q.dtype), q).swapaxes(2, 3)

    return _by_kind(of_plain, integers.scores, q, k)


def _weighted(weights: jax.Array, v: jax.Array | Quantized, dtype: jnp.dtype) -> jax.Array:
    """Sums of values `[B, K, S, H]` by weights `[B, K, R, S]`: float32 `[B, K, R, H]`."""

    def of_plain(weights: jax.Array, v: jax.Array | Quantized) -> jax.Array:
        weights, v = weights.astype(dtype), plain(v, dtype)
        run = 1 << (RUN // v.shape[3]).bit_length() - 1
        if weights.shape[2] > 1 or v.shape[2] == run or v.shape[2] % run:
            return _sums(weights, v)
        return lax.platform_dependent(weights, v, cpu=partial(_in_runs, run), default=_sums)

    return _by_kind(of_plain, integers.weighted, weights, v)


def _in_runs(run: int, weights: jax.Array, v: jax.Array) -> jax.Array:
    """As `_sums`, for a lone query, in runs of so many slots.

    XLA's CPU backend goes over the values several times, each time for some of H.
    """
    batch, heads, slots, size = v.shape
    cut = (batch * heads, slots // run, 1, run), (batch * heads, slots // run, run, size)
    sums = _sums(weights.reshape(cut[0]), v.reshape(cut[1]))
    return sums.sum(axis=1).reshape(batch, heads, 1, size)


def _sums(weights: jax.Array, v: jax.Array) -> jax.Array:
    return _dot("bkrs,bksh->bkrh", weights, v)


def _by_kind(
    of_plain: Callable, as_they_lie: Callable, rows: jax.Array, numbers: jax.Array | Quantized
) -> jax.Array:
    """A product with numbers made plain, or on a CPU of few rows in 8 bits as they lie."""
    if not isinstance(numbers, Quantized) or rows.shape[2] > integers.MOST_ROWS:
        return of_plain(rows, numbers)
    return lax.platform_dependent(rows, numbers, cpu=as_they_lie, default=of_plain)


_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


def merge(parts: Attended) -> Attended:
    """Join attention over disjoint sets of keys, stacked on a first axis (Dao et al. 2022)."""
    lse = jax.nn.logsumexp(parts.lse, axis=0)
    share = jnp.exp(parts.lse - lse)[..., None]
    out = (parts.out.astype(jnp.float32) * share).sum(axis=0)
    return Attended(out.astype(parts.out.dtype), lse)
