"""Packed examples train the model as they would alone; and the loss is the original's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from lwm_core.config import ModelConfig
from lwm_core.data.packing import (
    MISSES,
    Weighted,
    fill_rows,
    take_longest,
    to_batch,
    weigh,
)
from lwm_core.execution import Execution
from lwm_core.layers import product
from lwm_core.mesh import make_mesh
from lwm_core.train import loss
from lwm_core.train.language import language_loss
from lwm_core.train.loss import token_losses
from lwm_core.transformer import forward, head_of, hidden_states
from lwm_core.types import Batch
from lwm_core.weight_tree import Params, init

TINY = ModelConfig(
    text_vocab=40, vision_vocab=24, vision_codes=16, hidden=16, intermediate=24, layers=2,
    heads=2, kv_heads=1, head_dim=8, max_length=64,
)  # fmt: skip


def examples(seed: int = 0, longest: int = 30) -> Iterator[Weighted]:
    """Endless random texts of 2 to `longest` tokens, with weights that differ."""
    rng = np.random.default_rng(seed)
    while True:
        size = int(rng.integers(2, longest + 1))
        ids = rng.integers(0, TINY.vocab, size).tolist()
        yield Weighted(ids, rng.choice([0.0, 0.25, 1.0], size).tolist())


HERE = Execution(make_mesh())

# Rows


def unpacked(batch: Batch) -> list[tuple[list[int], list[float]]]:
    """The examples in a batch: tokens, and the weights of all but the first."""
    found = []
    for row in range(len(batch.inputs)):
        for segment in range(1, batch.segments[row].max() + 1):
            (at,) = np.nonzero(batch.segments[row] == segment)
            np.testing.assert_array_equal(np.diff(at), 1)
            np.testing.assert_array_equal(batch.positions[row, at], np.arange(len(at)))
            np.testing.assert_array_equal(batch.inputs[row, at[1:]], batch.targets[row, at[:-1]])
            ids = [*batch.inputs[row, at].tolist(), int(batch.targets[row, at[-1]])]
            found.append((ids, batch.weights[row, at].tolist()))
    return found


def test_nothing_is_lost() -> None:
    """Every example that was taken is in the batch whole, and the rest of it is padding."""
    taken = []

    def noted() -> Iterator[Weighted]:
        for example in examples():
            taken.append(example)
            yield example

    rows = fill_rows(noted(), rows=3, length=64)
    batch = to_batch(rows, 64)
    packed = [(example.ids, example.weights[1:]) for row in rows for example in row]
    assert unpacked(batch) == packed
    refused = [example for example in taken if example not in list(itertools.chain(*rows))]
    assert len(refused) == MISSES
    padding = batch.segments == 0
    assert refused[-1].steps > padding.sum(axis=1).max()
    assert padding.sum() < 0.1 * padding.size
    for array in (batch.inputs, batch.targets, batch.positions, batch.weights):
        assert not array[padding].any()
    assert batch.weights.dtype == np.float32
    assert batch.inputs.dtype == batch.segments.dtype == np.int32


def test_longer_than_a_row_is_passed_over() -> None:
    whole, long = weigh(list(range(9)), 1.0), weigh(list(range(10)), 1.0)
    rows = fill_rows(itertools.chain([long, whole], itertools.repeat(long)), rows=1, length=8)
    assert rows == [[whole]]


@given(sizes=st.lists(st.integers(1, 50), max_size=40), room=st.integers(0, 300))
def test_the_longest_that_fit_are_taken(sizes: list[int], room: int) -> None:
    """Of the rest none would have fitted when a shorter one was taken."""
    waiting = [weigh(list(range(size + 1)), float(at)) for at, size in enumerate(sizes)]
    left = list(waiting)
    taken = take_longest(left, room)
    assert [one for one in waiting if one not in taken] == left
    assert len(taken) + len(left) == len(waiting)
    for one in taken:
        assert one.steps <= room
        assert not any(one.steps < other.steps <= room for other in left)
        room -= one.steps
    assert not any(other.steps <= room for other in left)


def test_weighted_pieces_join() -> None:
    whole = weigh([1, 2], 0.0) + weigh([3], 1.0)
    assert whole == Weighted([1, 2, 3], [0.0, 0.0, 1.0])
    assert whole.steps == 2


# The loss


def sums(params: Params, batch: Batch) -> jax.Array:
    """Of all targets' losses by their weights: what packing must not change."""
    hidden, _ = hidden_states(params, TINY, batch.tokens, HERE)
    losses = token_losses(TINY, head_of(params, TINY, HERE), hidden, batch.targets).losses
    return (losses * batch.weights).sum()


