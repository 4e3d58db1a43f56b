"""Fused kernels: the plain form's numbers where they are interpreted, and what compilers say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lwm_core.ahead import uncached
from lwm_core.kernels import gpu, tpu
from lwm_core.kernels.dense import MASKED
from lwm_core.kernels.dense import attend as dense
from lwm_core.ring import nothing_seen, zigzag
from lwm_core.types import Attended, Places

BLOCK = 8


@pytest.fixture(scope="module", params=[tpu, gpu], ids=["tpu", "gpu"])
def kernel(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The two functions of a kernel, interpreted."""
    functions = (
        jax.jit(partial(function, block=BLOCK, interpret=True))
        for function in (request.param.attend, request.param.gradients)
    )
    return SimpleNamespace(attend=next(functions), gradients=next(functions))


class Case(NamedTuple):
    """What both forms take: 4 query heads, 2 key heads of 8."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    q_places: Places
    k_places: Places
    d_out: jax.Array
    d_lse: jax.Array


def case_of(seed: int, q_places: Places, k_places: Places) -> Case:
    rng = np.random.default_rng(seed)

    def normal(places: Places, heads: int, *size: int) -> jax.Array:
        rows, length = places.positions.shape
        return jnp.asarray(rng.normal(size=(rows, heads, length, *size)), jnp.float32)

    q, d_out = normal(q_places, 4, 8), normal(q_places, 4, 8)
    k, v = normal(k_places, 2, 8), normal(k_places, 2, 8)
    return Case(q, k, v, q_places, k_places, d_out, normal(q_places, 4))


def anywhere(seed: int) -> Case:
    """Positions and segments in no order at all; some queries see nothing."""
    rng = np.random.default_rng(seed)

    def places(length: int) -> Places:
        shape = (2, length)
        return Places(*(rng.integers(0, top, shape, dtype=np.int32) for top in (40, 3)))

    return case_of(seed, places(16), places(48))


def padded_zigzag(seed: int) -> Case:
    """What a device of a ring holds: an early and a late chunk of rows that are padded in front."""
    order = zigzag(48, 3)
    positions = np.arange(48, dtype=np.int32) - np.array([[5], [19]], np.int32)
    places = Places(positions[:, order], (positions >= 0).astype(np.int32)[:, order])
    return case_of(seed, Places(*(x[:, 16:32] for x in places)), places)


def packed(seed: int) -> Case:
    """Segments one after the other, of any length."""
    ends = np.sort(np.random.default_rng(seed).integers(0, 48, (2, 4)))
    positions = np.broadcast_to(np.arange(48, dtype=np.int32), (2, 48))
    segments = (positions[..., None] >= ends[:, None]).sum(-1).astype(np.int32)
    places = Places(positions, segments)
    return case_of(seed, Places(*(x[:, 32:] for x in places)), places)


CASES = pytest.mark.parametrize("make", [anywhere, padded_zigzag, packed])


def over_parts(
    attend: Callable, case: Case, cuts: tuple[int, ...], order: tuple[int, ...]
) -> Attended:
    """Attention by the kernel, with the parts of the keys one after the other in any order."""
    q, k, v = case[:3]
    parts = list(pairwise((0, *cuts, k.shape[2])))
    sofar = nothing_seen(q)
    for first, last in (parts[i] for i in order):
        places = Places(*(x[:, first:last] for x in case.k_places))
        keys = k[:, :, first:last], v[:, :, first:last]
        sofar = attend(q, *keys, case.q_places, places, sofar)
    return sofar


def check_gradients(case: Case, gradients: Callable) -> None:
    """By the kernel, added to other gradients, against differentiating the plain form."""
    places = case[3:5]
    truth, backward = jax.vjp(lambda *x: dense(*x, *places), *case[:3])
    d_lse = jnp.where(truth.lse > MASKED / 2, case.d_lse, 0)
    shift = (case.d_out * truth.out).sum(-1) - d_lse
    before = case[:3]
    sums = gradients(*before, *places, truth.lse, shift, case.d_out, before)
    expected = backward(Attended(case.d_out, d_lse))
    for total, was, gradient in zip(sums, before, expected, strict=True):
        np.testing.assert_allclose(total - was, gradient, atol=2e-5)


@CASES
@pytest.mark.parametrize("seed", range(2))
def test_the_same_as_dense(kernel, make, seed: int) -> None:
    """Grouped heads: values, log-sum-exp and gradients."""
    case = make(seed)
    ours, truth = over_parts(kernel.attend, case, (), (0,)), dense(*case[:5])
    np.testing.assert_allclose(ours.out, truth.out, atol=2e-6)
    np.testing.assert_allclose(ours.lse, truth.lse, atol=2e-6)
    check_gradients(case, kernel.gradients)


def test_on_a_simulated_tpu() -> None:
    """Memories, copies and steps are a TPU's; what was never written is NaN."""
    rng = np.random.default_rng(0)
    places = Places(rng.permutation(16).astype(np.int32)[None], np.ones((1, 16), np.int32))
    case = case_of(0, places, places)
    simulated = {"block": BLOCK, "interpret": pltpu.InterpretParams()}
    sofar = nothing_seen(case.q)
    out, lse = tpu.attend(*case[:5], sofar, **simulated)
    truth = dense(*case[:5])
    np.testing.assert_allclose(out, truth.out, atol=2e-6)
    np.testing.assert_allclose(lse, truth.lse, atol=2e-6)
    check_gradients(case, partial(tpu.gradients, **simulated))


