"""The optimizers and their schedule, written out in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lwm_core.errors import ConfigError
from lwm_core.train.optimizer import OptimizerConfig, make_optimizer


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


def test_adamw_equals_its_formulas() -> None:
    """Loshchilov and Hutter 2019: clipped gradients, corrected moments, decay by the rate."""
    config = OptimizerConfig(rate=0.01, end_rate=0.001, warmup=2, weight_decay=0.1, clip=1.0)
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
        for name, value in gradients.items():
            clipped = value / max(norm, 1.0)
            first[name] = 0.9 * first[name] + 0.1 * clipped
            second[name] = 0.95 * second[name] + 0.05 * clipped**2
            mean = first[name] / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(second[name] / (1 - 0.95 ** (step + 1))) + 1e-8
            theirs[name] = theirs[name] - rate * (mean / spread + 0.1 * theirs[name])
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
        if step == 0:
            np.testing.assert_array_equal(ours["norm"], params["norm"])


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


def test_unknown_optimizer() -> None:
    with pytest.raises(ConfigError, match="choose 'adamw' or 'muon'"):
        OptimizerConfig(name="sgd")  # type: ignore[arg-type]
