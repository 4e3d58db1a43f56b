"""Attention: a softmax written out in numpy is the truth for `dense`, and that for `blockwise`."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from jax.sharding import PartitionSpec

from lwm_core.attention import attend, check_implementation
from lwm_core.errors import UsageError
from lwm_core.execution import Execution
from lwm_core.kernels import blockwise as in_blocks
from lwm_core.kernels import gpu, tpu
from lwm_core.kernels.dense import MASKED, RUN, merge, visible
from lwm_core.kernels.dense import attend as dense
from lwm_core.mesh import make_mesh
from lwm_core.ring import nothing_seen, ring_attention
from lwm_core.types import Attended, Places

BLOCK = 64


def normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def queries_keys_values(
    length: int, keys: int, heads: int = 4, kv_heads: int = 2
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two rows, heads of 8 components."""
    return (
        normal(2, heads, length, 8, seed=0),
        normal(2, kv_heads, keys, 8, seed=1),
        normal(2, kv_heads, keys, 8, seed=2),
    )


def places(positions: np.ndarray, segments: np.ndarray | int = 1) -> Places:
    """The same for both rows, unless given for each."""
    rows = np.broadcast_arrays(positions, segments, np.empty((2, 1)))[:2]
    return Places(*(jnp.asarray(row, jnp.int32) for row in rows))


def plain(length: int) -> Places:
    return places(np.arange(length))


