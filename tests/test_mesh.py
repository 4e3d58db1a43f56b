"""On eight simulated devices: what is cut up computes what one device computes."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from lwm_core.config import SIZES, ModelConfig
from lwm_core.errors import ConfigError
from lwm_core.mesh import batch_sharding, device_line, make_mesh, missed_gpu, shardings
from lwm_core.train.language import LanguageState, language_step
from lwm_core.train.optimizer import OptimizerConfig, make_optimizer
from lwm_core.transformer import Params, flatten, forward, init, parameters
from lwm_core.types import Batch

TINY = ModelConfig(
    text_vocab=40, vision_vocab=24, vision_codes=16, hidden=32, intermediate=48, layers=2,
    heads=4, kv_heads=2, head_dim=8, max_length=256,
)  # fmt: skip

MESHES = ["dp=2,fsdp=2,tp=2", "fsdp=8", "tp=4,sp=2", "dp=2,sp=4"]


def random_batch(rows: int = 8, length: int = 32) -> Batch:
    """Each row packed with two texts and some padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, TINY.vocab, (rows, length + 1)).astype(np.int32)
    half = length // 2
    positions = np.broadcast_to(np.arange(length, dtype=np.int32) % half, (rows, length))
    segments = np.broadcast_to(1 + np.arange(length, dtype=np.int32) // half, (rows, length)).copy()
    segments[:, -3:] = 0
    weights = (segments > 0) * rng.random((rows, length), np.float32)
    return Batch(ids[:, :-1], ids[:, 1:], positions, segments, weights)


@pytest.fixture(scope="module")
def params() -> Params:
    return init(TINY, jax.random.key(0))


@pytest.mark.parametrize("spec", MESHES)
def test_sharded_forward_equals_single_device(params: Params, spec: str) -> None:
    mesh, batch = make_mesh(spec), random_batch()
    assert mesh.size == 8
    call = jax.jit(lambda params, tokens: forward(params, TINY, tokens)[0])
    expected = call(params, batch.tokens)
    cut = jax.device_put(params, shardings(TINY, mesh))
    logits = call(cut, jax.device_put(batch, batch_sharding(mesh)).tokens)
    assert len(logits.sharding.device_set) == 8
    real = batch.segments > 0
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-5, rtol=1e-5)


def test_sharded_blocks_equal_single_device(params: Params) -> None:
    """Attention over more queries than the dense form serves."""
    mesh, batch = make_mesh("dp=2,tp=2,sp=2"), random_batch(rows=2, length=160)
    call = jax.jit(lambda params, tokens: forward(params, TINY, tokens, attention="blockwise")[0])
    expected = call(params, batch.tokens)
    cut = jax.device_put(params, shardings(TINY, mesh))
    logits = call(cut, jax.device_put(batch, batch_sharding(mesh)).tokens)
    real = batch.segments > 0
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", ["dp=2,fsdp=2,tp=2", "fsdp=2,sp=4"])
def test_sharded_training_equals_single_device(params: Params, spec: str) -> None:
    """Two steps: losses, gradients' norms and weights; the weights stay cut as they were."""
    mesh, batch = make_mesh(spec), random_batch()
    optimizer = make_optimizer(OptimizerConfig(warmup=0), 4)
    step = jax.jit(partial(language_step, TINY, optimizer, jnp.float32))

    def two_steps(params: Params, batch: Batch) -> tuple[LanguageState, list]:
        state = LanguageState(jnp.int32(0), params, optimizer.init(params))
        seen = []
        for _ in range(2):
            state, metrics = step(state, batch)
            seen.append(metrics)
        return state, seen

    single, expected = two_steps(params, batch)
    places = shardings(TINY, mesh)
    cut, metrics = two_steps(
        jax.device_put(params, places), jax.device_put(batch, batch_sharding(mesh))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), metrics, expected)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), cut.params, single.params)
    wq, place = cut.params["layers"]["wq"], places["layers"]["wq"]
    assert wq.sharding.is_equivalent_to(place, wq.ndim)


