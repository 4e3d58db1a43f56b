"""Attention by position and segment: the ways to compute it, and which one serves.

A query sees a key when both have the same segment and the key's position is not later, whatever
their order in memory. With the log-sum-exp beside the output, partial results over parts of the
keys merge exactly, so caches, chunks and rings are all the same call. Arrays are those of one
device, inside `jax.shard_map`; what others of the mesh axis `sp` hold is attended to as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType

import jax

from lwm_core.errors import UsageError
from lwm_core.execution import Execution
from lwm_core.kernels import blockwise, dense
from lwm_core.ring import ring_attention, visiting_attention
from lwm_core.types import Attended, Places, Quantized

LOG = logging.getLogger(__name__)

DENSE_LIMIT = 128
"""Up to so many queries the dense form is smaller than one block and faster."""


def attend(
    q: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_places: Places,
    k_places: Places,
    how: Execution,
    *,
    cached: bool = False,
) -> Attended:
    """Attention of `q [B, N, T, H]` to `k, v [B, K, S, H]`, scaled by `H^-0.5`; K divides N.

    Scores, softmax and sums are float32 whatever the inputs; the output is in q's dtype. A query
    that sees no key gets zeros. `how.attention` is tried first; where it does not serve (`auto`:
    always) the others follow in the table's order, but for a fused kernel that was not asked for.
    Keys that are `cached` stay where they are and have no gradients; others travel.
    """
    travelling = visiting_attention if cached else ring_attention
    for name in _order(how.attention):
        try:
            kernel = IMPLEMENTATIONS[name](q, how)
            way = partial(travelling, kernel) if kernel else dense.attend
            attended = way(q, k, v, q_places, k_places)
        except NotImplementedError:
            continue
        LOG.debug("attention of queries %s: %s", q.shape, name)
        return attended
    raise NotImplementedError(f"no attention implementation serves queries {q.shape}")


def _order(name: str) -> list[str]:
    """The ways to try when one is named, or `auto`."""
    if name == "auto":
        return list(IMPLEMENTATIONS)
    return [name, *(other for other in IMPLEMENTATIONS if other not in (name, "fused"))]


def check_implementation(name: str) -> None:
    """Raise UsageError unless attention can be computed in a way of this name."""
    if name not in ("auto", *IMPLEMENTATIONS):
        known = ", ".join(["auto", *IMPLEMENTATIONS])
        raise UsageError(f"attention {name!r} is unknown; choose one of {known}")


def _fused(q: jax.Array, how: Execution) -> ModuleType:
    """The kernel made for the device; the others are not even imported."""
    if how.platform not in FUSED:
        raise NotImplementedError(f"there is no fused kernel for a {how.platform}")
    return import_module(f"lwm_core.kernels.{how.platform}")


def _blockwise(q: jax.Array, how: Execution) -> ModuleType:
    """In blocks, on any device."""
    if how.ways == 1 and q.shape[2] <= DENSE_LIMIT:
        raise NotImplementedError(f"blockwise attention serves more than {DENSE_LIMIT} queries")
    return blockwise


def _dense(q: jax.Array, how: Execution) -> None:
    """All scores at once, where one device holds everything."""
    if how.ways > 1:
        raise NotImplementedError("dense attention does not see what other devices hold")


FUSED = ("tpu", "gpu")
"""The platforms that have a kernel made for them, which has their name."""

IMPLEMENTATIONS: dict[str, Callable[[jax.Array, Execution], ModuleType | None]] = {
    "fused": _fused,
    "blockwise": _blockwise,
    "dense": _dense,
}
"""In the order in which `auto` tries them: each gives the kernel that attends to parts, or None for
all at once."""
