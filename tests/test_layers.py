"""The layers against the original's numbers and against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm_core.layers import linear, lookup, product, rms_norm, rope_tables, rotate, swiglu


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_halves(x: np.ndarray) -> np.ndarray:
    """Components `2j, 2j+1`, the original's pairs, to `j, j + H/2`, ours."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


@pytest.mark.parametrize(
    ("head_dim", "theta"), [(16, 10_000), (16, 50_000_000), (128, 10_000_000), (128, 50_000_000)]
)
def test_rope_tables_equal_the_original(reference: Path, head_dim: int, theta: int) -> None:
    """At positions up to a million, where the rounding of the angle is visible."""
    with np.load(reference / "rope.npz") as golden:
        name = f"hd{head_dim}_theta{theta}"
        positions = golden[f"{name}.positions"]
        tables = jax.jit(rope_tables, static_argnums=(1, 2))(positions[None], head_dim, theta)
        assert positions.max() == (1_048_575 if head_dim == 128 else 4095)
        for table, part in zip(tables, ("cos", "sin"), strict=True):
            np.testing.assert_allclose(table[0], golden[f"{name}.{part}"], atol=1e-6, rtol=0)


def test_rotation_equals_the_original(reference: Path) -> None:
    with np.load(reference / "rope.npz") as golden:
        q = golden["apply.q"]
        tables = rope_tables(golden["apply.positions"], q.shape[-1], float(golden["apply.theta"]))
        for name in ("q", "k"):
            ours = rotate(to_halves(golden[f"apply.{name}"]).swapaxes(1, 2), *tables)
            theirs = to_halves(golden[f"apply.{name}_out"]).swapaxes(1, 2)
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_rotated_products_depend_on_distance_only() -> None:
    q, k = normal(1, 2, 1, 8), normal(1, 2, 1, 8, seed=1)

    def score(at: int, other: int) -> jax.Array:
        first, second = (rope_tables(jnp.array([[place]]), 8, 1e4) for place in (at, other))
        return (rotate(q, *first) * rotate(k, *second)).sum(-1)

    np.testing.assert_allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert np.abs(score(9, 4) - score(9, 5)).max() > 0.01


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_a_product(dtype: jnp.dtype) -> None:
    x, weight, out = normal(2, 24, 16), normal(12, 16, seed=1), normal(2, 24, 12, seed=2)
    x, weight, out = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in (x, weight, out))
    values, pull = jax.vjp(product, jnp.asarray(x, dtype), jnp.asarray(weight, jnp.float32))
    d_x, d_weight = pull(jnp.asarray(out, jnp.float32))
    assert (values.dtype, d_x.dtype, d_weight.dtype) == (jnp.float32, dtype, jnp.float32)
    np.testing.assert_allclose(values, x @ weight.T, atol=1e-4)
    np.testing.assert_allclose(d_weight, np.einsum("btn,bti->ni", out, x), atol=1e-4)
    d_x = np.asarray(d_x, np.float64)
    np.testing.assert_allclose(d_x, out @ weight, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [(), (1,), (2,), (1, 3), (4,), (8, 8), (65,)])
def test_product_of_few_rows(rows: tuple[int, ...], dtype: jnp.dtype) -> None:
    x = jnp.asarray(normal(*rows, 16), dtype)
    weight = jnp.asarray(normal(12, 16, seed=1), dtype)
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    np.testing.assert_allclose(jax.jit(product)(x, weight), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lookup(dtype: str) -> None:
    """Rows as they stand in the table, and a gradient for each time that one was looked up."""
    table, ids = jnp.asarray(normal(9, 4), dtype), np.array([[3, 8], [3, 0]])
    rows, pull = jax.vjp(jax.jit(lookup), table, ids)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, np.asarray(table)[ids])
    gradient, _ = pull(jnp.ones_like(rows))
    np.testing.assert_array_equal(gradient[:, 0], [1, 0, 0, 2, 0, 0, 0, 0, 1])


def test_rms_norm() -> None:
    x, weight = 5 * normal(3, 7, 32), normal(32, seed=1)
    precise = x.astype(np.float64)
    expected = precise / np.sqrt((precise**2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_of_bfloat16_is_computed_in_float32() -> None:
    x = jnp.asarray(100 * normal(4, 64), jnp.bfloat16)
    normed = rms_norm(x, jnp.ones(64), 1e-6)
    assert normed.dtype == jnp.bfloat16
    expected = rms_norm(x.astype(jnp.float32), jnp.ones(64), 1e-6).astype(jnp.bfloat16)
    np.testing.assert_array_equal(normed, expected)


def test_rms_norm_keeps_nothing_in_float32() -> None:
    """Of bfloat16 activations the backward pass is left these alone."""
    x, weight = jnp.ones((3, 5, 16), jnp.bfloat16), jnp.ones(16)
    _, backward = jax.vjp(lambda x, weight: rms_norm(x, weight, 1e-6), x, weight)
    kept = [leaf.dtype for leaf in jax.tree.leaves(backward) if leaf.shape == x.shape]
    assert kept == [jnp.bfloat16]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear(dtype: str) -> None:
    x, weight = jnp.asarray(normal(2, 3, 64), dtype), normal(5, 64, seed=1)
    y = linear(x, weight)
    assert (y.shape, y.dtype) == ((2, 3, 5), dtype)
    rounded = np.asarray(jnp.asarray(weight, dtype), np.float64)
    expected = np.asarray(x, np.float64) @ rounded.T
    tolerance = 1e-4 if dtype == "float32" else 0.1  # one rounding of a sum of about ten
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=tolerance)


def test_swiglu_of_bfloat16_rounds_once_before_its_last_product() -> None:
    x, gate, up = (jnp.asarray(normal(64, 32, seed=i), jnp.bfloat16) for i in range(3))
    precise = [np.asarray(part, np.float64) for part in (x, gate, up)]
    opened, other = precise[0] @ precise[1].T, precise[0] @ precise[2].T
    inner = opened / (1 + np.exp(-opened)) * other
    ours = np.asarray(swiglu(x, gate, up, jnp.eye(64, dtype=jnp.bfloat16)), np.float64)
    np.testing.assert_allclose(ours, inner, rtol=2**-8, atol=1e-3)


def test_swiglu() -> None:
    x, gate = normal(2, 3, 8), normal(12, 8, seed=1)
    up, down = normal(12, 8, seed=2), normal(8, 12, seed=3)
    opened = x.astype(np.float64) @ gate.T
    expected = (opened / (1 + np.exp(-opened)) * (x @ up.T)) @ down.T
    np.testing.assert_allclose(swiglu(x, gate, up, down), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [5, 3000])
def test_gradients_of_swiglu(tokens: int, dtype: str) -> None:
    """In one block of tokens and in several, against automatic differentiation in float32."""
    x, d_out = (jnp.asarray(normal(1, tokens, 16, seed=seed), dtype) for seed in (0, 1))
    weights = [normal(24, 16, seed=2), normal(24, 16, seed=3), normal(16, 24, seed=4)]

    def plain(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return (jax.nn.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def gradients(function: Callable, *parts: jax.Array) -> tuple:
        return jax.jit(lambda *parts: jax.vjp(function, *parts[1:])[1](parts[0]))(*parts)

    ours = gradients(swiglu, d_out, x, *weights)
    theirs = gradients(plain, *(jnp.asarray(part, jnp.float32) for part in (d_out, x, *weights)))
    limit = 1e-5 if dtype == "float32" else 2e-2
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=limit * np.abs(other).max())
