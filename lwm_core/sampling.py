"""How the next token is drawn: guidance, temperature, top-k, top-p, in the original's order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lwm_core.errors import UsageError
from lwm_core.kernels.dense import MASKED
from lwm_core.types import Array

DRAWN_AT_ONCE = 256
"""Tokens of a block: of few and large blocks as of many and small ones all sums take long."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep all; `guidance` 1 is off.

    `codes_only` draws nothing but codes inside a frame; the original allows any vision id there.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    codes_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "at least 0 and finite"),
            "top-k": (self.top_k >= 0, "at least 0"),
            "top-p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "guidance": (0 <= self.guidance < math.inf, "at least 0 and finite"),
        }
        for name, (right, bounds) in checks.items():
            if not right:
                raise UsageError(f"{name} must be {bounds}")

    @property
    def numbers(self) -> Numbers:
        """What a compiled program takes, so that one serves all that differ in these alone."""
        return Numbers(
            np.array(self.temperature, np.float32),
            np.array(min(self.top_k, np.iinfo(np.int32).max), np.int32),
            np.array(self.top_p, np.float32),
            np.array(self.guidance, np.float32),
            np.array(self.seed % 2**32, np.uint32),
        )


class Numbers(NamedTuple):
    """The numbers of a `Sampling`, scalars each."""

    temperature: Array
    top_k: Array
    top_p: Array
    guidance: Array
    seed: Array


def guide(logits: jax.Array, guidance: Array | float) -> jax.Array:
    """Classifier-free guidance (Ho and Salimans 2022): `[2n, V]` to `[n, V]`.

    The first half of the rows is conditional, the second unconditional, in the same order.
    """
    conditional, unconditional = jnp.split(logits, 2)
    return unconditional + guidance * (conditional - unconditional)


def keep_top_k(logits: jax.Array, k: Array | int) -> jax.Array:
    """Mask all but the k highest logits of each row `[n, V]`; ties with the k-th stay.

    0 keeps all.
    """

    def cut(logits: jax.Array) -> jax.Array:
        return _keep_fewest(logits, lambda kept: kept.sum(axis=-1, keepdims=True) >= k)

    return lax.cond((k > 0) & (k < logits.shape[-1]), cut, lambda logits: logits, logits)


def keep_top_p(logits: jax.Array, p: Array | float) -> jax.Array:
    """Mask all but the fewest tokens of each row whose probability reaches p (Holtzman 2020)."""

    def cut(logits: jax.Array) -> jax.Array:
        shares = jax.nn.softmax(logits, axis=-1)

        def enough(kept: jax.Array) -> jax.Array:
            return jnp.where(kept, shares, 0).sum(axis=-1, keepdims=True) >= p

        return _keep_fewest(logits, enough)

    return lax.cond(p < 1, cut, lambda logits: logits, logits)


def _keep_fewest(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Mask what is below the highest logit such that it and all above it are enough, row by row.

    That logit is found exactly by halving, 32 times, the range of integers that it must be in. To
    sort takes a CPU ten times as long.
    """
    numbers = _ordered(logits)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # rounded up; a sum might not fit 32 bits
        reached = enough(numbers >= middle)
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle - 1)

    limits = jnp.iinfo(jnp.int32)
    bounds = tuple(jnp.full((len(logits), 1), limit) for limit in (limits.min, limits.max))
    least, _ = lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(logits < _floats(least), MASKED, logits)


def _ordered(floats: jax.Array) -> jax.Array:
    """int32 in the order of these float32."""
    return _turned(lax.bitcast_convert_type(floats, jnp.int32))


def _floats(ordered: jax.Array) -> jax.Array:
    """The inverse of `_ordered`; of floats the two zeros are equal."""
    return lax.bitcast_convert_type(_turned(ordered), jnp.float32)


def _turned(bits: jax.Array) -> jax.Array:
    """The bits of floats, those of negative numbers turned around, or back."""
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def argmax(logits: jax.Array) -> jax.Array:
    """The first index of the highest of each row, float32 `[n, V]`: int32 `[n]`.

    A row with NaN gives some index. XLA's CPU backend goes through `jnp.argmax` number by number,
    and through maxima of integers in vectors: of 49152 logits in a twelfth of the time.
    """
    top = _floats(_ordered(logits).max(axis=-1, keepdims=True))
    last = logits.shape[-1] - 1
    places = jnp.arange(last + 1, dtype=jnp.int32)
    return jnp.where(logits == top, places, last).min(axis=-1)


def draw_tokens(logits: jax.Array, numbers: Numbers, key: jax.Array) -> jax.Array:
    """One token for each row of logits, float32 `[n, V]`; returns int32 `[n]`.

    Each row has a key of its own, so what it draws does not depend on how many others there are.
    """

    def drawn(logits: jax.Array) -> jax.Array:
        logits = keep_top_k(logits / numbers.temperature, numbers.top_k)
        logits = keep_top_p(logits, numbers.top_p)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(logits)))
        return jax.vmap(_draw)(logits, keys).astype(jnp.int32)

    greedy = (numbers.temperature == 0) | (numbers.top_k == 1)
    return lax.cond(greedy, argmax, drawn, logits)


def _draw(logits: jax.Array, key: jax.Array) -> jax.Array:
    """An index of `logits [V]`: first a block of them, then one of the block.

    Two random numbers do, where the usual way (the highest of logits with Gumbel noise) takes V.
    """
    weights = jnp.exp(logits - logits.max())
    blocks = jnp.pad(weights, (0, -len(weights) % DRAWN_AT_ONCE)).reshape(-1, DRAWN_AT_ONCE)
    which, inside = jax.random.uniform(key, (2,))
    block = _reached(blocks.sum(axis=-1), which)
    return block * DRAWN_AT_ONCE + _reached(blocks[block], inside)


def _reached(weights: jax.Array, share: jax.Array) -> jax.Array:
    """The first of `weights [n]` with which more than a share (below 1) of their sum is reached.

    It is never one of weight 0, whatever is rounded.
    """
    sums = jnp.where(weights > 0, jnp.cumsum(weights), 0)
    return jnp.argmax(sums > share * sums.max())
