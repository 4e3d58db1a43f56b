"""One step of a transformer: what it learns from, what learns, and what is left out."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from jax.sharding import PartitionSpec

from lwm_core.config import ModelConfig
from lwm_core.data.packing import Weighted, to_batch
from lwm_core.errors import ConfigError
from lwm_core.execution import Execution
from lwm_core.hardware import multiplies_bfloat16
from lwm_core.mesh import make_mesh
from lwm_core.train.language import (
    LanguageState,
    abstract_state,
    language_loss,
    language_metrics,
    language_step,
    lay_out,
    parted,
)
from lwm_core.train.optimizer import LanguageOptimizerConfig, make_optimizer
from lwm_core.transformer import hidden_states, logits_of
from lwm_core.types import Batch
from lwm_core.weight_tree import Params, flatten, init

TINY = ModelConfig(
    text_vocab=40, vision_vocab=24, vision_codes=16, hidden=16, intermediate=24, layers=2,
    heads=2, kv_heads=2, head_dim=8, max_length=64,
)  # fmt: skip
STEPS = 10
ADAPTERS = ("layers.wq", "*_norm")
"""What learns where not all does: three tensors."""


def on(spec: str, **how: Any) -> Execution:
    """A mesh of as many simulated devices as the text asks for, as for training."""
    count = math.prod(int(part.partition("=")[2]) for part in spec.split(","))
    return Execution(make_mesh(spec, jax.devices()[:count]), whole_weights=False, **how)


HERE = on("sp=1")


def examples() -> list[Weighted]:
    """Twelve, with targets of text and of vision that count differently."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(4, 13, 12)
    return [
        Weighted(rng.integers(0, TINY.vocab, n).tolist(), rng.choice([0.0, 0.5, 1.0], n).tolist())
        for n in sizes
    ]


PARAMS = init(TINY, jax.random.key(0))
BATCH = to_batch([examples()[n : n + 3] for n in range(0, 12, 3)], 36)


def start(settings: LanguageOptimizerConfig, how: Execution) -> LanguageState:
    """The state before the first step, where it belongs."""
    optimizer = make_optimizer(settings, STEPS)
    wanted = abstract_state(TINY, optimizer, how, settings.learns)
    params = jax.tree.map(lambda x, to: x.astype(to.dtype), PARAMS, wanted.params)
    learning, _ = parted(params, settings.learns)
    moments = jax.jit(optimizer.init)(learning)
    state = LanguageState(jnp.int32(0), params, moments)
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, wanted))


@functools.cache
def compiled(settings: LanguageOptimizerConfig, how: Execution) -> Callable:
    optimizer = make_optimizer(settings, STEPS)
    return jax.jit(partial(language_step, TINY, optimizer, how, settings=settings))


@functools.cache
def step(how: Execution = HERE, **values: Any) -> tuple[LanguageState, dict[str, jax.Array]]:
    """After one step with the whole gradient; its rate is not 0."""
    settings = LanguageOptimizerConfig(**{"warmup": 0, "clip": 1e9, **values})
    return compiled(settings, how)(start(settings, how), lay_out(BATCH, how.ways))


def gradients(state: LanguageState) -> Params:
    """Those of the first step: Adam's first moment is a tenth of them."""
    _, (adam, *_) = state.moments.moments
    return jax.tree.map(lambda moment: 10 * moment, adam.mu)


def assert_near(ours: Any, theirs: Any, tolerance: float) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, atol=tolerance, rtol=0), ours, theirs)


def alone(example: Weighted, kind: int) -> Batch:
    """One example in a row, of whose targets only the text (0) or the vision (1) counts."""
    one = to_batch([[example]], 16)
    return one._replace(weights=one.weights * ((one.targets >= TINY.text_vocab) == kind))


