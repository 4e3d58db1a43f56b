"""A training that computes nothing: for what happens between steps, and for its ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from recipes import IMAGE

from lwm_core.train import loop

TICKING = {**IMAGE, "steps": 4, "save_every": 2}
"""The recipe of a clockwork."""


class Clockwork:
    """A job whose clock goes by one in a step, by 100 when it is written, and never otherwise.

    Its weights and some of its metrics are what they are told to be; its `trouble` is raised when
    it evaluates.
    """

    steps = 4
    evaluate_every = sample_every = 0

    def __init__(self) -> None:
        self.now = 0.0
        self.values: dict[int, dict[str, float]] = {}
        self.weights: dict[int, float] = {}
        self.exports = 0
        self.trouble: Exception | None = None

    def initial_state(self) -> dict[str, jax.Array]:
        return {"step": jnp.int32(0), "weight": jnp.zeros(2)}

    def abstract_state(self) -> dict[str, jax.ShapeDtypeStruct]:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            self.initial_state(),
        )

    def batches(self, first: int, cursors: Sequence[dict]) -> Iterator[tuple[int, dict]]:
        assert list(cursors) == ([{"next": first}] if first else [])
        for index in itertools.count(first):
            yield index, {"next": index + 1}

    def step(self, state: dict[str, jax.Array], batch: int) -> tuple[dict, dict]:
        self.now += 1
        step = batch + 1
        weight = jnp.array([0.0, self.weights.get(step, 0.0)])
        metrics = {"loss": 1.0, "gradient_norm": 2.0, **self.values.get(step, {})}
        return {"step": jnp.int32(step), "weight": weight}, metrics

    def size(self, batch: int) -> tuple[str, int]:
        return "things", 6

    def flops(self, batch: int) -> float:
        return 5e9

    def evaluate(self, state: dict[str, jax.Array]) -> dict[str, float]:
        self.now += 100
        if self.trouble:
            raise self.trouble
        return {"loss": float(state["step"]), "lost": float("nan")}

    def samples(self, state: dict[str, jax.Array], folder: Path, step: int) -> None:
        (folder / f"{step:08d}").mkdir(parents=True, exist_ok=True)

    def fingerprint(self) -> dict[str, str]:
        return {"the data": "clockwork"}

    def export(self, state: dict[str, jax.Array], directory: Path) -> None:
        self.now += 100
        self.exports += 1


def wound_up(monkeypatch: pytest.MonkeyPatch, job: Clockwork | None = None) -> Clockwork:
    """A clockwork, by default the plain one, that is trained instead of what recipes say."""
    job = job or Clockwork()
    monkeypatch.setattr(loop, "make_job", lambda recipe, output, mesh, begins: job)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: job.now))
    return job