def on_one_device(function: Callable) -> Callable:
    """Functions of one device's arrays need a mesh around them, if only of one device."""
    return jax.jit(HERE.spread(function, PartitionSpec(), PartitionSpec()))


def loss_of(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    return on_one_device(lambda params, batch: language_loss(params, TINY, batch, HERE))(
        params, batch
    )


def test_packed_equals_separate() -> None:
    params = init(TINY, jax.random.key(0))
    several = list(itertools.islice(examples(longest=12), 6))
    together = to_batch([several[:4], several[4:]], 48)
    alone = [to_batch([[example]], 16) for example in several]
    value = on_one_device(jax.value_and_grad(sums))
    packed, packed_gradients = value(params, together)
    separate = [value(params, batch) for batch in alone]
    np.testing.assert_allclose(packed, sum(loss for loss, _ in separate), rtol=1e-6)
    added = jax.tree.map(lambda *parts: sum(parts), *(gradients for _, gradients in separate))
    for gradient, expected in zip(*map(jax.tree.leaves, (packed_gradients, added)), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


def test_loss_is_half_text_and_half_vision() -> None:
    """Each the mean over the weights of its targets, among the ids of its own kind."""
    params = init(TINY, jax.random.key(1))
    batch = to_batch(fill_rows(examples(), rows=2, length=64), 64)
    loss, metrics = loss_of(params, batch)
    logits = np.asarray(forward(params, TINY, batch.tokens, HERE), np.float64)
    expected = []
    for low, high in [(0, 40), (40, 64)]:
        part = logits[..., low:high]
        at = (batch.targets >= low) & (batch.targets < high)
        index = np.clip(batch.targets - low, 0, high - low - 1)[..., None]
        chosen = np.take_along_axis(part, index, axis=-1)
        losses = np.log(np.exp(part).sum(-1)) - chosen[..., 0]
        expected.append((losses * batch.weights * at).sum() / (batch.weights * at).sum())
    np.testing.assert_allclose(metrics["text_loss"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["vision_loss"], expected[1], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(expected) / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_loss_of_one_kind_is_that_alone(kind: str) -> None:
    ids = np.arange(5, 15) if kind == "text" else np.arange(45, 55)
    batch = to_batch([[weigh(ids.tolist(), 1.0)]], 12)
    loss, metrics = loss_of(init(TINY, jax.random.key(1)), batch)
    np.testing.assert_allclose(loss, metrics[f"{kind}_loss"])
    assert np.isfinite(loss)


def test_blocks_of_the_loss_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether their size divides the 64 tokens or not; and none is larger than it may be."""
    params = init(TINY, jax.random.key(2))
    batch = to_batch(fill_rows(examples(), rows=2, length=32), 32)
    whole = on_one_device(jax.value_and_grad(sums))(params, batch)
    sizes: list[int] = []

    def noted(rows: jax.Array, weight: jax.Array) -> jax.Array:
        sizes.append(len(rows))
        return product(rows, weight)

    monkeypatch.setattr(loss, "product", noted)
    for most in (16, 23):
        sizes.clear()
        monkeypatch.setattr(loss, "LOSS_BLOCK", most)
        blocks = on_one_device(jax.value_and_grad(sums))(params, batch)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), blocks, whole)
        assert 0 < max(sizes) <= most


def test_losses_equal_the_original(reference: Path) -> None:
    """Its mean over rows of weighted means, made from our losses of single tokens."""
    with np.load(reference / "loss.npz") as stored:
        golden = dict(stored)
    vocab = golden["logits"].shape[-1]
    config = ModelConfig(
        text_vocab=vocab, hidden=vocab, intermediate=8, layers=1, heads=1, kv_heads=1, head_dim=8,
        max_length=32,
    )  # fmt: skip
    # With the identity as output head the hidden states are the logits.
    losses, *_ = on_one_device(partial(token_losses, config))(
        jnp.eye(vocab), jnp.asarray(golden["logits"]), golden["tokens"]
    )
    golden["none"] = np.ones_like(golden["mask"])
    for case in ("none", "mask", "mask_with_empty_row", "fractional_mask"):
        mask = golden[case]
        rows = (losses * (mask > 0)).sum(-1) / np.maximum(mask.sum(-1), 1e-10)
        np.testing.assert_allclose(rows.mean(), golden[f"{case}.loss"], atol=1e-5, rtol=0)
