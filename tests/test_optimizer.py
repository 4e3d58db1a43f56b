"""The optimizers and their schedule, written out in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lwm_core.errors import ConfigError
from lwm_core.train.optimizer import (
    UNJUDGED,
    Guarded,
    LanguageOptimizerConfig,
    OptimizerConfig,
    make_optimizer,
    make_schedule,
)


def rate_at(step: int, peak: float, end: float, warmup: int, steps: int) -> float:
    """Up in a line, down in half a cosine."""
    if step < warmup:
        return peak * step / warmup
    done = min((step - warmup) / (steps - warmup), 1.0)
    return end + (peak - end) * (1 + np.cos(np.pi * done)) / 2


def tree(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "matrix": rng.standard_normal((2, 4, 3)).astype(np.float32),
        "norm": rng.standard_normal(5).astype(np.float32),
    }


@pytest.mark.parametrize(("b1", "b2", "eps"), [(0.9, 0.95, 1e-8), (0.8, 0.99, 1e-3)])
def test_adamw_equals_its_formulas(b1: float, b2: float, eps: float) -> None:
    """Loshchilov and Hutter 2019: clipped gradients, corrected moments, decay by the rate."""
    config = OptimizerConfig(
        rate=0.01, end_rate=0.001, warmup=2, weight_decay=0.1, clip=1.0, b1=b1, b2=b2, eps=eps
    )
    optimizer = make_optimizer(config, steps=8)
    params = tree(0)
    state = optimizer.init(params)
    ours, theirs = params, {name: value.astype(np.float64) for name, value in params.items()}
    first, second = ({name: 0.0 for name in params} for _ in range(2))
    update = jax.jit(optimizer.update)
    for step in range(10):
        gradients = tree(step + 1)
        # The third step's gradients are too small to be clipped.
        gradients = {name: value / (100 if step == 2 else 1) for name, value in gradients.items()}
        updates, state = update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in gradients.values()))
        rate = rate_at(step, 0.01, 0.001, 2, 8)
        assert float(state.rate) == pytest.approx(rate)
        for name, value in gradients.items():
            clipped = value / max(norm, 1.0)
            first[name] = b1 * first[name] + (1 - b1) * clipped
            second[name] = b2 * second[name] + (1 - b2) * clipped**2
            mean = first[name] / (1 - b1 ** (step + 1))
            spread = np.sqrt(second[name] / (1 - b2 ** (step + 1))) + eps
            theirs[name] = theirs[name] - rate * (mean / spread + 0.1 * theirs[name])
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
        if step == 0:
            np.testing.assert_array_equal(ours["norm"], params["norm"])


def test_a_schedule_of_other_lengths_than_the_run() -> None:
    """It begins where it is told to, and stays at its end."""
    config = OptimizerConfig(rate=0.1, init_rate=0.02, end_rate=0.01, warmup=4, decay_steps=12)
    schedule, half = (make_schedule(config, 1000, factor) for factor in (1.0, 0.5))
    up = [0.02, 0.04, 0.06, 0.08]
    expected = [*up, *(rate_at(step, 0.1, 0.01, 4, 12) for step in range(4, 20))]
    np.testing.assert_allclose([schedule(n) for n in range(20)], expected, rtol=1e-5)
    np.testing.assert_allclose([half(n) for n in range(20)], np.array(expected) / 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_decays(name: str) -> None:
    """By a tenth of the rate; without the gradients' part, which is that of no decay."""
    rates = {"rate": 0.01, "matrix_rate": 0.01, "warmup": 0, "end_rate": 0.01}
    params, gradients = tree(0), tree(1)

    def after_one(**settings: Any) -> dict[str, jax.Array]:
        optimizer = make_optimizer(OptimizerConfig(name=name, **rates, **settings), 4)  # type: ignore[arg-type]
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    without = after_one()
    for decay, decaying in (("all", {"matrix", "norm"}), ("matrices", {"matrix"})):
        updates = after_one(weight_decay=0.1, decay=decay)
        for tensor, weight in params.items():
            expected = -0.01 * 0.1 * weight if tensor in decaying else 0 * weight
            np.testing.assert_allclose(updates[tensor] - without[tensor], expected, atol=1e-7)


