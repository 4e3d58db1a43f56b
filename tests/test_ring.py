"""RingAttention on simulated devices: the original's numbers, dense attention, an even share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from lwm_core.execution import Execution
from lwm_core.kernels import blockwise
from lwm_core.kernels.dense import attend as dense
from lwm_core.mesh import make_mesh
from lwm_core.quantize import quantize
from lwm_core.ring import gathered_attention, ring_attention, visiting_attention, zigzag
from lwm_core.types import Attended, Places

MESHES = ("sp=1", "sp=2", "sp=4", "sp=8", "sp=4,tp=2", "dp=2,sp=4", "dp=2,tp=2,sp=2")


class SMALL:
    """The kernel in blocks of 8."""

    attend = staticmethod(partial(blockwise.attend, block=8))
    gradients = staticmethod(partial(blockwise.gradients, block=8))


def execution(spec: str) -> Execution:
    sizes = [int(part.partition("=")[2]) for part in spec.split(",")]
    return Execution(make_mesh(spec, jax.devices()[: int(np.prod(sizes))]))


def on_ring(
    spec: str, q: jax.Array, k: jax.Array, v: jax.Array, q_places: Places, k_places: Places
) -> Attended:
    """Attention over the ring of a mesh: tokens filled up, in zigzag order, and put back."""
    how, length = execution(spec), q.shape[2]
    missing = -length % (2 * how.ways)
    order = zigzag(length + missing, how.ways)
    heads = (jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))[:, :, order] for x in (q, k, v))
    places = (
        Places(*(jnp.pad(x, ((0, 0), (0, missing)))[:, order] for x in one))
        for one in (q_places, k_places)
    )
    cut = PartitionSpec(("dp", "fsdp"), "tp", "sp")
    tokens = PartitionSpec(("dp", "fsdp"), "sp")
    run = how.spread(partial(ring_attention, SMALL), (cut, cut, cut, tokens, tokens), cut)
    out, lse = run(*heads, *places)
    back = np.argsort(order)[:length]
    return Attended(out[:, :, back], lse[:, :, back])


def positions(batch: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))


def heads_first(x: np.ndarray | jax.Array) -> jax.Array:
    """`[B, T, N, H]`, as the original has it, to `[B, N, T, H]`, or back."""
    return jnp.swapaxes(x, 1, 2)


@pytest.mark.parametrize("spec", ["sp=1", slow("sp=2"), slow("sp=4"), "sp=8", slow("dp=2,sp=4")])
@pytest.mark.parametrize("case", ["causal", "causal_maskbias", "causal_maskbias_segments"])
def test_the_originals_ring(case: str, spec: str, shared: Path) -> None:
    """Values and gradients; what the original masks by a bias are keys here that nobody sees."""
    with np.load(shared / "reference/ring.npz") as stored:
        numbers = {name: stored[name] for name in stored}
    q, k, v = (heads_first(numbers[name]) for name in "qkv")
    segments = numbers["segment_ids"] + 1 if "segments" in case else np.ones((2, 32))
    seen = numbers["mask_bias"][:, 0, 0] == 0 if "maskbias" in case else np.ones((2, 32))
    places = [
        Places(positions(2, 32), marks.astype(np.int32)) for marks in (segments, segments * seen)
    ]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return on_ring(spec, q, k, v, *places).out

    out, backward = jax.vjp(jax.jit(attend), q, k, v)
    rows = numbers[f"{case}.row_has_visible_key"]
    out = np.asarray(heads_first(out))
    np.testing.assert_allclose(out[rows], numbers[f"{case}.out"][rows], atol=5e-6)
    d_out = heads_first(numbers[f"{case}.dout"])
    for name, gradient in zip("qkv", backward(d_out), strict=True):
        np.testing.assert_allclose(heads_first(gradient), numbers[f"{case}.d{name}"], atol=5e-6)


class Case(NamedTuple):
    """Queries of 4 heads, keys of 2, places that both share, and cotangents."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    places: Places
    d_out: jax.Array
    d_lse: jax.Array


