"""Optimizers and schedules by name, from optax; steps that would do harm are left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lwm_core.errors import ConfigError

Method = Literal["adamw", "muon"]
Decay = Literal["all", "matrices"]
Average = Literal["targets", "rows"]

EVERYTHING = ("*",)
"""The pattern of all tensors' names."""
REMEMBERED = 50
"""Of about so many gradients the typical norm is the mean."""
UNJUDGED = 20
"""Before so many updates no norm is known to be typical."""


@dataclass(frozen=True)
class OptimizerConfig:
    """`adamw` for all tensors, or `muon` for the matrices of the layers and Adam for the rest.

    The rate rises linearly from `init_rate` over `warmup` steps and falls by a cosine, to be
    `end_rate` from step `decay_steps` on (0: that of the last step). Gradients are clipped to a
    global norm of `clip`. Weight decay, times the rate, takes `all` tensors, as in the original, or
    the `matrices` of the layers only. A step whose gradient is no finite number changes nothing,
    and with `spike` neither does one whose gradient's norm is so many times the usual.
    """

    name: Method = "adamw"
    rate: float = 1e-3
    init_rate: float = 0.0
    end_rate: float = 1e-4
    warmup: int = 100
    decay_steps: int = 0
    weight_decay: float = 0.0
    decay: Decay = "all"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    spike: float = 0.0
    matrix_rate: float = 0.02

    def __post_init__(self) -> None:
        for name, choices in self._choices().items():
            if getattr(self, name) not in choices:
                known = " or ".join(map(repr, choices))
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose {known}")
        for name, (right, bounds) in self._bounds().items():
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {bounds}")

    def _choices(self) -> dict[str, tuple[str, ...]]:
        """What each of these values may be."""
        return {"name": get_args(Method), "decay": get_args(Decay)}

    def _bounds(self) -> dict[str, tuple[bool, str]]:
        """Whether each of these values is within its bounds, and which they are."""
        return {
            "rate": (0 < self.rate < math.inf, "above 0"),
            "init_rate": (0 <= self.init_rate < math.inf, "at least 0"),
            "end_rate": (0 <= self.end_rate < math.inf, "at least 0"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "decay_steps": (self.decay_steps >= 0, "at least 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "b1": (0 <= self.b1 < 1, "at least 0 and below 1"),
            "b2": (0 <= self.b2 < 1, "at least 0 and below 1"),
            "eps": (0 < self.eps < math.inf, "above 0"),
            "clip": (self.clip > 0, "above 0"),
            "spike": (self.spike == 0 or self.spike > 1, "above 1, or 0 to judge no norm"),
            "matrix_rate": (0 <= self.matrix_rate < math.inf, "at least 0"),
        }


@dataclass(frozen=True)
class LanguageOptimizerConfig(OptimizerConfig):
    """How a transformer learns: also what does, from what loss, and how many rows at a time.

    Tensors whose dotted name no pattern of `learns` matches stay as they are. Gradients are those
    of the whole batch, summed up over `accumulate` parts of it. The loss is the mean over all
    `targets` of a batch or, as in the original, the mean of its `rows`' means; `z_loss` times the
    square of each target's log-normaliser is added (Chowdhery et al. 2022, PaLM).
    """

    learns: tuple[str, ...] = EVERYTHING
    accumulate: int = 1
    average: Average = "targets"
    z_loss: float = 0.0

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {**super()._choices(), "average": get_args(Average)}

    def _bounds(self) -> dict[str, tuple[bool, str]]:
        return {
            **super()._bounds(),
            "learns": (len(self.learns) > 0, "one pattern of names at least"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "z_loss": (0 <= self.z_loss < math.inf, "at least 0"),
        }


class Guarded(NamedTuple):
    """The state of an optimizer that leaves out steps, and what it knows of the last one.

    `moments` are those of what it guards, `updates` (int32) counts the steps that were not left
    out, `typical` (float32) is the mean of the last gradients' norms, a spike counting as no more
    than what was allowed. The last step's learning rate was `rate`, whether or not it was
    `skipped`.
    """

    moments: Any
    updates: jax.Array
    typical: jax.Array
    rate: jax.Array
    skipped: jax.Array


def make_schedule(config: OptimizerConfig, steps: int, factor: float = 1.0) -> optax.Schedule:
    """The learning rate of update n of `steps`, counted from 0, times a factor."""
    steps = config.decay_steps or steps
    return optax.warmup_cosine_decay_schedule(
        factor * config.init_rate,
        factor * config.rate,
        min(config.warmup, steps // 2),
        steps,
        factor * config.end_rate,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer under its schedule over `steps`, guarded.

    Its state is `Guarded`.
    """
    schedule = make_schedule(config, steps)
    decays_all = config.decay == "all"
    if config.name == "muon":
        update = muon(
            make_schedule(config, steps, config.matrix_rate / config.rate),
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            adam_weight_decay=config.weight_decay if decays_all else 0.0,
            adam_learning_rate=schedule,
            muon_weight_dimension_numbers=_orthogonalized,
        )
    else:
        update = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=None if decays_all else _matrices,
        )
    return _guard(optax.chain(optax.clip_by_global_norm(config.clip), update), config, schedule)


def _matrices(params: Any) -> Any:
    """Which tensors are matrices of the layers, stacked `[L, out, in]`."""
    return jax.tree.map(lambda p: p.ndim == 3, params)


def _orthogonalized(params: Any) -> Any:
    """Which tensors Muon (Jordan 2024) takes, and their dimensions; the others go to Adam."""
    dimensions = MuonDimensionNumbers(2, 1)
    return jax.tree.map(lambda matrix: dimensions if matrix else None, _matrices(params))


def _guard(
    inner: optax.GradientTransformation, config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """An optimizer that takes no step by a gradient that is not finite, or is a spike."""

    def init(params: Any) -> Guarded:
        typical, rate = jnp.float32(0), jnp.float32(0)  # buffers of their own, to be donated
        return Guarded(inner.init(params), jnp.int32(0), typical, rate, jnp.bool(False))

    def update(gradients: Any, state: Guarded, params: Any) -> tuple[Any, Guarded]:
        norm = optax.tree.norm(gradients)
        known = state.updates >= UNJUDGED
        limit = jnp.where(known, config.spike * state.typical, jnp.inf) if config.spike else jnp.inf
        skipped = ~jnp.isfinite(norm) | (norm > limit)
        updates, moments = inner.update(gradients, state.moments, params)

        def unless_skipped(new: Any, old: Any) -> Any:
            # Chosen number by number this is part of the update itself: nothing is kept twice.
            return jax.tree.map(lambda new, old: jnp.where(skipped, old, new), new, old)

        # Even a weight of -0.0 is what it was after -0.0 is added.
        updates = jax.tree.map(lambda update: jnp.where(skipped, -0.0, update), updates)
        share = jnp.maximum(1 / (state.updates + 1), 1 / REMEMBERED)
        typical = state.typical + share * (jnp.minimum(norm, limit) - state.typical)
        return updates, Guarded(
            unless_skipped(moments, state.moments),
            state.updates + ~skipped,
            jnp.where(jnp.isfinite(norm), typical, state.typical),
            jnp.asarray(schedule(state.updates), jnp.float32),
            skipped,
        )

    return optax.GradientTransformation(init, update)