def test_where_weights_lie() -> None:
    places = flatten(shardings(TINY, make_mesh("fsdp=2,tp=2,sp=2")))
    assert list(places) == list(parameters(TINY))
    gathered = ("fsdp", "sp")
    assert places["embed"].spec == PartitionSpec(("tp",), gathered)
    assert places["layers.wo"].spec == PartitionSpec((), gathered, ("tp",))
    assert places["layers.w_up"].spec == PartitionSpec((), ("tp",), gathered)
    assert places["norm"].spec == PartitionSpec(())


def test_what_does_not_divide_stays_whole() -> None:
    """Two key heads over four ways, though their 16 rows would divide; a vocabulary of 65."""
    config = dataclasses.replace(TINY, text_vocab=41)
    places = flatten(shardings(config, make_mesh("tp=4,fsdp=2")))
    shapes = {name: places[name].shard_shape(p.shape) for name, p in parameters(config).items()}
    assert shapes["layers.wq"] == (2, 8, 16)
    assert shapes["layers.wk"] == (2, 16, 16)
    assert shapes["embed"] == (65, 16)


def test_every_weight_of_the_largest_model_is_cut() -> None:
    config = SIZES["65b"]
    for name, place in flatten(shardings(config, make_mesh("fsdp=4,tp=2"))).items():
        shape = parameters(config)[name].shape
        if "norm" not in name:
            assert np.prod(place.shard_shape(shape)) * 8 == np.prod(shape)


def test_meshes() -> None:
    mesh = make_mesh(" dp=1, fsdp=-1, tp=2 ")
    assert dict(mesh.shape) == {"dp": 1, "fsdp": 4, "tp": 2, "sp": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert dict(make_mesh("sp=2", jax.devices()[:2]).shape)["sp"] == 2
    assert make_mesh().size == 1  # on a CPU


def test_auto_takes_all_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chip:
        platform = "tpu"

    monkeypatch.setattr(jax, "make_mesh", lambda sizes, *_, devices, **__: (sizes, len(devices)))
    assert make_mesh("auto", [Chip()] * 4) == ((1, 4, 1, 1), 4)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("fsdp=3,tp=2", "fsdp 3 × tp 2 × sp 1 = 6, but it must be as many as the 8 devices here"),
        ("fsdp=4", "= 4, but it must be as many as the 8"),
        ("dp=-1,tp=3", "fsdp 1 × tp 3 × sp 1 = 3, but it must be a divisor of the 8"),
        ("dp=-1,sp=-1", "dp and sp are -1; only one"),
        ("pp=8", "no axis is called 'pp'; use dp, fsdp, tp, sp"),
        ("fsdp=0", "fsdp is '0', not a count or -1"),
        ("fsdp", "fsdp is ''"),
        ("fsdp=many", "fsdp is 'many'"),
        ("", "no axis is called ''"),
    ],
)
def test_meshes_that_cannot_be_meant(spec: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        make_mesh(spec)
    assert str(caught.value).startswith(f"mesh {spec!r}: ")


def pretend(platform: str, kind: str, count: int) -> Mesh:
    """A mesh of devices that this machine does not have, as far as names go."""
    device = type("Device", (), {"platform": platform, "device_kind": kind})()
    devices = np.full((1, count, 1, 1), device)
    return type("Mesh", (), {"devices": devices, "size": count})()  # type: ignore[return-value]


def test_device_line() -> None:
    assert device_line(pretend("gpu", "NVIDIA H100 80GB", 4)) == "4 × NVIDIA H100 80GB"
    assert device_line(make_mesh()).startswith("cpu, ")
    assert device_line(make_mesh()).endswith(" cores")
    assert device_line(make_mesh("fsdp=8")).endswith(" as 8 devices")


def test_missed_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missed_gpu(make_mesh()) is None  # JAX_PLATFORMS asks for the CPU
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "pip install 'lwm[cuda]'" in missed_gpu(make_mesh())
    assert missed_gpu(pretend("gpu", "NVIDIA H100 80GB", 1)) is None
