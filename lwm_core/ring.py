"""RingAttention (Liu, Zaharia and Abbeel 2023): attention over a sequence that many devices share.

Each device holds a part of queries, keys and values. While it attends to the keys that it has, they
travel on to the next device of the mesh axis `sp`, until everyone has seen all; on the way back
their gradients travel with them. Memory is that of one part, whatever the number of devices. What
no query of a device can see is skipped by blocks, so the work is as even as the tokens are laid
out: in zigzag order (`zigzag`) every device has an early and a late part. On a ring of one device
all this is ordinary attention.

All functions are of one device's arrays, inside `jax.shard_map`.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lwm_core.kernels import dense
from lwm_core.types import Attended, Places, Quantized

Tree = TypeVar("Tree")

SAVED = "attention"
"""The name under which rematerialisation can keep what attention gave."""


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


def pass_on(tree: Tree) -> Tree:
    """What the device before this one on the ring holds."""
    size = lax.axis_size("sp")
    if size == 1:
        return tree
    onward = [(device, (device + 1) % size) for device in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, "sp", onward), tree)


def nothing_seen(q: jax.Array) -> Attended:
    """Attention of queries `[B, N, T, H]` to no keys at all."""
    return Attended(jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], dense.MASKED))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(
    kernel: ModuleType,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
) -> Attended:
    """Attention of this device's queries to the keys of all devices, computed by a kernel.

    `q [B, N, T, H]`, `k, v [B, K, S, H]` and their places are this device's part, in any order.
    The output is in q's dtype. The gradients are exact too.
    """

    def visit(state: tuple, _: None) -> tuple[tuple, None]:
        keys, sofar = state
        arriving = pass_on(keys)
        return (arriving, kernel.attend(q, *keys[:2], q_places, keys[2], sofar)), None

    state = (k, v, k_places), nothing_seen(q)
    (_, attended), _ = lax.scan(visit, state, None, length=lax.axis_size("sp"))
    return Attended(attended.out.astype(q.dtype), attended.lse)


def _ring_forward(kernel: ModuleType, *args: Any) -> tuple[Attended, tuple]:
    attended = Attended(*(checkpoint_name(x, SAVED) for x in ring_attention(kernel, *args)))
    return attended, (*args, attended)


def _ring_backward(kernel: ModuleType, saved: tuple, cotangents: Attended) -> tuple:
    """Keys and values go around once more; the sums of their gradients follow one step behind.

    So both are on the way while a device works, and after the last step the sums are one device
    short of home.
    """
    q, k, v, q_places, k_places, attended = saved
    d_out, d_lse = cotangents
    products = d_out.astype(jnp.float32) * attended.out.astype(jnp.float32)
    shift = products.sum(-1) - d_lse

    def visit(state: tuple, _: None) -> tuple[tuple, None]:
        keys, sums, dq = state
        arriving, sums = pass_on(keys), pass_on(sums)
        dq, dk, dv = kernel.gradients(
            q, *keys[:2], q_places, keys[2], attended.lse, shift, d_out, (dq, *nothing[1:])
        )
        return (arriving, (sums[0] + dk, sums[1] + dv), dq), None

    nothing = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    state = (k, v, k_places), nothing[1:], nothing[0]
    (_, sums, dq), _ = lax.scan(visit, state, None, length=lax.axis_size("sp"))
    dk, dv = pass_on(sums)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


ring_attention.defvjp(_ring_forward, _ring_backward)


def visiting_attention(
    kernel: ModuleType,
    q: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_places: Places,
    k_places: Places,
) -> Attended:
    """As `ring_attention`, but the queries travel and the keys stay; without gradients.

    For a chunk of queries and many more keys, as in a cache (Yang et al. 2024, "pass-Q").
    """

    def visit(state: tuple, _: None) -> tuple[tuple, None]:
        q, places, sofar = state
        return pass_on((q, places, kernel.attend(q, k, v, places, k_places, sofar))), None

    state = q, q_places, nothing_seen(q)
    (_, _, attended), _ = lax.scan(visit, state, None, length=lax.axis_size("sp"))
    return Attended(attended.out.astype(q.dtype), attended.lse)


def gathered_attention(
    q: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_places: Places,
    k_places: Places,
) -> Attended:
    """Attention of queries that all devices have to the keys of all, with a single collective."""
    out, lse = dense.attend(q, k, v, q_places, k_places)
    if lax.axis_size("sp") == 1:
        return Attended(out, lse)
    both = jnp.concatenate([out.astype(jnp.float32), lse[..., None]], axis=-1)
    both = lax.all_gather(both, "sp")
    merged = dense.merge(Attended(both[..., :-1], both[..., -1]))
    return Attended(merged.out.astype(q.dtype), merged.lse)
