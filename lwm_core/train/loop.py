"""The loop: batches made ahead, donated steps, atomic checkpoints, a metrics file, events."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lwm_core import backend
from lwm_core.atomic import write_text
from lwm_core.distributed import is_first, wait_for_all
from lwm_core.errors import ConfigError, FormatError, OutputError, TrainingError, UsageError
from lwm_core.train.events import TrainEvent
from lwm_core.train.jobs import Job, make_job
from lwm_core.train.recipe import (
    ImageRecipe,
    LanguageRecipe,
    first_change,
    read_recipe,
    to_document,
)

RECIPE = "recipe.json"
"""The file of an output directory that says by which recipe it came to be."""
METRICS = "metrics.jsonl"
AHEAD = 2
"""Batches that are made while the device works."""


def train(
    recipe: Mapping[str, Any], *, output: Path, resume: bool = False, mesh: str = "auto"
) -> Iterator[TrainEvent]:
    """Train by a recipe (a TOML document); writes checkpoints, metrics and `output/model`.

    Batches are functions of their number, so the step is the whole data cursor: a run resumed by
    the same recipe sees what an uninterrupted one would have seen. Its steps, stages, rates,
    saving and habits of sampling may be changed on the way (`recipe.ADJUSTABLE`); then it goes on
    from the same weights, but along another schedule.

    Several processes that have joined (`distributed.join`) train as one. Each must call this, with
    an output that all of them see; the first writes what is not cut up.

    Raises ConfigError for a wrong recipe and for one that differs in more from the run that it is
    to resume, UsageError when the output holds a checkpoint already (and not `resume`) or none (and
    `resume`), a text can't be read, or a process doesn't see the output of the first, TrainingError
    when no vocabulary can be made of the texts or a metric or a weight is no longer a finite
    number, FormatError when the recipe of the run was damaged, OutputError when nothing can be
    written.
    """
    checked = read_recipe(recipe)
    backend.prepare()
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns there that saving takes time
    folder = output / "checkpoints"
    first = _last_step(folder)
    if first and not resume:
        raise UsageError(f"{output} holds a run already; go on with --resume, or choose -o")
    if resume and not first:
        raise UsageError(
            f"{output} holds no checkpoint to go on from; leave out --resume to begin a run"
        )
    try:
        job = _job(checked, output, mesh, first)
        folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        with ocp.CheckpointManager(folder.absolute(), options=options) as checkpoints:
            if is_first():
                _rewind(output / METRICS, first)
            lines = output / METRICS if is_first() else Path(os.devnull)
            with lines.open("a", encoding="utf-8") as metrics:
                for event in _steps(job, checkpoints, first, output):
                    if event.kind == "step":
                        line = {"step": event.step, **event.metrics}
                        metrics.write(json.dumps(line) + "\n")
                        metrics.flush()
                    yield event
    except OSError as error:
        raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error


def _last_step(folder: Path) -> int:
    """The step of the last whole checkpoint in a folder, 0 without any."""
    steps = [int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal()]
    return max(steps, default=0)


def _job(recipe: ImageRecipe | LanguageRecipe, output: Path, mesh: str, first: int) -> Job:
    """The job of a run that goes on after step `first`, and notes its recipe in the output.

    Without a checkpoint a run begins anew, whatever its recipe was. Raises ConfigError and
    FormatError as `train` does.
    """
    path = output / RECIPE
    if first and path.exists():  # whoever removed a damaged one goes on without
        _compare(recipe, path)
    job = make_job(recipe, output, mesh, begins=not first)
    if is_first():
        output.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(to_document(recipe), indent=2) + "\n")
    wait_for_all("the recipe")
    if not path.exists():
        raise UsageError(f"{output} is not the first process's; choose -o on a disk that all share")
    return job


def _compare(recipe: ImageRecipe | LanguageRecipe, path: Path) -> None:
    """Raise ConfigError naming the first key that may not differ from the recipe in a file."""
    try:
        before = to_document(read_recipe(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError, ConfigError) as error:
        raise FormatError(f"{path}: no recipe: {error}; remove it to go on without") from error
    if key := first_change(before, to_document(recipe)):
        raise ConfigError(
            f"{key}: differs from {path}, by which this run began; put it back, or choose -o"
        )


def _rewind(path: Path, step: int) -> None:
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


def _steps(
    job: Job, checkpoints: ocp.CheckpointManager, first: int, output: Path
) -> Iterator[TrainEvent]:
    """Take the steps after `first`, and save now and then what is worth keeping."""
    if first > job.steps:
        raise ConfigError(f"steps: {job.steps}, but this run is at {first} already; raise them")
    if not first:
        state = job.initial_state()
    else:
        state = checkpoints.restore(first, args=ocp.args.StandardRestore(job.abstract_state()))
    yield TrainEvent("start", first, job.steps)
    if first >= job.steps:  # a run that was killed between its last checkpoint and its model
        job.export(state, output / "model")
    began = time.perf_counter()
    for step, batch in _batches(job, first):
        state, values = job.step(state, batch)
        numbers = {name: float(value) for name, value in jax.device_get(values).items()}
        unit, count = job.size(batch)
        numbers[f"{unit}_per_second"] = count / (time.perf_counter() - began)
        saves = step % job.save_every == 0 or step == job.steps
        lost = [name for name, number in numbers.items() if not math.isfinite(number)]
        # The metrics are of the weights before this step, so those after it are looked at too.
        if saves and not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
            lost.append("a weight")
        if lost:
            raise TrainingError(
                f"step {step}: {lost[0]} is no finite number; lower optimizer.rate and go on with "
                f"--resume from step {checkpoints.latest_step() or 0}"
            )
        yield TrainEvent("step", step, job.steps, numbers)
        if saves:
            checkpoints.save(step, args=ocp.args.StandardSave(state))
            job.export(state, output / "model")
            checkpoints.wait_until_finished()
            yield TrainEvent("checkpoint", step, job.steps, path=str(output / "model"))
        began = time.perf_counter()  # what was written is not charged to the next step
    yield TrainEvent("done", job.steps, job.steps, path=str(output / "model"))


def _batches(job: Job, first: int) -> Iterator[tuple[int, Any]]:
    """Batches from number `first` on with the step that each completes, made in a thread."""
    maker = ThreadPoolExecutor(1)
    coming: list[Future] = []
    try:
        for index in range(first, job.steps):
            while len(coming) < AHEAD and index + len(coming) < job.steps:
                coming.append(maker.submit(job.batch, index + len(coming)))
            yield index + 1, coming.pop(0).result()
    finally:
        maker.shutdown(cancel_futures=True)