def test_warmup_takes_at_most_half_of_a_short_run() -> None:
    """One step of Adam moves each number by the rate, so the steps show the schedule."""
    optimizer = make_optimizer(OptimizerConfig(rate=0.1, end_rate=0.0, warmup=100, clip=1e9), 6)
    params = {"norm": jnp.zeros(1)}
    state = optimizer.init(params)
    moved = []
    for _ in range(7):
        updates, state = optimizer.update({"norm": jnp.ones(1)}, state, params)
        moved.append(-float(updates["norm"][0]))
    expected = [rate_at(step, 0.1, 0.0, 3, 6) for step in range(7)]
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-9)


def test_muon_turns_matrices_and_leaves_the_rest_to_adam() -> None:
    """Its updates of stacked matrices are near to orthogonal, each layer by itself."""
    optimizer = make_optimizer(
        OptimizerConfig(name="muon", rate=0.01, matrix_rate=0.02, warmup=0, clip=1e9), 10
    )
    params, gradients = tree(0), tree(1)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for layer in np.asarray(updates["matrix"]):
        values = np.linalg.svd(layer, compute_uv=False)
        assert values.min() > 0.5 * values.max() > 0
    steps = -updates["norm"] / np.sign(gradients["norm"])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert 0.01 <= steps[0] < 0.02


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e38])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, wrong: float) -> None:
    """Not one bit, signs of zeros included; the last one's squares alone are too large."""
    optimizer = make_optimizer(OptimizerConfig(name=name, warmup=0, weight_decay=0.1), 10)  # type: ignore[arg-type]
    step = jax.jit(optimizer.update)
    params = tree(0)
    params["norm"][:2] = -0.0, 0.0
    _, state = step(tree(1), optimizer.init(params), params)
    harmful = tree(2)
    harmful["matrix"][1, 2, 0] = wrong
    updates, skipped = step(harmful, state, params)
    assert bits(optax.apply_updates(params, updates)) == bits(params)
    assert bits(skipped.moments) == bits(state.moments)
    assert (bool(state.skipped), bool(skipped.skipped)) == (False, True)
    assert int(skipped.updates) == int(state.updates) == 1
    assert float(skipped.typical) == float(state.typical)
    # And what comes next is what would have come.
    assert bits(step(tree(3), skipped, params)) == bits(step(tree(3), state, params))


def test_spikes_are_left_out() -> None:
    """Once it is known what is usual; a spike that stays is what is usual in the end."""
    optimizer = make_optimizer(OptimizerConfig(warmup=0, spike=5.0), 1000)
    step = jax.jit(optimizer.update)
    params = {"weight": jnp.zeros(4)}

    def skips(norm: float, state: Guarded) -> tuple[bool, Guarded]:
        _, state = step({"weight": jnp.array([norm, 0, 0, 0])}, state, params)
        return bool(state.skipped), state

    state = optimizer.init(params)
    for index in range(UNJUDGED):
        skipped, state = skips(100.0 if index == 0 else 2.0, state)
        assert not skipped
    mean = (100 + 2 * (UNJUDGED - 1)) / UNJUDGED
    assert float(state.typical) == pytest.approx(mean)
    assert skips(4.9 * mean, state)[0] is False
    skipped, after = skips(5.1 * mean, state)
    assert skipped
    assert bits(after.moments) == bits(state.moments)
    share = 1 / (UNJUDGED + 1)
    assert float(after.typical) == pytest.approx((1 - share) * mean + share * 5 * mean)
    for _ in range(50):
        skipped, state = skips(100 * mean, state)
    assert not skipped


def test_no_norm_is_judged_without_being_asked_to() -> None:
    optimizer = make_optimizer(OptimizerConfig(), 10)
    params = {"weight": jnp.zeros(1)}
    state = optimizer.init(params)
    for norm in (*[1.0] * (UNJUDGED + 1), 1e6):
        _, state = optimizer.update({"weight": jnp.full(1, norm)}, state, params)
        assert not state.skipped


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "sgd"}, "name is 'sgd'; choose 'adamw' or 'muon'"),
        ({"decay": "norms"}, "decay is 'norms'; choose 'all' or 'matrices'"),
        ({"average": "tokens"}, "average is 'tokens'; choose 'targets' or 'rows'"),
        ({"spike": 0.5}, "spike is 0.5; it must be above 1, or 0 to judge no norm"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"learns": ()}, r"learns is \(\); it must be one pattern of names at least"),
        ({"z_loss": -1.0}, "z_loss is -1.0; it must be at least 0"),
        ({"decay_steps": -1}, "decay_steps is -1; it must be at least 0"),
    ],
)
def test_settings_out_of_bounds(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        LanguageOptimizerConfig(**values)