def packed(seed: int, rows: int, length: int) -> Case:
    """Each row has a segment of padding in front, perhaps empty, and up to three texts."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, *shape)), jnp.float32)

    ends = np.sort(rng.integers(0, length, (rows, 3)))
    segments = (positions(rows, length)[..., None] >= ends[:, None]).sum(-1).astype(np.int32)
    places = Places(positions(rows, length), segments)
    d_lse = jnp.where(segments[:, None] > 0, normal(4, length), 0)
    heads = normal(4, length, 8), normal(2, length, 8), normal(2, length, 8)
    return Case(*heads, places, normal(4, length, 8), d_lse)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    spec=st.sampled_from(MESHES),
    rows=st.sampled_from([2, 4]),
    length=st.integers(1, 100),
    seed=st.integers(0, 99),
)
@example(spec="sp=8", rows=2, length=1, seed=0)
@example(spec="sp=8", rows=2, length=99, seed=1)
@example(spec="dp=2,tp=2,sp=2", rows=2, length=37, seed=2)
def test_the_same_as_dense(spec: str, rows: int, length: int, seed: int) -> None:
    """Values, log-sum-exp and gradients, for rows of any length."""
    q, k, v, places, d_out, d_lse = packed(seed, rows, length)
    ways = [jax.jit(partial(on_ring, spec)), dense]
    ours, truth = (jax.vjp(lambda *x, way=way: way(*x, places, places), q, k, v) for way in ways)
    real = np.broadcast_to(places.segments[:, None] > 0, d_lse.shape)
    np.testing.assert_allclose(ours[0].out, truth[0].out, atol=2e-6)
    np.testing.assert_allclose(ours[0].lse[real], truth[0].lse[real], atol=2e-6)
    cotangent = Attended(d_out, d_lse)
    for one, other in zip(ours[1](cotangent), truth[1](cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("queries", [1, 16])
@pytest.mark.parametrize("spec", [x if "dp" in x else slow(x) for x in MESHES])
def test_a_cache_that_devices_share(spec: str, queries: int) -> None:
    """Queries travel, or all devices have the one; keys in 8 bits are served too."""
    how, case = execution(spec), packed(7, 2, 64)
    q, marks = case.q[:, :, -queries:], Places(*(x[:, -queries:] for x in case.places))
    tokens = "sp" if queries > 1 else None
    rows = PartitionSpec(("dp", "fsdp"), tokens)
    specs = PartitionSpec(("dp", "fsdp"), "tp", tokens), PartitionSpec(("dp", "fsdp"), "tp", "sp")
    way = partial(visiting_attention, SMALL) if queries > 1 else gathered_attention
    in_specs = (specs[0], specs[1], specs[1], rows, PartitionSpec(("dp", "fsdp"), "sp"))
    run = jax.jit(how.spread(way, in_specs, specs[0]))
    for k, v in ((case.k, case.v), (quantize(case.k), quantize(case.v))):
        ours, truth = (each(q, k, v, marks, case.places) for each in (run, dense))
        np.testing.assert_allclose(ours.out, truth.out, atol=2e-6)
        np.testing.assert_allclose(ours.lse, truth.lse, atol=2e-6)


def test_bfloat16_sums_in_float32() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 2, 64, 16)), jnp.bfloat16) for _ in range(3))
    places = Places(positions(1, 64), np.ones((1, 64), np.int32))
    out = on_ring("sp=8", q, k, v, places, places).out
    truth = dense(*(x.astype(jnp.float32) for x in (q, k, v)), places, places).out
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), truth, atol=0.02)


def pairs_of(order: np.ndarray, ways: int, block: int) -> np.ndarray:
    """How many block pairs each device computes for causal attention, `[ways]`."""
    marks = [Places(x, np.ones_like(x)) for x in order.reshape(ways, -1, block)]
    counts = [sum(int(blockwise.reachable(q, k).sum()) for k in marks) for q in marks]
    return np.array(counts)


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_zigzag_makes_the_work_even(ways: int) -> None:
    """Plain order gives the last device almost twice the mean."""
    length, block = 2 * ways * 16 * 4, 4
    even = pairs_of(zigzag(length, ways), ways, block)
    plain = pairs_of(np.arange(length, dtype=np.int32), ways, block)
    assert even.max() <= 1.10 * even.mean()
    assert plain.max() >= (1.8 if ways == 8 else 1.4) * plain.mean()
    assert even.sum() == plain.sum()


def test_zigzag_is_a_permutation() -> None:
    assert zigzag(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert sorted(zigzag(48, 4).tolist()) == list(range(48))
    with pytest.raises(ValueError, match="no multiple"):
        zigzag(10, 2)
