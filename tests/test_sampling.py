"""Drawing tokens: each step against its definition in numpy, and draws against probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm_core.errors import UsageError
from lwm_core.kernels.dense import MASKED
from lwm_core.sampling import (
    Sampling,
    _reached,
    argmax,
    draw_tokens,
    guide,
    keep_top_k,
    keep_top_p,
)

LOGITS = np.random.default_rng(0).normal(0, 2, (5, 40)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def kept(logits: jax.Array) -> np.ndarray:
    return np.asarray(logits) > MASKED / 2


@pytest.mark.parametrize("k", [1, 3, 39])
def test_top_k(k: int) -> None:
    best = np.argsort(-LOGITS, axis=-1)[:, :k]
    expected = np.zeros(LOGITS.shape, bool)
    np.put_along_axis(expected, best, True, axis=-1)
    result = keep_top_k(jnp.asarray(LOGITS), k)
    assert np.array_equal(kept(result), expected)
    assert np.array_equal(np.asarray(result)[expected], LOGITS[expected])


@pytest.mark.parametrize("k", range(1, 10))
def test_top_k_of_all_kinds_of_numbers(k: int) -> None:
    """The k-th of them is found exactly, whatever their signs and sizes; what equals it stays."""
    row = np.array([0.0, -0.0, 1e-37, -1e-37, 3e38, -3e38, -2.5, -2.5, 7.0, MASKED], np.float32)
    logits = np.stack([row, -row[::-1], np.roll(row, 3) + 1])
    least = -np.sort(-logits, axis=-1)[:, k - 1 : k]
    result = np.asarray(keep_top_k(jnp.asarray(logits), k))
    assert np.array_equal(result, np.where(logits < least, np.float32(MASKED), logits))


def test_the_first_of_the_highest() -> None:
    row = np.array([-3e38, -2.5, -0.0, 0.0, 1e-37, 7.0, 7.0, 3e38, np.inf], np.float32)
    rows = np.stack(
        [row, -row, row[::-1], *(np.minimum(row, x) for x in (7, 0, -0.0, -1, -np.inf))]
    )
    np.testing.assert_array_equal(argmax(jnp.asarray(rows)), rows.argmax(axis=-1))


@pytest.mark.parametrize("k", [0, 40, 8192])
def test_top_k_that_keeps_all(k: int) -> None:
    assert np.array_equal(keep_top_k(jnp.asarray(LOGITS), k), LOGITS)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_p(p: float) -> None:
    result = kept(keep_top_p(jnp.asarray(LOGITS), p))
    for row, probabilities in zip(result, softmax(LOGITS.astype(np.float64)), strict=True):
        ordered = np.argsort(-probabilities)
        needed = np.searchsorted(np.cumsum(probabilities[ordered]), p) + 1
        assert set(np.flatnonzero(row)) == set(ordered[:needed])


def test_top_p_of_one_keeps_all() -> None:
    assert np.array_equal(keep_top_p(jnp.asarray(LOGITS), 1.0), LOGITS)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 5.0])
def test_guidance(guidance: float) -> None:
    conditional, unconditional = LOGITS[:2], LOGITS[2:4]
    expected = unconditional + guidance * (conditional - unconditional)
    assert guide(jnp.asarray(LOGITS[:4]), guidance) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(top_k=1)])
def test_greedy(sampling: Sampling) -> None:
    drawn = draw_tokens(jnp.asarray(LOGITS), sampling.numbers, jax.random.key(0))
    assert drawn.dtype == jnp.int32
    assert np.array_equal(drawn, LOGITS.argmax(axis=-1))


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(), 4),
        (Sampling(temperature=0.5), 4),
        (Sampling(temperature=2.0, top_k=3), 3),
        (Sampling(temperature=0.7, top_p=0.8), 2),
    ],
)
def test_draws_follow_the_probabilities(sampling: Sampling, allowed: int) -> None:
    logits = np.log(np.array([0.1, 0.5, 0.25, 0.15], np.float32))
    rows = jnp.asarray(np.tile(logits, (20_000, 1)))
    drawn = draw_tokens(rows, sampling.numbers, jax.random.key(1))
    expected = softmax(logits / sampling.temperature)
    expected[np.argsort(-expected)[allowed:]] = 0
    expected /= expected.sum()
    shares = np.bincount(np.asarray(drawn), minlength=4) / len(drawn)
    assert shares == pytest.approx(expected, abs=0.02)  # six standard deviations
    assert (shares[expected == 0] == 0).all()


def test_rows_draw_by_themselves() -> None:
    def draw(rows: np.ndarray) -> jax.Array:
        return draw_tokens(jnp.asarray(rows), Sampling().numbers, jax.random.key(2))

    assert np.array_equal(draw(LOGITS)[:2], draw(LOGITS[:2]))
    same = draw(np.zeros((64, 40), np.float32))
    assert len(set(np.asarray(same).tolist())) > 10


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
    ],
)
def test_values_that_can_not_be(values: dict[str, float], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [300, 5000])
def test_draws_among_many(size: int) -> None:
    """Those of every part of a large vocabulary follow the probabilities, and no others come."""
    random = np.random.default_rng(1)
    logits = np.where(random.random(size) < 0.3, random.normal(0, 1, size), MASKED)
    rows = jnp.asarray(np.tile(logits.astype(np.float32), (20_000, 1)))
    drawn = np.asarray(draw_tokens(rows, Sampling().numbers, jax.random.key(3)))
    expected = softmax(logits)
    assert (expected[drawn] > 0).all()
    parts = np.arange(size) * 10 // size
    for labels in (parts, np.arange(size) % 10):
        shares = np.bincount(labels[drawn], minlength=10) / len(drawn)
        assert shares == pytest.approx(np.bincount(labels, expected, minlength=10), abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.5, 1 - 2**-23])
def test_a_weight_of_zero_is_never_reached(share: float) -> None:
    weights = np.zeros(1000, np.float32)
    weights[[7, 400, 998]] = 0.1, 1e-7, 0.3
    reached = int(_reached(jnp.asarray(weights), jnp.float32(share)))
    assert reached == (7 if share == 0 else 998)


def test_numbers_do_not_make_new_programs() -> None:
    draw = jax.jit(draw_tokens)
    for sampling in (Sampling(), Sampling(0.5, top_k=2, seed=2**40), Sampling(0, top_p=0.5)):
        draw(jnp.asarray(LOGITS), sampling.numbers, jax.random.key(0))
    assert draw._cache_size() == 1
