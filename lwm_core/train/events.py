"""What training reports: its start, each step, what is measured or written on the way, its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TrainEvent:
    """`kind` at `step` of `total`; metrics are numbers by name, `path` what was written."""

    kind: Literal["start", "step", "evaluation", "sample", "checkpoint", "done"]
    step: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    path: str = ""
