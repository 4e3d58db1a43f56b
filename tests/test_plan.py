"""Plans against counts by hand, the arrays that are really made, and measured programs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm_core import costs, registry, weight_tree
from lwm_core.axes import MeshSizes, factorisations, misfit
from lwm_core.cache import empty_cache
from lwm_core.config import REMATS, SIZES, LoraConfig, ModelConfig
from lwm_core.costs import PREFILL_CHUNK, Sent, Work
from lwm_core.errors import ConfigError
from lwm_core.execution import Execution
from lwm_core.hardware import GIB, SLICES, TPUS, parse_topology, tpu_slice
from lwm_core.mesh import make_mesh
from lwm_core.parameters import adapters, parameters
from lwm_core.plan import (
    MARGIN,
    estimate,
    fits,
    longest_context,
    plan,
    smallest_slice,
    usual_theta,
)
from lwm_core.presets import plan_for

LWM = SIZES["7b"]
MILLION = 1 << 20

TINY = ModelConfig(
    text_vocab=40, vision_vocab=24, vision_codes=16, hidden=32, intermediate=48, layers=2,
    heads=4, kv_heads=2, head_dim=8, max_length=256,
)  # fmt: skip
TIED = dataclasses.replace(TINY, tie_embeddings=True, vision_vocab=0, text_vocab=41, hidden=24)

# Weights


@pytest.mark.parametrize("config", [*SIZES.values(), TINY, TIED])
def test_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    assert costs.count_parameters(config) == weight_tree.count_parameters(config)


@pytest.mark.parametrize("config", [LWM, TINY, TIED])
@pytest.mark.parametrize("spec", ["fsdp=8", "dp=2,tp=2,sp=2", "tp=2,fsdp=4", "sp=8", "dp=8"])
def test_parameters_of_one_device_are_those_of_its_shards(config: ModelConfig, spec: str) -> None:
    sizes = [int(part.partition("=")[2]) for part in spec.split(",")]
    mesh = make_mesh(spec, jax.devices()[: math.prod(sizes)])
    how = Execution(mesh, whole_weights=False)
    places = weight_tree.flatten(weight_tree.shardings(config, how))
    shards = (
        math.prod(places[name].shard_shape(parameter.shape))
        for name, parameter in parameters(config).items()
    )
    assert costs.count_parameters(config, MeshSizes(**mesh.shape)) == sum(shards)


@pytest.mark.parametrize("text", ["dp=1", "tp=2", "fsdp=2,tp=2,sp=2"])
def test_what_adapters_hold(text: str) -> None:
    """Two bytes for each weight that stays, and sixteen for each that learns."""
    config = dataclasses.replace(TINY, lora=LoraConfig(rank=4, matrices=("wq", "w_gate", "wo")))
    count = math.prod(int(axis[-1]) for axis in text.split(","))
    mesh = make_mesh(text, jax.devices()[:count])
    how = Execution(mesh, whole_weights=False)
    places = weight_tree.flatten(weight_tree.shardings(config, how))
    held = {
        name: math.prod(places[name].shard_shape(parameter.shape))
        for name, parameter in parameters(config).items()
    }
    learning = sum(held[name] for name in adapters(config))
    sizes = MeshSizes(**mesh.shape)
    assert costs.count_adapters(config, sizes) == learning
    memory = costs.memory(Work(config, "train", 64, 2), sizes)
    assert memory.optimizer == 2 * memory.gradients == 8 * learning
    assert memory.parameters == 2 * (sum(held.values()) - learning) + 4 * learning


# FLOPs


def test_flops_by_hand() -> None:
    """One layer of 32: q and o 32x32, k and v 16x32, three of 48x32; a head of 64x32."""
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32
    pairs = int(np.tril(np.ones((64, 64))).sum())
    attention = 2 * 3 * pairs * (2 * 32 + 2 * 32)  # layers, rows, scores and sums
    tokens = 3 * 64
    prefill = costs.flops(Work(TINY, "prefill", 64, 3))
    assert prefill == 2 * 2 * layer * tokens + 2 * 64 * 32 * 3 + attention
    decode = costs.flops(Work(TINY, "decode", 64, 3))
    assert decode == 2 * 2 * layer * 3 + 2 * 64 * 32 * 3 + 2 * 3 * 64 * (2 * 32 + 2 * 32)
    train = costs.flops(Work(TINY, "train", 64, 3), "none")
    again = 2 * 48 * 32  # of the feed-forward, whose inner values are never kept
    head = 6 * 64 * 32 * tokens
    assert train == (6 * layer + 2 * again) * 2 * tokens + head + 3.5 * attention


def test_flops_are_about_two_for_each_parameter_and_token() -> None:
    """Short rows; without the tables of ids, of which hardly anything is used."""
    numbers = weight_tree.count_parameters(LWM) - 2 * LWM.vocab * LWM.hidden
    counted = costs.flops(Work(LWM, "prefill", 128, 64))
    assert counted == pytest.approx(2 * numbers * 128 * 64, rel=0.02)


def test_weights_that_are_kept_are_gathered_once() -> None:
    """Seven eighths of them, in bfloat16; otherwise again in the backward pass, or twice more."""
    mesh = MeshSizes(fsdp=8)
    none, *others = (costs.sent(Work(LWM, "train", 128, 8), mesh, r).bytes for r in REMATS)
    tables = 2 * LWM.vocab * LWM.hidden
    gathered = 7 / 8 * 2 * (weight_tree.count_parameters(LWM) - tables)
    more = [(sent - none) / gathered for sent in others]
    assert more == pytest.approx([1, 1, 2], rel=0.01)


def test_what_is_not_kept_is_computed_again() -> None:
    work = Work(LWM, "train", 32768)
    flops = [costs.flops(work, remat) for remat in REMATS]
    kept = [costs.memory(work, MeshSizes(), remat).activations for remat in REMATS]
    assert flops == sorted(flops)
    assert kept == sorted(kept, reverse=True)
    forward = costs.flops(Work(LWM, "prefill", 32768))
    assert flops[2] - flops[0] < forward < flops[3] - flops[0] < 2 * forward


# Memory


@pytest.mark.parametrize(("rows", "slots"), [(1, 256), (3, 100)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_cache_is_as_large_as_the_one_that_is_made(rows: int, slots: int, dtype: str) -> None:
    cache = empty_cache(TINY, rows, slots, jnp.dtype(dtype))
    arrays = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim]
    work = Work(TINY, "decode", slots, rows, cache_dtype=dtype)
    assert costs.memory(work, MeshSizes()).cache == sum(one.nbytes for one in arrays)


def test_the_cache_is_cut_by_rows_heads_and_slots() -> None:
    work = Work(LWM, "decode", MILLION, 4)
    whole = costs.memory(work, MeshSizes()).cache
    keys = whole - 4 * MILLION * 8  # without positions and segments, which heads do not cut
    assert costs.memory(work, MeshSizes(2, 2, 1, 4)).cache == whole // 16
    assert costs.memory(work, MeshSizes(tp=8)).cache == keys // 8 + 4 * MILLION * 8
    small = costs.memory(dataclasses.replace(work, cache_dtype="int8"), MeshSizes()).cache
    assert small == keys // 2 * 132 // 128 + 4 * MILLION * 8  # heads of 128, a scale each


@pytest.mark.parametrize(
    ("mesh", "peak"),
    [
        (MeshSizes(sp=32), 19.37),
        (MeshSizes(sp=64), 10.10),
        (MeshSizes(sp=128), 5.60),
        (MeshSizes(sp=256), 3.32),
        (MeshSizes(tp=4, sp=16), 22.20),
    ],
    ids=str,
)
def test_memory_is_near_what_a_compiler_said(mesh: MeshSizes, peak: float) -> None:
    """Peaks in GiB of the step of training, compiled for TPUs: 7B, a million tokens."""
    total = costs.memory(Work(LWM, "train", MILLION), mesh, "block").total
    assert total / GIB == pytest.approx(peak, rel=0.1)


def test_training_keeps_float32_state() -> None:
    memory = costs.memory(Work(TINY, "train", 64), MeshSizes())
    numbers = weight_tree.count_parameters(TINY)
    assert (memory.parameters, memory.optimizer) == (4 * numbers, 8 * numbers)
    assert memory.gradients == 4 * numbers
    assert memory.activations == 2 * 64 * 32 * 2  # two layers' inputs in bfloat16
    inference = costs.memory(Work(TINY, "decode", 64), MeshSizes())
    assert (inference.parameters, inference.optimizer, inference.activations) == (2 * numbers, 0, 0)


@pytest.mark.parametrize("job", ["train", "prefill", "decode"])
@pytest.mark.parametrize("axis", ["fsdp", "tp", "sp"])
def test_more_devices_never_need_more_each(job: str, axis: str) -> None:
    """From two on: with the first cut come buffers for what is gathered and what travels."""
    for remat, batch in itertools.product(REMATS, (32, 64)):
        work = Work(LWM, job, 131072, batch)
        ways = [MeshSizes(**{axis: 2**power}) for power in range(1, 6)]
        totals = [costs.memory(work, mesh, remat).total for mesh in ways]
        assert totals == sorted(totals, reverse=True)


# Traffic


def test_nothing_is_sent_by_one_device() -> None:
    for job in ("train", "prefill", "decode"):
        assert costs.sent(Work(LWM, job, 4096), MeshSizes()) == Sent(0, 0)


def test_what_travels_the_ring_by_hand() -> None:
    """A prompt's queries in bfloat16 and what they have got in float32: 2 layers, 4 heads of 8.

    They visit both devices and come home; the log-sum-exp of each head comes along.
    """
    length = 4 * PREFILL_CHUNK  # two chunks on each of two devices
    work = Work(TINY, "prefill", length)
    tokens = 2 * PREFILL_CHUNK
    assert costs.sent(work, MeshSizes(sp=2)).bytes == 2 * 2 * tokens * (32 * (2 + 4) + 4 * 4)


def test_gradients_are_summed_over_copies() -> None:
    """Each of two copies sends the float32 gradients of half of the weights, and half the sums."""
    sent = costs.sent(Work(TINY, "train", 64, 2), MeshSizes(dp=2))
    assert sent.bytes == pytest.approx(4 * weight_tree.count_parameters(TINY))


def test_gathered_weights_by_hand() -> None:
    """Forward and backward in bfloat16, gradients in float32; three quarters come from others."""
    matrices = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    table = 64 * 32
    sent = costs.sent(Work(TINY, "train", 64, 4), MeshSizes(fsdp=4))
    assert sent.bytes == 0.75 * (2 * 2 * (matrices + table) + 4 * (matrices + 2 * table))


def test_sums_over_heads_by_hand() -> None:
    """Twice a layer in inference, [1, 64, 32] in bfloat16, sent and received by halves."""
    assert costs.sent(Work(TINY, "prefill", 64), MeshSizes(tp=2)).bytes == 2 * 2 * 64 * 32 * 2


# Plans

HARDWARE = ("v4-8", "v4:4x4x8", "v5e-64", "v5p:8x8x16", "v6e-1", "3x24gb", "8xh100", "16xh200")
JOBS = [
    *itertools.product([LWM], ["train", "prefill", "decode"], [8192, MILLION], [1, 48]),
    *itertools.product([SIZES["3b"], TINY], ["train", "decode"], [3072], [1, 6]),
]


@pytest.mark.parametrize("on", HARDWARE)
def test_what_is_chosen_divides_and_is_the_best(on: str) -> None:
    topology = parse_topology(on)
    for job in JOBS:
        work = Work(*job)
        batch = work.batch if work.job == "train" else None
        unfit = partial(misfit, config=work.config, batch=batch, context=work.context)
        reasons = (unfit(mesh) for mesh in factorisations(topology.count))
        if None not in reasons:
            with pytest.raises(ConfigError, match="no mesh of"):
                plan(work, topology)
            continue
        made = plan(work, topology)
        mesh = made.mesh
        assert mesh.size == topology.count
        assert work.config.heads % mesh.tp == work.config.kv_heads % mesh.tp == 0
        assert not batch or batch % (mesh.dp * mesh.fsdp) == 0
        assert mesh.sp == 1 or work.context >= 2 * mesh.sp
        assert made.fits == fits(work, topology)
        assert made.fits == (made.memory.total <= MARGIN * topology.chip.memory)
        assert made.seconds == max(made.times) == getattr(made.times, made.bound)
        rivals = [MeshSizes(sp=topology.count), MeshSizes(fsdp=topology.count)]
        for rival in rivals:
            if unfit(rival) is None:
                other = plan(work, topology, rival)
                assert made.fits or not other.fits
                assert not other.fits or made.seconds <= 1.05 * other.seconds


def test_well_known_choices() -> None:
    def chosen(*work, on: str) -> MeshSizes:
        return plan(Work(LWM, *work), parse_topology(on)).mesh

    assert chosen("train", 4096, 64, on="8xh100") == MeshSizes(fsdp=8)
    assert chosen("train", MILLION, 1, on="v4-128") == MeshSizes(sp=64)
    assert chosen("decode", 4096, 1, on="8xh100") == MeshSizes(tp=8)
    assert chosen("decode", 4096, 1, on="h100") == MeshSizes()


def test_decoding_takes_as_long_as_reading_the_weights() -> None:
    """A short context on one H100 (3.35 TB/s): 7B in bfloat16, without the embeddings."""
    made = plan(Work(LWM, "decode", 256), parse_topology("h100"))
    weights = 2 * (weight_tree.count_parameters(LWM) - LWM.vocab * LWM.hidden)
    assert made.bound == "memory"
    assert made.seconds == pytest.approx(weights / 3.35e12 / 0.7, rel=0.02)


def test_time_is_work_over_half_of_the_peak() -> None:
    work, topology = Work(LWM, "train", 32768), parse_topology("v5p-8")
    made = estimate(work, topology, MeshSizes(sp=4), "block")
    assert made.times.compute == pytest.approx(made.flops / 4 / (459e12 / 2))
    slow = estimate(dataclasses.replace(work, dtype="float32"), topology, MeshSizes(sp=4), "block")
    assert slow.times.compute == 4 * made.times.compute


@pytest.mark.parametrize("job", ["train", "prefill", "decode"])
@pytest.mark.parametrize("kind", TPUS)
def test_longer_contexts_on_larger_slices(job: str, kind: str) -> None:
    work = Work(LWM, job, 4096)
    lengths = [longest_context(work, tpu_slice(kind, shape)) or 0 for shape in SLICES[kind]]
    assert lengths == sorted(lengths)
    assert lengths[-1] > MILLION


def test_the_longest_context_is_the_longest() -> None:
    work, topology = Work(LWM, "train", 4096), parse_topology("8xh100")
    longest = longest_context(work, topology)
    power = longest.bit_length() - 1
    assert fits(dataclasses.replace(work, context=longest), topology)
    assert longest % (1 << (power - 2)) == 0
    assert not fits(dataclasses.replace(work, context=longest + (1 << (power - 2))), topology)
    assert longest_context(work, parse_topology("24gb")) is None
    whole = MeshSizes(fsdp=8)
    assert longest_context(dataclasses.replace(work, batch=8), topology, whole) < longest


@pytest.mark.parametrize("kind", TPUS)
def test_the_smallest_slice_is_the_smallest(kind: str) -> None:
    work = Work(LWM, "train", MILLION)
    smallest = smallest_slice(work, kind)
    place = SLICES[kind].index(smallest.shape)
    assert plan(work, smallest).fits
    assert not any(fits(work, tpu_slice(kind, shape)) for shape in SLICES[kind][:place])
    assert smallest_slice(dataclasses.replace(work, context=MILLION << 12), kind) is None


def test_meshes_by_name() -> None:
    work, topology = Work(LWM, "train", 32768, 8), parse_topology("8xh100")

    def chosen(spec: str) -> MeshSizes:
        return plan_for(spec, work, topology).mesh

    assert chosen("auto") == plan(work, topology).mesh
    assert chosen("8x24gb") == plan(work, parse_topology("8x24gb")).mesh
    assert chosen("1,-1,4,1") == MeshSizes(1, 2, 4, 1)
    assert chosen("tp=2,sp=-1") == MeshSizes(tp=2, sp=4)
    with pytest.raises(ConfigError, match="for 64 devices, and there are 8"):
        chosen("v4-128")
    with pytest.raises(ConfigError, match="no hardware is called 'h1000'"):
        chosen("h1000")


def test_meshes_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="tp=3,sp=1: tp = 3 does not divide the heads"):
        plan(Work(LWM, "train", 4096), parse_topology("3x24gb"), MeshSizes(tp=3))
    with pytest.raises(ConfigError, match=r"no mesh of 3 devices .* a context of 4:"):
        plan(Work(LWM, "train", 4), parse_topology("3x24gb"))


@pytest.mark.parametrize("card", registry.PUBLISHED, ids=lambda card: card.name)
def test_usual_rotary_bases_are_those_of_the_text_models(card: registry.Card) -> None:
    if card.kind != "vision":  # those keep the base of the longest
        assert usual_theta(card.context) == card.rope_theta
    assert usual_theta(1) == 1e6
    assert usual_theta(1 << 24) == 5e7


def test_planning_needs_the_standard_library_only() -> None:
    program = "import sys, lwm_core.plan; print({'jax', 'numpy'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout == b"set()\n"