@CASES
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_of_the_keys_in_any_order(kernel, make, order: tuple[int, ...]) -> None:
    case = make(3)
    parts = over_parts(kernel.attend, case, (16, 32), order)
    truth = dense(*case[:5])
    np.testing.assert_allclose(parts.out, truth.out, atol=2e-6)
    np.testing.assert_allclose(parts.lse, truth.lse, atol=2e-6)


def test_what_no_query_sees_is_not_even_read(kernel) -> None:
    """Of two documents, the second's keys are NaN: the first knows nothing of it."""
    positions = np.broadcast_to(np.arange(48, dtype=np.int32) % 24, (2, 48))
    places = Places(positions, np.repeat(np.array([[1, 2]] * 2, np.int32), 24, axis=1))
    case = case_of(0, Places(*(x[:, 16:32] for x in places)), places)
    k, v = (x.at[:, :, 24:].set(jnp.nan) for x in (case.k, case.v))
    out = over_parts(kernel.attend, case._replace(k=k, v=v), (), (0,)).out
    np.testing.assert_allclose(out[:, :, :8], dense(*case[:5]).out[:, :, :8], atol=2e-6)
    assert np.isnan(out[:, :, 8:]).all()


@pytest.mark.parametrize("visible", [False, True])
def test_blocks_that_see_nothing_keep_what_they_have(kernel, visible: bool) -> None:
    """To the last bit, where another block sees something and where none does."""
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (2, 16))
    segments = np.ones((2, 16), np.int32)
    later = Places(positions + (8 if visible else 16), segments)
    case = case_of(0, Places(positions, segments), later)
    sofar = Attended(case.d_out, case.d_lse)
    ours = kernel.attend(*case[:5], sofar)
    for one, before in zip(ours, sofar, strict=True):
        np.testing.assert_array_equal(one[:, :, :8], before[:, :, :8])
        assert (one[:, :, 8:] != before[:, :, 8:]).any() == visible


def test_bfloat16_sums_in_float32(kernel) -> None:
    case = packed(0)
    short = case._replace(**{name: getattr(case, name).astype(jnp.bfloat16) for name in "qkv"})
    out = over_parts(kernel.attend, short, (), (0,)).out
    rounded = (x.astype(jnp.float32) for x in short[:3])
    truth = dense(*rounded, case.q_places, case.k_places).out
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, truth, atol=0.02)