def packed(length: int) -> Places:
    """Segments 1, 2, 3 with positions of their own, then padding."""
    lengths = [length // 2, length // 4, length // 8]
    positions, segments = np.zeros(length), np.zeros(length)
    start = 0
    for segment, size in enumerate(lengths, start=1):
        positions[start : start + size] = np.arange(size)
        segments[start : start + size] = segment
        start += size
    return places(positions, segments)


def left_padded(length: int) -> Places:
    """Another number of padded slots in each row; the second has a whole block of them."""
    padding = np.array([[3], [BLOCK + 5]])
    positions = np.maximum(np.arange(length) - padding, 0)
    return places(positions, np.arange(length) >= padding)


def shuffled(length: int) -> Places:
    """Positions in no order, some of them twice, in two segments that are interleaved."""
    rng = np.random.default_rng(5)
    return places(rng.permutation(length) // 2, rng.integers(1, 3, length))


LAYOUTS = {layout.__name__: layout for layout in (plain, packed, left_padded, shuffled)}


def naive(q, k, v, q_places: Places, k_places: Places) -> tuple[np.ndarray, np.ndarray]:
    """One query and head after another, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, lse = np.zeros_like(q), np.full(q.shape[:3], MASKED)
    group = q.shape[1] // k.shape[1]
    for row, head, at in np.ndindex(q.shape[:3]):
        seen = [
            key
            for key in range(k.shape[2])
            if k_places.segments[row, key] == q_places.segments[row, at] != 0
            and k_places.positions[row, key] <= q_places.positions[row, at]
        ]
        if seen:
            scores = k[row, head // group, seen] @ q[row, head, at] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[row, head, at] = weights @ v[row, head // group, seen] / weights.sum()
            lse[row, head, at] = np.log(weights.sum()) + scores.max()
    return out, lse


def assert_same(ours: Attended, theirs: tuple, tolerance: float = 2e-6) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_equals_softmax(layout: str) -> None:
    where = jax.tree.map(np.asarray, LAYOUTS[layout](80))
    parts = queries_keys_values(80, 80)
    assert_same(dense(*parts, where, where), naive(*parts, where, where))


HERE = Execution(make_mesh())


def on_one_device(function, *how):
    """Functions of one device's arrays need a mesh around them, if only of one device."""

    def run(*parts: object) -> Attended:
        spread = HERE.spread(
            lambda *parts: function(*parts, *how), PartitionSpec(), PartitionSpec()
        )
        return spread(*parts)

    return run


def blockwise(*parts: object) -> Attended:
    return on_one_device(partial(ring_attention, BLOCKS))(*parts)


class BLOCKS:
    """The kernel in small blocks."""

    attend = staticmethod(partial(in_blocks.attend, block=BLOCK))
    gradients = staticmethod(partial(in_blocks.gradients, block=BLOCK))


def test_visible() -> None:
    where = Places(jnp.array([[0, 1, 0, 1, 0]]), jnp.array([[1, 1, 2, 2, 0]]))
    rows = ["10000", "11000", "00100", "00110", "00000"]
    expected = np.array([[character == "1" for character in row] for row in rows])
    np.testing.assert_array_equal(visible(where, where)[0], expected)


def gradients(function, parts: tuple, q_places: Places, k_places: Places) -> tuple:
    """Of a sum over outputs and log-sum-exps, each with a weight of its own."""

    def weighted_sum(*parts: jax.Array) -> jax.Array:
        out, lse = function(*parts, q_places, k_places)
        seeing = lse > MASKED / 2
        return (out * normal(*out.shape, seed=3)).sum() + (
            jnp.where(seeing, lse, 0.0) * normal(*lse.shape, seed=4)
        ).sum()

    return jax.jit(jax.grad(weighted_sum, argnums=(0, 1, 2)))(*parts)


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads"), [slow(192, 2, 2), (150, 4, 2), slow(131, 3, 1)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blockwise_equals_dense(layout: str, length: int, heads: int, kv_heads: int) -> None:
    """Values and gradients, of the log-sum-exp too; lengths that fill blocks and that don't."""
    where = LAYOUTS[layout](length)
    parts = queries_keys_values(length, length, heads, kv_heads)
    assert_same(jax.jit(blockwise)(*parts, where, where), dense(*parts, where, where))
    ours = gradients(blockwise, parts, where, where)
    theirs = gradients(dense, parts, where, where)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


def test_gradients_of_dense_by_differences() -> None:
    """Along one direction through all inputs, against the slope of the naive softmax."""
    where = jax.tree.map(np.asarray, packed(24))
    parts = queries_keys_values(24, 24)
    directions = [np.asarray(normal(*part.shape, seed=6 + n)) for n, part in enumerate(parts)]

    def total(step: float) -> float:
        moved = [
            np.asarray(part, np.float64) + step * towards
            for part, towards in zip(parts, directions, strict=True)
        ]
        out, lse = naive(*moved, where, where)
        seeing = np.where(lse > MASKED / 2, lse, 0)
        return sum(
            np.vdot(part, normal(*part.shape, seed=seed)) for part, seed in ((out, 3), (seeing, 4))
        )

    slope = (total(1e-5) - total(-1e-5)) / 2e-5
    found = gradients(dense, parts, where, where)
    along = sum((part * towards).sum() for part, towards in zip(found, directions, strict=True))
    np.testing.assert_allclose(along, slope, rtol=1e-5)


@pytest.mark.parametrize("function", [dense, blockwise])
def test_a_query_that_sees_nothing_gets_zeros(function) -> None:
    """Its segment has no key, or none so early; the others of its block are served."""
    length = 140
    q_places = places(np.arange(length), np.where(np.arange(length) < 10, 7, 1))
    k_places = places(np.arange(length) + 20)
    parts = queries_keys_values(length, length)
    out, lse = function(*parts, q_places, k_places)
    np.testing.assert_array_equal(out[:, :, :20], 0)
    np.testing.assert_array_equal(lse[:, :, :20], np.float32(MASKED))
    np.testing.assert_allclose(out[:, :, 20], parts[2][:, :, 0].repeat(2, axis=1), rtol=1e-6)
    for gradient in gradients(function, parts, q_places, k_places):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


def test_more_keys_than_queries() -> None:
    """A chunk behind a cache with free slots."""
    q_places = places(np.arange(100, 240))
    k_places = places(np.arange(300), np.arange(300) < 240)
    parts = queries_keys_values(140, 300)
    ours = blockwise(*parts, q_places, k_places)
    assert_same(ours, dense(*parts, q_places, k_places))


@pytest.mark.parametrize("keys", [2 * RUN // 8, 2 * RUN // 8 - 8])
def test_a_lone_query_of_many_keys(keys: int) -> None:
    """Whether or not whole runs of values are in them."""
    parts = queries_keys_values(1, keys, heads=2, kv_heads=2)
    where = jax.tree.map(np.asarray, (places(np.array([keys - 100])), plain(keys)))
    assert_same(dense(*parts, *where), naive(*parts, *where))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_halves_merge_to_the_whole(layout: str) -> None:
    where = LAYOUTS[layout](60)
    q, k, v = queries_keys_values(60, 60)
    halves = [
        dense(q, k[:, :, part], v[:, :, part], where, Places(*(x[:, part] for x in where)))
        for part in (slice(0, 25), slice(25, 60))
    ]
    whole = dense(q, k, v, where, where)
    seeing = whole.lse > MASKED / 2
    merged = merge(jax.tree.map(lambda *both: jnp.stack(both), *halves))
    assert_same(merged, (jnp.where(seeing[..., None], whole.out, merged.out), merged.lse))
    np.testing.assert_allclose(merged.lse[seeing], whole.lse[seeing], atol=2e-6)
    np.testing.assert_array_equal(merged.out[~seeing], 0)
    assert (merged.lse[~seeing] < MASKED / 2).all()


@pytest.mark.parametrize("length", [40, 200])
def test_bfloat16_sums_in_float32(length: int) -> None:
    where = plain(length)
    parts = [part.astype(jnp.bfloat16) for part in queries_keys_values(length, length)]
    out, lse = on_one_device(attend, HERE)(*parts, where, where)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    exact = dense(*(part.astype(jnp.float32) for part in parts), where, where)
    np.testing.assert_allclose(lse, exact.lse, atol=1e-5)
    np.testing.assert_allclose(out.astype(jnp.float32), exact.out, atol=0.02)


def test_memory_of_blockwise_does_not_square() -> None:
    """Values and gradients of 8192 tokens never hold all scores, 256 MiB for a head."""
    length = 8192
    part = jax.ShapeDtypeStruct((1, 1, length, 16), jnp.float32)
    marks = jax.ShapeDtypeStruct((1, length), jnp.int32)
    run = on_one_device(attend, HERE)
    step = jax.value_and_grad(
        lambda q, k, v, where: run(q, k, v, where, where).out.sum(), argnums=(0, 1, 2)
    )
    compiled = jax.jit(step).lower(part, part, part, Places(marks, marks)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < length * length * 4 / 16


def test_choice_of_implementation() -> None:
    """Few queries are served by the plain form, many in blocks, unless another way is forced."""

    def chosen(length: int, way: str) -> jax.Array:
        """Not the same to the last bit in both ways."""
        how = dataclasses.replace(HERE, attention=way)
        parts = *queries_keys_values(length, length), plain(length), plain(length)
        return on_one_device(attend, how)(*parts).out

    for length, served in ((8, "dense"), (200, "blockwise")):
        np.testing.assert_array_equal(chosen(length, "auto"), chosen(length, served))
    assert (chosen(200, "dense") != chosen(200, "blockwise")).any()
    np.testing.assert_array_equal(chosen(8, "blockwise"), chosen(8, "dense"))
    np.testing.assert_array_equal(chosen(200, "fused"), chosen(200, "blockwise"))


@pytest.mark.parametrize(("platform", "kernel"), [("gpu", gpu), ("tpu", tpu)])
def test_fused_kernels_serve_their_platform_unless_another_way_is_asked_for(
    platform: str, kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few the queries are."""
    monkeypatch.setattr(Execution, "platform", platform)
    served = []
    monkeypatch.setattr(kernel, "attend", lambda q, *_: served.append(q.shape) or nothing_seen(q))
    for length in (8, 200):
        parts = *queries_keys_values(length, length), plain(length), plain(length)
        for way, count in (("auto", 1), ("fused", 1), ("blockwise", 0), ("dense", 0)):
            served.clear()
            on_one_device(attend, dataclasses.replace(HERE, attention=way))(*parts)
            assert len(served) == count


def test_unknown_ways() -> None:
    with pytest.raises(UsageError, match="auto, fused, blockwise, dense"):
        check_implementation("flash")