def test_packed_equals_separate() -> None:
    """The mean over a packed batch is that over its examples, one by one: so are its gradients."""

    def local(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        (loss, _), gradients = jax.value_and_grad(language_loss, has_aux=True)(
            params, TINY, batch, HERE
        )
        return loss, gradients

    whole = PartitionSpec()
    value = jax.jit(HERE.spread(local, whole, whole))
    halves = []
    for kind in (0, 1):
        parts = [alone(example, kind) for example in examples()]
        total = sum(float(part.weights.sum()) for part in parts)
        shares = [float(part.weights.sum()) / total for part in parts]
        assert 0 < max(shares) < 0.5
        found = [value(PARAMS, part) for part in parts]
        halves += [
            jax.tree.map(lambda x, share=share: share / 2 * np.asarray(x, np.float64), one)
            for share, one in zip(shares, found, strict=True)
        ]
    separate = jax.tree.map(lambda *parts: sum(parts), *halves)
    assert_near(value(PARAMS, BATCH), separate, 1e-6)


@pytest.mark.parametrize(("average", "spec"), [slow("targets", "sp=1"), ("rows", "dp=2,sp=2")])
def test_accumulated_equals_whole(average: str, spec: str) -> None:
    """Whatever the means are over, and on however many devices the rows are."""
    state, expected = step(average=average)
    parts, metrics = step(on(spec), average=average, accumulate=2)
    assert_near(metrics, expected, 2e-6)
    assert_near(gradients(parts), gradients(state), 1e-6)


def test_rows_are_not_targets() -> None:
    """The two means of one batch differ, and with them their gradients."""
    (one, ones), (other, others) = (step(average=a) for a in ("targets", "rows"))
    assert abs(ones["loss"] - others["loss"]) > 1e-3
    assert ones["tokens"] == others["tokens"] == (BATCH.weights > 0).sum()
    assert abs(gradients(one)["embed"] - gradients(other)["embed"]).max() > 1e-4


def test_parts_that_do_not_divide_the_rows() -> None:
    with pytest.raises(ConfigError, match=r"accumulate is 3, which does not divide .* 4 rows"):
        step(accumulate=3)


def test_z_loss_equals_its_formula() -> None:
    """Among the ids of the target's own kind; the metrics are without it."""

    def penalised(params: Params, batch: Batch) -> jax.Array:
        hidden, _ = hidden_states(params, TINY, batch.tokens, HERE)
        logits = logits_of(params, TINY, hidden, HERE)
        vision = batch.targets >= TINY.text_vocab
        loss = 0.0
        for mask, ids in ((~vision, slice(0, 40)), (vision, slice(40, 64))):
            own = logits[..., ids]
            chosen = jnp.where(mask, batch.targets - ids.start, 0)
            lse = jax.nn.logsumexp(own, -1)
            losses = lse - jnp.take_along_axis(own, chosen[..., None], -1)[..., 0]
            weights = mask * batch.weights
            loss += ((losses + 0.3 * lse**2) * weights).sum() / weights.sum() / 2
        return loss

    whole = PartitionSpec()
    expected = jax.jit(HERE.spread(jax.grad(penalised), whole, whole))(PARAMS, BATCH)
    _, plain = step()
    state, metrics = step(on("tp=2,sp=2"), z_loss=0.3)
    assert_near(gradients(state), expected, 2e-6)
    for name in ("loss", "text_loss", "vision_loss"):
        assert float(metrics[name]) == pytest.approx(float(plain[name]), abs=2e-6)


def test_metrics_without_learning() -> None:
    _, expected = step()
    how = on("dp=2,sp=2")
    metrics = jax.jit(partial(language_metrics, TINY, how))(PARAMS, lay_out(BATCH, 2))
    for name, value in metrics.items():
        assert float(value) == pytest.approx(float(expected[name]), abs=2e-6)


def test_what_is_counted() -> None:
    """The targets of each kind in the rows of all devices, though some have none of it."""
    vision = BATCH.targets >= TINY.text_vocab
    first = (BATCH.weights > 0) & ~(vision & (np.arange(4) > 0)[:, None])
    metrics = jax.jit(partial(language_metrics, TINY, on("dp=4")))(
        PARAMS, BATCH._replace(weights=BATCH.weights * first)
    )
    assert metrics["tokens"] == first.sum()
    assert metrics["text_tokens"] == (first & ~vision).sum()
    assert metrics["vision_tokens"] == (first & vision).sum() > 0


@pytest.mark.parametrize(("average", "spec"), [("targets", "sp=1"), ("rows", "dp=2,sp=2")])
def test_metrics_in_parts_equal_those_of_the_whole(average: str, spec: str) -> None:
    how = on(spec)
    whole, parts = (
        measuring(how, accumulate=parts, average=average)(PARAMS, lay_out(BATCH, how.ways))
        for parts in (1, 2)
    )
    assert_near(parts, whole, 2e-6)


def measuring(how: Execution, **values: Any) -> Callable:
    """What measures a batch by settings."""
    settings = LanguageOptimizerConfig(**values)
    return jax.jit(partial(language_metrics, TINY, how, settings=settings))


def test_metrics_in_parts_need_memory_for_one() -> None:
    """As a step does: what fits only so must be measured so too."""
    rows = to_batch([[example] for example in examples()] * 8, 512)
    needed = [
        measuring(HERE, accumulate=parts).lower(PARAMS, rows).compile().memory_analysis()
        for parts in (1, 8)
    ]
    whole, parts = (one.temp_size_in_bytes for one in needed)
    assert parts < whole / 4


def test_only_what_learns_is_changed() -> None:
    """By the gradient that it has where all learns; the rest has neither gradient nor moments."""
    whole, _ = step()
    state, _ = step(on("fsdp=2,tp=2"), learns=ADAPTERS)
    expected = flatten(gradients(whole))
    found = flatten(gradients(state))
    assert found.keys() == {"layers.wq", "layers.attention_norm", "layers.mlp_norm"}
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], atol=1e-6, rtol=0)
    before, after = flatten(PARAMS), flatten(state.params)
    assert {name for name in before if (before[name] != after[name]).any()} == found.keys()


