"""On eight simulated devices: what is cut up computes what one device computes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from jax.sharding import AxisType, Mesh, PartitionSpec

import lwm_core.mesh
import lwm_core.presets
from lwm_core.axes import AXES, MeshSizes, factorisations, misfit, parse_mesh
from lwm_core.config import SIZES, ModelConfig
from lwm_core.costs import Work
from lwm_core.errors import ConfigError
from lwm_core.execution import Execution
from lwm_core.hardware import Topology, this_cpu
from lwm_core.mesh import device_line, make_mesh, missed_gpu, this_topology
from lwm_core.parameters import parameters
from lwm_core.plan import MARGIN, estimate
from lwm_core.presets import plan_here
from lwm_core.train.language import LanguageState, abstract_state, language_step, lay_out
from lwm_core.train.optimizer import OptimizerConfig, make_optimizer
from lwm_core.transformer import forward
from lwm_core.types import Batch
from lwm_core.weight_tree import Params, flatten, init, shardings

TINY = ModelConfig(
    text_vocab=40, vision_vocab=24, vision_codes=16, hidden=32, intermediate=48, layers=2,
    heads=4, kv_heads=2, head_dim=8, max_length=256,
)  # fmt: skip

MESHES = ["dp=2,fsdp=2,tp=2", slow("fsdp=8"), "tp=2,sp=4", slow("dp=2,sp=4")]


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


def on(spec: str, **how: object) -> Execution:
    """A mesh of as many simulated devices as the text asks for."""
    sizes = [int(part.partition("=")[2]) for part in spec.split(",")]
    return Execution(make_mesh(spec, jax.devices()[: math.prod(sizes)]), **how)


@pytest.mark.parametrize("spec", MESHES)
@pytest.mark.parametrize("length", [32, 320], ids=["dense", "blocks"])
def test_sharded_forward_equals_single_device(params: Params, spec: str, length: int) -> None:
    how, batch = on(spec), random_batch(length=length)
    expected = forward(params, TINY, batch.tokens, on("sp=1"))
    cut = jax.device_put(params, shardings(TINY, how))
    logits = forward(cut, TINY, batch.tokens, how)
    assert len(logits.sharding.device_set) == 8
    real = batch.segments > 0
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "remat"),
    [
        ("dp=2,fsdp=2,tp=2", "block"),
        slow("fsdp=2,sp=4", "none"),
        slow("fsdp=2,sp=4", "attention"),
        ("tp=2,sp=4", "full"),
    ],
)
def test_sharded_training_equals_single_device(params: Params, spec: str, remat: str) -> None:
    """Two steps, of rows that no ring divides: losses, gradients' norms and weights.

    Whatever is kept for the backward pass, and the weights stay cut as they were.
    """
    batch = random_batch(rows=4, length=301)
    optimizer = make_optimizer(OptimizerConfig(warmup=0), 4)

    def two_steps(how: Execution) -> tuple[LanguageState, list]:
        step = jax.jit(partial(language_step, TINY, optimizer, how))
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(TINY, optimizer, how))
        state = LanguageState(jnp.int32(0), params, optimizer.init(params))
        state = jax.device_put(state, places)
        seen = []
        for _ in range(2):
            state, metrics = step(state, lay_out(batch, how.ways))
            seen.append(metrics)
        stayed = jax.tree.map(lambda x, to: x.sharding.is_equivalent_to(to, x.ndim), state, places)
        assert all(jax.tree.leaves(stayed))
        return state, seen

    single, expected = two_steps(on("sp=1"))
    cut, metrics = two_steps(on(spec, whole_weights=False, remat=remat))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), metrics, expected)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), cut.params, single.params)


def test_where_weights_lie() -> None:
    """For training the devices of sp share the weights; for writing each has them whole."""
    places = flatten(shardings(TINY, on("fsdp=2,tp=2,sp=2", whole_weights=False)))
    assert set(places) == set(parameters(TINY))
    gathered = ("fsdp", "sp")
    assert places["embed"].spec == PartitionSpec(("tp",), gathered)
    assert places["layers.wo"].spec == PartitionSpec(None, gathered, ("tp",))
    assert places["layers.w_up"].spec == PartitionSpec(None, ("tp",), gathered)
    assert places["norm"].spec == PartitionSpec(None)
    places = flatten(shardings(TINY, on("fsdp=2,tp=2,sp=2")))
    assert places["layers.wo"].spec == PartitionSpec(None, ("fsdp",), ("tp",))


def test_what_does_not_divide_stays_whole(params: Params) -> None:
    """A vocabulary of 65 over two ways; what comes out is the same."""
    config = replace(TINY, text_vocab=41)
    how = on("tp=2,fsdp=2")
    places = flatten(shardings(config, how))
    shapes = {name: places[name].shard_shape(p.shape) for name, p in parameters(config).items()}
    assert shapes["layers.wq"] == (2, 16, 16)
    assert shapes["embed"] == (65, 16)
    params, batch = init(config, jax.random.key(0)), random_batch()
    expected = forward(params, config, batch.tokens, on("sp=1"))
    logits = forward(jax.device_put(params, shardings(config, how)), config, batch.tokens, how)
    real = batch.segments > 0
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-5, rtol=1e-5)


def test_every_weight_of_the_largest_model_is_cut() -> None:
    config = SIZES["65b"]
    for name, place in flatten(shardings(config, on("fsdp=4,tp=2"))).items():
        shape = parameters(config)[name].shape
        if "norm" not in name:
            assert np.prod(place.shard_shape(shape)) * 8 == np.prod(shape)


def test_meshes() -> None:
    mesh = make_mesh(" dp=1, fsdp=-1, tp=2 ")
    assert dict(mesh.shape) == {"dp": 1, "fsdp": 4, "tp": 2, "sp": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert dict(make_mesh("sp=2", jax.devices()[:2]).shape)["sp"] == 2
    assert make_mesh().size == 1  # on a CPU
    assert dict(make_mesh("!1,-1,4,1").shape) == {"dp": 1, "fsdp": 2, "tp": 4, "sp": 1}
    assert dict(make_mesh("1, 1, 2, 4").shape) == {"dp": 1, "fsdp": 1, "tp": 2, "sp": 4}


@pytest.mark.parametrize("spec", ["dp=3", "fsdp=3,tp=2", "tp=7,sp=-1", "5,5,5,5", "dp=9,tp=-1"])
@pytest.mark.parametrize("devices", [1, 8, 10, 64])
def test_what_is_said_to_fit_fits(spec: str, devices: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mesh(spec, devices)
    advice = str(caught.value).rpartition("; ")[2].removesuffix(" would fit")
    numbers = dict(zip(AXES, spec.split(","), strict=False)) if spec[0].isdigit() else {}
    asked = numbers or dict(part.split("=") for part in spec.split(","))
    asked |= dict(part.split("=") for part in advice.split(","))
    assert parse_mesh(",".join(f"{axis}={size}" for axis, size in asked.items()), devices)


def test_factorisations_are_all_and_each_once() -> None:
    """A prime to the power of n goes to four axes in C(n + 3, 3) ways."""
    for devices, ways in ((1, 1), (7, 4), (72, 20 * 10), (1024, 286)):
        found = list(factorisations(devices))
        assert len(set(found)) == len(found) == ways
        assert {mesh.size for mesh in found} == {devices}


def test_meshes_that_do_not_suit_the_model() -> None:
    assert misfit(MeshSizes(fsdp=2, tp=2, sp=2), TINY, batch=4, context=64) is None
    assert "tp = 8 does not divide the heads of the model: 4; 4" in misfit(MeshSizes(tp=8), TINY)
    assert "key and value heads of the model: 2; 2 would" in misfit(MeshSizes(tp=4), TINY)
    assert "dp × fsdp = 4 does not divide the batch of 6; 3 would" in misfit(
        MeshSizes(2, 2), TINY, batch=6
    )
    assert "the feed-forward size of the model: 48; 24 would" in misfit(
        MeshSizes(tp=32), replace(TINY, heads=64, kv_heads=32)
    )
    assert misfit(MeshSizes(sp=8), TINY, context=25) is None  # it is filled up
    assert "sp = 8 shares out a context of 15; 7 is" in misfit(MeshSizes(sp=8), TINY, context=15)


def test_this_topology() -> None:
    """The simulated devices share the machine."""
    whole = this_topology(jax.devices()[:1])
    parts = this_topology()
    assert (whole.count, parts.count, str(parts)) == (1, 8, "8xcpu")
    assert parts.chip.memory == whole.chip.memory // 8
    hosts = this_topology(played("cpu", "cpu", 2, (8,)))
    assert (hosts.count, hosts.hosts) == (8, 2)
    assert hosts.chip.memory == whole.chip.memory // 4


def played(platform: str, kind: str, hosts: int, shape: tuple[int, ...]) -> list[Any]:
    """Devices that this machine does not have."""
    places = list(itertools.product(*map(range, shape)))
    return [
        SimpleNamespace(
            platform=platform,
            device_kind=kind,
            coords=place,
            process_index=index * hosts // len(places),
            memory_stats=lambda: {"bytes_limit": 15 << 30},
        )
        for index, place in enumerate(places)
    ]


def test_this_topology_of_accelerators() -> None:
    cube = this_topology(played("tpu", "TPU v4", 4, (2, 2, 4)))
    assert (str(cube), cube.count, cube.hosts, cube.chip.memory) == ("v4:2x2x4", 16, 4, 15 << 30)
    square = this_topology(played("tpu", "TPU v5 lite", 1, (2, 4, 1)))
    assert (str(square), square.shape) == ("v5e:2x4", (2, 4))
    part = this_topology(played("tpu", "TPU v4", 1, (2, 2, 1))[:3])
    assert (str(part), part.shape) == ("3xv4", ())
    cards = this_topology(played("gpu", "NVIDIA H100 80GB HBM3", 2, (16,)))
    assert (str(cards), cards.hosts, cards.chip.memory) == ("16xh100-80gb", 2, 15 << 30)


def test_the_mesh_of_some_work() -> None:
    """Of simulated devices one is taken, unless more are asked for."""
    work = Work(TINY, "decode", 64)
    assert plan_here("auto", work)[1].size == 1
    made, mesh = plan_here("tp=2,sp=-1", work)
    assert dict(mesh.shape) == made.mesh._asdict() == {"dp": 1, "fsdp": 1, "tp": 2, "sp": 4}
    with pytest.raises(ConfigError, match="tp = 8 does not divide the heads of the model: 4"):
        plan_here("tp=8", work)


@pytest.mark.parametrize(
    ("rows", "parts", "devices"), [(1, 1, 1), (8, 1, 8), (12, 1, 6), (12, 3, 4), (11, 1, 1)]
)
def test_rows_are_shared_out_on_a_cpu(rows: int, parts: int, devices: int) -> None:
    work = Work(TINY, "train", 64, rows, parts=parts)
    made, mesh = plan_here("auto", work)
    assert dict(mesh.shape) == made.mesh._asdict()
    assert (made.mesh.dp, mesh.size) == (devices, devices)


def test_rows_are_not_shared_out_where_copies_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has a copy of all weights, in its part of the memory."""
    work, one = Work(TINY, "train", 64, 8), this_cpu()

    def needed(devices: int) -> float:
        """Memory of the machine that suffices for so many."""
        plan = estimate(work, Topology(one, devices), MeshSizes(dp=devices), "full")
        return devices * plan.memory.total / MARGIN

    for devices in (8, 4, 2, 1):
        memory = int(1.01 * needed(devices))
        part = partial(lambda memory, devices: replace(one, memory=memory // devices), memory)
        for module in (lwm_core.mesh, lwm_core.presets):
            monkeypatch.setattr(module, "this_cpu", part)
        assert plan_here("auto", work)[1].size == devices


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("fsdp=3,tp=2", "fsdp 3 × tp 2 × sp 1 = 6, but there are 8 devices; fsdp=4 would fit"),
        ("fsdp=4", "= 4, but there are 8 devices; fsdp=8 would fit"),
        ("fsdp=3,tp=5", "= 15, but there are 8 devices; fsdp=2,tp=4 would fit"),
        ("dp=-1,tp=3", "fsdp 1 × tp 3 × sp 1 = 3, which does not divide 8; tp=4 would fit"),
        ("1,2,3", "3 numbers; four are dp, fsdp, tp, sp"),
        ("!1,-1,-1,1", "fsdp and tp are -1"),
        ("1,1,0,8", "tp is '0'"),
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
    assert "install lwm with [cuda]" in missed_gpu(make_mesh())
    assert missed_gpu(pretend("gpu", "NVIDIA H100 80GB", 1)) is None
