"""RingAttention on simulated devices: the original's numbers, dense attention, an even share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm_core import attention
from lwm_core.attention import Attended, Places, dense
from lwm_core.mesh import make_mesh
from lwm_core.ring import ring_attention, zigzag

MESHES = ("sp=1", "sp=2", "sp=4", "sp=8", "sp=2,tp=2", "sp=4,dp=2", "sp=2,fsdp=2,tp=2")


def on_ring(
    spec: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    block: int = 8,
) -> Attended:
    """Attention over the ring of a mesh, its tokens laid out in zigzag order and put back."""
    sizes = [int(part.partition("=")[2]) for part in spec.split(",")]
    mesh = make_mesh(spec, jax.devices()[: int(np.prod(sizes))])
    order = zigzag(q.shape[1], mesh.shape["sp"])
    places = (Places(*(x[:, order] for x in one)) for one in (q_places, k_places))
    out, lse = ring_attention(
        q[:, order], k[:, order], v[:, order], *places, mesh=mesh, block=block
    )
    back = np.argsort(order)
    return Attended(out[:, back], lse[:, back])


def positions(batch: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))


@pytest.mark.parametrize("spec", ["sp=1", "sp=2", "sp=4", "sp=8", "sp=4,dp=2"])
@pytest.mark.parametrize("case", ["causal", "causal_maskbias", "causal_maskbias_segments"])
def test_the_originals_ring(case: str, spec: str, shared: Path) -> None:
    """Values and gradients; what the original masks by a bias are keys here that nobody sees."""
    with np.load(shared / "reference/ring.npz") as stored:
        numbers = {name: stored[name] for name in stored}
    q, k, v = (jnp.asarray(numbers[name]) for name in "qkv")
    segments = numbers["segment_ids"] + 1 if "segments" in case else np.ones((2, 32))
    seen = numbers["mask_bias"][:, 0, 0] == 0 if "maskbias" in case else np.ones((2, 32))
    places = [
        Places(positions(2, 32), marks.astype(np.int32)) for marks in (segments, segments * seen)
    ]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return on_ring(spec, q, k, v, *places).out

    out, backward = jax.vjp(jax.jit(attend), q, k, v)
    rows = numbers[f"{case}.row_has_visible_key"]
    np.testing.assert_allclose(out[rows], numbers[f"{case}.out"][rows], atol=5e-6)
    for name, gradient in zip("qkv", backward(jnp.asarray(numbers[f"{case}.dout"])), strict=True):
        np.testing.assert_allclose(gradient, numbers[f"{case}.d{name}"], atol=5e-6)


@pytest.mark.parametrize("spec", MESHES)
@pytest.mark.parametrize("seed", range(2))
def test_the_same_as_dense(spec: str, seed: int) -> None:
    """Grouped heads, packed segments of any length, padding in front; values, lse, gradients."""
    rng = np.random.default_rng(seed)
    length = 16 * int(rng.integers(3, 9))
    q, d_out = (jnp.asarray(rng.normal(size=(2, length, 4, 8)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, length, 2, 8)), jnp.float32) for _ in range(2))
    d_lse = jnp.asarray(rng.normal(size=(2, length, 4)), jnp.float32)
    ends = np.sort(rng.integers(0, length, (2, 3)))
    segments = (positions(2, length)[..., None] >= ends[:, None]).sum(-1).astype(np.int32)
    places = Places(positions(2, length), segments)
    ways = [partial(on_ring, spec), dense]
    ours, truth = (jax.vjp(lambda *x, way=way: way(*x, places, places), q, k, v) for way in ways)
    real = segments > 0
    np.testing.assert_allclose(ours[0].out, truth[0].out, atol=2e-6)
    np.testing.assert_allclose(ours[0].lse[real], truth[0].lse[real], atol=2e-6)
    cotangent = Attended(d_out, jnp.where(real[..., None], d_lse, 0))
    for one, other in zip(ours[1](cotangent), truth[1](cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_bfloat16_sums_in_float32() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 64, 2, 16)), jnp.bfloat16) for _ in range(3))
    places = Places(positions(1, 64), np.ones((1, 64), np.int32))
    out = on_ring("sp=8", q, k, v, places, places).out
    truth = dense(*(x.astype(jnp.float32) for x in (q, k, v)), places, places).out
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), truth, atol=0.02)


def pairs_of(order: np.ndarray, ways: int, block: int) -> np.ndarray:
    """How many block pairs each device computes for causal attention, `[ways]`."""
    marks = [Places(x, np.ones_like(x)) for x in order.reshape(ways, -1, block)]
    counts = [sum(int(attention._reachable(q, k).sum()) for k in marks) for q in marks]
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
