"""Optimizers and schedules by name, from optax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lwm_core.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """`adamw` for all tensors, or `muon` for the matrices of the layers and Adam for the rest.

    The rate rises linearly over `warmup` steps and falls by a cosine to `end_rate` at the end.
    """

    name: Literal["adamw", "muon"] = "adamw"
    rate: float = 1e-3
    end_rate: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.0
    b2: float = 0.95
    clip: float = 1.0
    matrix_rate: float = 0.02

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            raise ConfigError(f"name is {self.name!r}; choose 'adamw' or 'muon'")
        checks = {
            "rate": (0 < self.rate < math.inf, "above 0"),
            "end_rate": (0 <= self.end_rate < math.inf, "at least 0"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "b2": (0 <= self.b2 < 1, "at least 0 and below 1"),
            "clip": (self.clip > 0, "above 0"),
            "matrix_rate": (0 <= self.matrix_rate < math.inf, "at least 0"),
        }
        for name, (right, bounds) in checks.items():
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {bounds}")


def _matrices(params: Any) -> Any:
    """Which tensors Muon (Jordan 2024) takes: stacked `[L, out, in]`; the others go to Adam."""
    return jax.tree.map(lambda p: MuonDimensionNumbers(2, 1) if p.ndim == 3 else None, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer under its schedule over `steps`."""

    def schedule(peak: float) -> optax.Schedule:
        end = peak * config.end_rate / config.rate
        warmup = min(config.warmup, steps // 2)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end)

    if config.name == "muon":
        update = muon(
            schedule(config.matrix_rate),
            weight_decay=config.weight_decay,
            adam_b2=config.b2,
            adam_learning_rate=schedule(config.rate),
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        update = optax.adamw(schedule(config.rate), b2=config.b2, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), update)
