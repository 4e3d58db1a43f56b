"""Products with numbers in 8 bits beside the same in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm_core import integers
from lwm_core.integers import COMPILER_OPTIONS, MOST_ROWS
from lwm_core.kernels import dense
from lwm_core.quantize import plain, quantize
from lwm_core.types import Places, Quantized

RNG = np.random.default_rng(0)


def rounded(*shape: int) -> Quantized:
    return quantize(jnp.asarray(RNG.normal(size=shape), jnp.float32))


def test_what_16_bits_hold_is_exact() -> None:
    values = RNG.integers(-127, 128, (64, 128), dtype=np.int8)
    x = RNG.integers(-32767, 32768, (2, 128)).astype(np.float32)
    x[:, 0] = [32767, -32767]
    found = jax.jit(integers.product)(x, Quantized(values, np.full(64, 0.5, np.float32)))
    expected = x.astype(np.int64) @ values.T.astype(np.int64) / 2
    np.testing.assert_allclose(found, expected, rtol=3e-7)


@pytest.mark.parametrize("inputs", [516, 517, 11008, 200_000])
def test_the_largest_sums_have_room(inputs: int) -> None:
    weight = Quantized(np.full((1, inputs), 127, np.int8), np.ones(1, np.float32))
    found = jax.jit(integers.product)(np.full((1, inputs), -1, np.float32), weight)
    np.testing.assert_allclose(found, [[-127 * inputs]], rtol=1e-6)


def test_compiled_for_a_cpu() -> None:
    """The options that only its programs have change nothing but the speed."""
    x, weight = RNG.normal(size=(1, 576)).astype(np.float32), rounded(960, 576)
    fast = jax.jit(integers.product, compiler_options=COMPILER_OPTIONS)
    np.testing.assert_allclose(
        fast(x, weight), jax.jit(integers.product)(x, weight), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("rows", [1, 3, MOST_ROWS])
def test_scores(rows: int) -> None:
    q, keys = RNG.normal(size=(2, 3, rows, 64)), rounded(2, 3, 40, 64)
    expected = np.einsum("bkrh,bksh->bkrs", q, np.asarray(plain(keys, jnp.float32), np.float64))
    found = jax.jit(integers.scores)(jnp.asarray(q, jnp.float32), keys)
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("options", [None, COMPILER_OPTIONS], ids=["plain", "for a cpu"])
@pytest.mark.parametrize("slots", [40, 41, 3072, 98304])
def test_weighted(slots: int, options: dict | None) -> None:
    weights, values = RNG.dirichlet(np.ones(slots), (1, 2, 3)), rounded(1, 2, slots, 4)
    expected = np.einsum("bkrs,bksh->bkrh", weights, np.asarray(plain(values, jnp.float32)))
    weighted = jax.jit(integers.weighted, compiler_options=options)
    found = weighted(jnp.asarray(weights, jnp.float32), values)
    np.testing.assert_allclose(found, expected, atol=5e-7)


@pytest.mark.parametrize("options", [None, COMPILER_OPTIONS], ids=["plain", "for a cpu"])
def test_a_large_weight_leaves_the_small_ones_what_they_are(options: dict | None) -> None:
    """Half of all attention goes to one slot, as to the first of a text, half to all others."""
    slots = 98304
    weights = np.full((1, 1, 1, slots), 0.5 / slots, np.float32)
    weights[..., 0] = 0.5
    values = Quantized(np.full((1, 1, slots, 1), 127, np.int8), np.ones((1, 1, slots), np.float32))
    found = jax.jit(integers.weighted, compiler_options=options)(weights, values)
    np.testing.assert_allclose(found, [[[[127]]]], rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_attention_to_keys_in_8_bits(length: int) -> None:
    """Of few queries with 8 bits as they lie, of more with plain numbers: the same."""
    q = jnp.asarray(RNG.normal(size=(2, 6, length, 64)), jnp.float32)
    k, v = rounded(2, 2, 96, 64), rounded(2, 2, 96, 64)
    ones = jnp.ones((2, 96), jnp.int32)
    k_places = Places(jnp.cumsum(ones, axis=1), ones.at[1, 70:].set(0))
    q_places = Places(k_places.positions[:, 60 : 60 + length], ones[:, :length])
    found = jax.jit(dense.attend)(q, k, v, q_places, k_places)
    numbers = plain(k, jnp.float32), plain(v, jnp.float32)
    expected = dense.attend(q, *numbers, q_places, k_places)
    np.testing.assert_allclose(found.out, expected.out, atol=1e-3)
    np.testing.assert_allclose(found.lse, expected.lse, atol=1e-3)
