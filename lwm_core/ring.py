"""RingAttention (Liu, Zaharia and Abbeel 2023): attention over a sequence that many devices share.

Each device holds a shard of queries, keys and values. Keys and values travel the ring of the mesh
axis `sp` while every device attends to what it holds, and partial results merge by their
log-sum-exp; on the way back their gradients travel with them. Memory is one shard's, whatever the
number of devices. What no query of a device can see is skipped by blocks, so the work is as even
as the tokens are laid out: in zigzag order (`zigzag`) every device has an early and a late part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lwm_core.attention import MASKED, Attended, Places, attend_blocks, gradients, merge


def zigzag(length: int, ways: int) -> np.ndarray:
    """The order of tokens, int32 `[length]`, in which device i of `ways` gets two of 2·ways chunks.

    They are the chunks i and 2·ways-1-i, an early and a late one, so that causal work is even.
    `length` must be a multiple of 2·ways: raises ValueError otherwise.
    """
    if length % (2 * ways):
        raise ValueError(f"{length} tokens are no multiple of 2 x {ways} chunks")
    chunks = np.arange(length, dtype=np.int32).reshape(2 * ways, -1)
    pairs = np.stack([chunks[:ways], chunks[ways:][::-1]], axis=1)
    return pairs.reshape(-1)


def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    *,
    mesh: Mesh,
    block: int | None = None,
) -> Attended:
    """What `attention.attend` computes, with sequences cut over the mesh axis `sp`.

    Queries `[B, T, N, H]`, keys and values `[B, S, K, H]` and their places may come in any order.
    Rows of the batch are cut over `dp` and `fsdp`, heads over `tp`; the mesh must divide T, S, B, N
    and K. Blocks of `block` tokens are skipped or computed as a whole. The gradients are exact too.
    """
    heads = PartitionSpec(("dp", "fsdp"), "sp", "tp", None)
    tokens = PartitionSpec(("dp", "fsdp"), "sp")
    local = jax.shard_map(
        partial(_ring, block),
        mesh=mesh,
        in_specs=(heads, heads, heads, tokens, tokens),
        out_specs=(heads, PartitionSpec(("dp", "fsdp"), "sp", "tp")),
        check_vma=False,
    )
    return Attended(*local(q, k, v, q_places, k_places))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(
    block: int | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
) -> tuple[jax.Array, jax.Array]:
    """One device's part: its queries against all keys that come by."""

    def add(carried: tuple, sofar: Attended) -> tuple[tuple, Attended]:
        k, v, k_places = carried
        return carried, merge(sofar, attend_blocks(q, k, v, q_places, k_places, block))

    nothing = Attended(jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED))
    _, attended = _around((k, v, k_places), nothing, add)
    return attended.out.astype(q.dtype), attended.lse


def _ring_forward(block: int | None, *args: Any) -> tuple:
    out, lse = _ring(block, *args)
    return (out, lse), (*args, out, lse)


def _ring_backward(block: int | None, saved: tuple, cotangents: tuple) -> tuple:
    """Keys, values and their gradients go once around and are home again."""
    q, k, v, q_places, k_places, out, lse = saved
    d_out, d_lse = cotangents

    def add(carried: tuple, dq: jax.Array) -> tuple[tuple, jax.Array]:
        k, v, k_places, dk, dv = carried
        attended = Attended(out, lse)
        more = gradients(q, k, v, q_places, k_places, attended, d_out, d_lse, block)
        return (k, v, k_places, dk + more[1], dv + more[2]), dq + more[0]

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    carried, dq = _around((k, v, k_places, *zeros[1:]), zeros[0], add)
    dk, dv = carried[3:]
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_ring.defvjp(_ring_forward, _ring_backward)


def _around(carried: tuple, sofar: Any, add: Callable[[tuple, Any], tuple[tuple, Any]]) -> tuple:
    """Send `carried` once around the ring; every device adds to it and to `sofar`."""
    size = lax.axis_size("sp")
    onward = [(device, (device + 1) % size) for device in range(size)]

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        carried, sofar = add(*state)
        return (jax.tree.map(lambda x: lax.ppermute(x, "sp", onward), carried), sofar), None

    (carried, sofar), _ = lax.scan(step, (carried, sofar), None, length=size)
    return carried, sofar