def test_what_does_not_learn_is_kept_in_the_format_of_computation() -> None:
    """That changes nothing, for it would have been rounded so; what learns is float32."""
    half = on("sp=1", dtype=jnp.dtype("bfloat16"))
    state, metrics = step(half, learns=ADAPTERS)
    dtypes = {name: leaf.dtype.name for name, leaf in flatten(state.params).items()}
    assert {name for name, dtype in dtypes.items() if dtype == "float32"} == set(
        flatten(gradients(state))
    )
    whole, expected = step(half)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(whole.params)} == {"float32"}
    for name in ("loss", "text_loss", "vision_loss"):
        assert metrics[name] == expected[name]


def test_names_that_nothing_has() -> None:
    message = r"learns: no tensor is named 'wq'; known are .*layers\.wq"
    with pytest.raises(ConfigError, match=message):
        step(learns=("embed", "wq"))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_left_out(name: str) -> None:
    """Weights and moments stay bit for bit; only the count of steps goes on."""
    settings = LanguageOptimizerConfig(name=name, warmup=0, clip=1e9)  # type: ignore[arg-type]
    before, run = start(settings, HERE), compiled(settings, HERE)
    endless = BATCH.weights.copy()
    endless[0, 2] = np.inf
    state, metrics = run(before, BATCH._replace(weights=endless))
    assert metrics["skipped"] == 1
    assert state.step == 1
    kept, given = ((one.params, one.moments.moments) for one in (state, before))
    for ours, theirs in zip(*map(jax.tree.leaves, (kept, given)), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    state, metrics = run(state, BATCH)
    assert (metrics["skipped"], state.step) == (0, 2)


@pytest.mark.parametrize("spec", ["dp=2", "dp=2,fsdp=2", slow("dp=4")])
def test_whoever_orthogonalizes_all_learn_alike(spec: str) -> None:
    how = on(spec)
    ours, theirs = (step(each, name="muon")[0] for each in (how, HERE))
    assert_near(ours.params, theirs.params, 2e-5)
    before = start(LanguageOptimizerConfig(name="muon"), how)
    for leaf, was in zip(jax.tree.leaves(ours), jax.tree.leaves(before), strict=True):
        assert leaf.sharding.is_equivalent_to(was.sharding, leaf.ndim)


@pytest.mark.parametrize(("spec", "dealt_out"), [("dp=2", True), ("dp=4", False)])
def test_layers_are_dealt_out_to_be_orthogonalized(spec: str, dealt_out: bool) -> None:
    """Two to two devices; four devices do not divide them."""
    settings, how = LanguageOptimizerConfig(name="muon"), on(spec)
    program = compiled(settings, how).lower(start(settings, how), BATCH).compile().as_text()
    of_both = re.search(r"f32\[2,16,16\]\S* dot\(", program)
    assert (of_both is None) == dealt_out


@pytest.mark.skipif(not multiplies_bfloat16(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("spec", ["dp=1", "dp=2"])
def test_products_of_attention_are_in_bfloat16(spec: str) -> None:
    """XLA makes operands float32 where it takes a matrix for a transposed one: half as fast."""
    config = ModelConfig(
        text_vocab=256, hidden=128, intermediate=128, layers=1, heads=2, kv_heads=2, head_dim=64,
        max_length=512,
    )  # fmt: skip
    how = on(spec, dtype=jnp.dtype("bfloat16"))
    optimizer = make_optimizer(LanguageOptimizerConfig(), STEPS)
    rows = jax.ShapeDtypeStruct((2, 512), np.int32)
    batch = Batch(rows, rows, rows, rows, jax.ShapeDtypeStruct((2, 512), np.float32))
    lowered = jax.jit(partial(language_step, config, optimizer, how)).lower(
        abstract_state(config, optimizer, how), batch
    )
    program = lowered.compile().as_text()
    types = dict(re.findall(r"%([\w.-]+) = (\w+)\[", program))
    products = re.findall(r"dot\(%([\w.-]+), %([\w.-]+)\).*/attention/.*while/body", program)
    assert len(products) == 2 + 5  # forward and backward
    assert {types[operand] for pair in products for operand in pair} == {"bf16"}


@pytest.mark.parametrize("learns", [("*",), ADAPTERS])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_where_moments_lie(name: str, learns: tuple[str, ...]) -> None:
    """Each with its weight, also where an optimizer has some of the tensors only."""
    how = on("fsdp=2,tp=2")
    settings = LanguageOptimizerConfig(name=name, learns=learns)  # type: ignore[arg-type]
    state = start(settings, how)  # raises where there is no such place
    places = {leaf.sharding.spec for leaf in jax.tree.leaves(state.moments) if leaf.ndim == 3}
    learning, _ = parted(state.params, learns)
    matrices = [leaf for leaf in jax.tree.leaves(learning) if leaf.ndim == 3]
    assert places == {leaf.sharding.spec for leaf in matrices}
