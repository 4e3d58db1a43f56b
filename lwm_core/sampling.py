"""How the next token is drawn: guidance, temperature, top-k, top-p, in the original's order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lwm_core.errors import UsageError
from lwm_core.kernels.dense import MASKED


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
    def unseeded(self) -> Sampling:
        """The same habits without a seed: what a compiled program depends on."""
        return replace(self, seed=0)


def guide(logits: jax.Array, guidance: float) -> jax.Array:
    """Classifier-free guidance (Ho and Salimans 2022): `[2n, V]` to `[n, V]`.

    The first half of the rows is conditional, the second unconditional, in the same order.
    """
    conditional, unconditional = jnp.split(logits, 2)
    return unconditional + guidance * (conditional - unconditional)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Mask all but the k highest logits of each row `[n, V]`; ties with the k-th stay."""
    if not 0 < k < logits.shape[-1]:
        return logits
    least = lax.platform_dependent(
        logits, cpu=partial(_kth_by_halving, k=k), default=lambda x: lax.top_k(x, k)[0][:, -1:]
    )
    return jnp.where(logits < least, MASKED, logits)


def _kth_by_halving(logits: jax.Array, k: int) -> jax.Array:
    """The k-th highest logit of each row, `[n, 1]`, exactly.

    XLA's CPU backend sorts all of them for `top_k`, which takes ten times as long as to halve, 32
    times, the range of bits that it must be in: read as integers, and those of negative numbers
    turned around, floats keep their order.
    """

    def turned(bits: jax.Array) -> jax.Array:
        return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    numbers = turned(lax.bitcast_convert_type(logits, jnp.int32))

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # rounded up; a sum might not fit 32 bits
        enough = (numbers >= middle).sum(axis=-1, keepdims=True) >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    limits = jnp.iinfo(jnp.int32)
    bounds = tuple(jnp.full((len(logits), 1), limit) for limit in (limits.min, limits.max))
    low, _ = lax.fori_loop(0, 32, halve, bounds)
    return lax.bitcast_convert_type(turned(low), jnp.float32)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Mask all but the fewest tokens of each row whose probability reaches p (Holtzman 2020)."""
    if p >= 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    kept = jnp.cumsum(probabilities, axis=-1) - probabilities < p
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, MASKED, logits)


def draw_tokens(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """One token for each row of logits, float32 `[n, V]`; returns int32 `[n]`.

    Each row has a key of its own, so what it draws does not depend on how many others there are.
    """
    if sampling.temperature == 0 or sampling.top_k == 1:
        return logits.argmax(axis=-1).astype(jnp.int32)
    logits = keep_top_k(logits / sampling.temperature, sampling.top_k)
    logits = keep_top_p(logits, sampling.top_p)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(logits)))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
