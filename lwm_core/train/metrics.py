"""The metrics of a run: a file of JSON lines, and figures of its speed and memory."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO

import jax

from lwm_core import costs
from lwm_core.atomic import refusals, write_text
from lwm_core.config import ModelConfig
from lwm_core.distributed import is_first
from lwm_core.hardware import GPUS, TPUS
from lwm_core.mesh import this_topology


@contextmanager
def open_metrics(path: Path, first: int) -> Iterator[TextIO]:
    """The file of metrics, to go on after step `first`; of several processes the first has it.

    Raises OutputError.
    """
    place = path if is_first() else Path(os.devnull)
    with refusals(path):
        if is_first():
            rewind(path, first)
        lines = place.open("a", encoding="utf-8")
    try:
        yield lines
    finally:
        with refusals(path):  # it tries again to write what could not be written
            lines.close()


def write_line(lines: TextIO, step: int, metrics: Mapping[str, float]) -> None:
    """Write what is known of a step; JSON has no infinities, so such numbers are left out.

    Raises OutputError.
    """
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}
    with refusals(lines.name):
        lines.write(json.dumps({"step": step, **known}) + "\n")
        lines.flush()


def rewind(path: Path, step: int) -> None:
    """Drop what a killed run wrote about steps after `step`, and lines that are damaged."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as metrics:
            kept = [line for line in metrics if _step_of(line) <= step]
        write_text(path, "".join(kept))


def _step_of(line: str) -> float:
    """The step that a line of metrics is about; infinity if it can't be read."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def model_flops(config: ModelConfig, rows: int, length: int) -> float:
    """FLOPs that a model needs for a step on full rows: three times those of a forward pass.

    Twice for matrices that only have adapters that learn. What is made again to save memory does
    not count (Chowdhery et al. 2022, appendix B).
    """
    work = costs.Work(config, "prefill", length, rows)
    attention = costs.attention_flops(work)
    logits = 2 * config.vocab * config.hidden * rows * (length - 1)  # reading makes the last alone
    products = costs.flops(work) - attention + logits
    return 3 * attention + (2 if config.lora else 3) * products


def figures(unit: str, count: int, flops: float, seconds: float) -> dict[str, float]:
    """Speed and memory of a step: `mfu`, the share of the peak, only where that is known.

    `memory` is the peak in bytes, of the fullest device of this process, or of the process itself
    where devices have no memory of their own.
    """
    values = {"seconds": seconds, f"{unit}_per_second": count / seconds, "memory": _peak_memory()}
    if flops and (peak := _peak_flops()):
        values["mfu"] = flops / (seconds * peak)
    return values


@cache
def _peak_flops() -> float:
    """FLOP/s of all devices together by their data sheet; 0 for devices that are in no table."""
    topology = this_topology()
    known = topology.chip.name in TPUS | GPUS
    return topology.chip.flops * topology.count if known else 0.0


def _peak_memory() -> float:
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    of_devices = max(one.get("peak_bytes_in_use", 0) for one in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    return float(of_devices or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
