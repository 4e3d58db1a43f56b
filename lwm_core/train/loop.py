"""The loop: batches made ahead, donated steps, atomic checkpoints, a metrics file, events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import absl.logging
import jax
import orbax.checkpoint as ocp

from lwm_core import backend
from lwm_core.errors import OutputError, TrainingError, UsageError
from lwm_core.train.events import TrainEvent
from lwm_core.train.jobs import Job, make_job
from lwm_core.train.recipe import read_recipe

AHEAD = 2
"""Batches that are made while the device works."""


def train(recipe: Mapping[str, Any], *, output: Path, resume: bool = False) -> Iterator[TrainEvent]:
    """Train by a recipe (a TOML document); writes checkpoints, metrics and `output/model`.

    Batches are functions of their number, so the step is the whole data cursor: a resumed run sees
    what an uninterrupted one would have seen. Raises ConfigError for a wrong recipe, UsageError
    when the output holds a run already (and not `resume`), TrainingError when the loss is no
    longer a number, OutputError when nothing can be written.
    """
    checked = read_recipe(recipe)
    backend.prepare()
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns there that saving takes time
    folder = output / "checkpoints"
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise UsageError(f"{output} holds a run already; go on with --resume, or choose -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (output / "metrics.jsonl").open("a+", encoding="utf-8") as metrics:
            job = make_job(checked, output)
            options = ocp.CheckpointManagerOptions(max_to_keep=2)
            with ocp.CheckpointManager(folder.absolute(), options=options) as checkpoints:
                for event in _steps(job, checkpoints, output):
                    if event.kind == "start":
                        _rewind(metrics, event.step)
                    elif event.kind == "step":
                        line = {"step": event.step, **event.metrics}
                        metrics.write(json.dumps(line) + "\n")
                        metrics.flush()
                    yield event
    except OSError as error:
        raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error


def _rewind(metrics: TextIO, step: int) -> None:
    """Drop what a killed run wrote about steps after `step`, and lines that are damaged."""
    metrics.seek(0)
    kept = [line for line in metrics if _step_of(line) <= step]
    metrics.truncate(0)
    metrics.writelines(kept)


def _step_of(line: str) -> float:
    """The step that a line of metrics is about; infinity if it can't be read."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def _steps(job: Job, checkpoints: ocp.CheckpointManager, output: Path) -> Iterator[TrainEvent]:
    state = job.initial_state()
    first = checkpoints.latest_step() or 0
    if first:
        restore = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
        state = checkpoints.restore(first, args=restore)
    yield TrainEvent("start", first, job.steps)
    began = time.perf_counter()
    for step, batch in _batches(job, first):
        state, values = job.step(state, batch)
        numbers = {name: float(value) for name, value in jax.device_get(values).items()}
        now = time.perf_counter()
        unit, count = job.size(batch)
        numbers[f"{unit}_per_second"] = count / (now - began)
        began = now
        if not math.isfinite(numbers["loss"]):
            raise TrainingError(
                f"step {step}: the loss is {numbers['loss']}; lower optimizer.rate and go on with "
                f"--resume from step {checkpoints.latest_step() or 0}"
            )
        yield TrainEvent("step", step, job.steps, numbers)
        if step % job.save_every == 0 or step == job.steps:
            checkpoints.save(step, args=ocp.args.StandardSave(state))
            job.export(state, output / "model")
            checkpoints.wait_until_finished()
            yield TrainEvent("checkpoint", step, job.steps, path=str(output / "model"))
    yield TrainEvent("done", job.steps, job.steps, path=str(output / "model"))


def _batches(job: Job, first: int) -> Iterator[tuple[int, Any]]:
    """Batches from number `first` on with the step that each completes, made in a thread."""
    with ThreadPoolExecutor(1) as maker:
        coming: list[Future] = []
        for index in range(first, job.steps):
            while len(coming) < AHEAD and index + len(coming) < job.steps:
                coming.append(maker.submit(job.batch, index + len(coming)))
            yield index + 1, coming.pop(0).result()