@pytest.mark.parametrize(
    ("kernel", "length", "size", "block", "dtype", "reason"),
    [
        (tpu, 500, 128, None, jnp.float32, "no block of"),
        (tpu, 512, 512, None, jnp.float32, "heads of 512"),
        (tpu, 512, 128, 64, jnp.float32, "blocks of 64"),
        (tpu, 512, 128, None, jnp.float16, "float16"),
        (tpu, 2**18, 128, None, jnp.bfloat16, "too many"),
        (gpu, 500, 128, None, jnp.float32, "blocks of 32 do not divide"),
        (gpu, 512, 96, None, jnp.float32, "heads of 96"),
        (gpu, 512, 128, 16, jnp.float32, "blocks of 16"),
        (gpu, 512, 128, None, jnp.float16, "float16"),
        (gpu, 2**19, 128, None, jnp.bfloat16, "too many"),
    ],
)
def test_what_it_does_not_serve(kernel, length, size, block, dtype, reason: str) -> None:
    q = jax.ShapeDtypeStruct((1, 2, length, size), dtype)
    places = Places(*[jax.ShapeDtypeStruct((1, length), jnp.int32)] * 2)
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(
            lambda *x: kernel.attend(*x, nothing_seen(x[0]), block=block), q, q, q, places, places
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("size", gpu.SIZES)
def test_triton_takes_it(size: int, dtype: jnp.dtype) -> None:
    """All kernels become programs of Triton's, with no GPU at hand."""
    q, k = (jax.ShapeDtypeStruct((2, heads, 256, size), dtype) for heads in (4, 2))
    sums = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q, k, k)]
    row = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    places = Places(*[jax.ShapeDtypeStruct((2, 256), jnp.int32)] * 2)

    def both(*args) -> tuple:
        *inputs, lse, sums = args
        out = gpu.attend(*inputs, Attended(sums[0], lse)).out
        return out, gpu.gradients(*inputs, lse, lse, inputs[0], sums)

    traced = jax.jit(both).trace(q, k, k, places, places, row, sums)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 3


COMPILER = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu must find in the environment where there is no TPU."""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("length", "k_heads", "dtype"),
    [
        *((16384, k_heads, dtype) for k_heads in (32, 8) for dtype in (jnp.bfloat16, jnp.float32)),
        (131072, 8, jnp.bfloat16),
    ],
)
@pytest.mark.parametrize(
    ("topology", "options"),
    [
        ("v4:2x2x1", {"chip_config_name": "megacore"}),
        ("v5e:2x4", {}),
        ("v5p:2x2x1", {}),
        ("v6e:2x4", {}),
    ],
)
def test_the_real_compiler(topology, options, length, k_heads, dtype, monkeypatch) -> None:
    """It takes all kernels inside a sharded program, where they need little beside their arrays."""
    for name, value in COMPILER.items():
        monkeypatch.setenv(name, value)
    devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    mesh = Mesh(np.array(devices), ("sp",))

    def array(dtype, *shape: int) -> jax.ShapeDtypeStruct:
        """An array of which every device holds this shape, the tokens being cut."""
        axis = 1 if len(shape) == 2 else 2
        whole = (*shape[:axis], shape[axis] * mesh.size, *shape[axis + 1 :])
        spec = PartitionSpec(*[None] * axis, "sp")
        return jax.ShapeDtypeStruct(whole, dtype, sharding=NamedSharding(mesh, spec))

    def temporary(function, *shapes) -> int:
        mapped = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=jax.tree.map(lambda x: x.sharding.spec, shapes),
            out_specs=PartitionSpec(None, None, "sp"),
            check_vma=False,
        )
        last = len(shapes) - 1
        with uncached():
            compiled = jax.jit(mapped, donate_argnums=last).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    q, k = ((1, heads, length, 128) for heads in (32, k_heads))
    places = Places(*[array(jnp.int32, 1, length)] * 2)
    row = array(jnp.float32, *q[:3])
    inputs = array(dtype, *q), array(dtype, *k), array(dtype, *k), places, places
    sums = [array(jnp.float32, *shape) for shape in (q, k, k)]
    limit = 3 * 4 * 32 * length  # bytes of three numbers per query and head
    assert temporary(tpu.attend, *inputs, Attended(sums[0], row)) < limit
    assert temporary(tpu.gradients, *inputs, row, row, inputs[0], sums) < limit
