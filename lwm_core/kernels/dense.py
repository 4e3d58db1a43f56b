"""Attention as it is defined: all scores at once. For few queries, and the truth in tests."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lwm_core.quantize import plain
from lwm_core.types import Array, Attended, Places, Quantized

MASKED = -1e30
"""Score of an invisible key, and log-sum-exp of a query that sees none: finite, so never NaN."""


def visible(q_places: Places, k_places: Places) -> Array:
    """Which query sees which key: bool `[..., T, S]` for places `[..., T]` and `[..., S]`."""
    q_positions, q_segments = (x[..., :, None] for x in q_places)
    k_positions, k_segments = (x[..., None, :] for x in k_places)
    return (k_positions <= q_positions) & (k_segments == q_segments) & (k_segments != 0)


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
    k, v = plain(k, q.dtype), plain(v, q.dtype)
    batch, heads, length, size = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, length, size)
    mask = visible(q_places, k_places)[:, None, None]
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    # With the many keys first XLA's CPU backend reads them once, as they lie.
    products = dot("bksh,bkgth->bksgt", k, grouped).transpose(0, 1, 3, 4, 2)
    scores = jnp.where(mask, products * size**-0.5, MASKED)
    top = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    safe_total = jnp.where(total > 0, total, 1.0)
    out = dot("bkgts,bksh->bkgth", (weights / safe_total).astype(v.dtype), v)
    lse = jnp.where(total > 0, top + jnp.log(safe_total), MASKED)
    return Attended(out.astype(q.dtype).reshape(q.shape), lse.reshape(batch, heads, length))


def merge(parts: Attended) -> Attended:
    """Join attention over disjoint sets of keys, stacked on a first axis (Dao et al. 2022)."""
    lse = jax.nn.logsumexp(parts.lse, axis=0)
    share = jnp.exp(parts.lse - lse)[..., None]
    out = (parts.out.astype(jnp.float32) * share).sum(axis=0)
    return Attended(out.astype(parts.out.dtype), lse)
