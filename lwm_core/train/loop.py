"""The loop: steps, what is saved and measured between them, and how a run ends."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lwm_core import backend
from lwm_core.atomic import writing_alone
from lwm_core.distributed import is_first, on_first
from lwm_core.errors import (
    ConfigError,
    TrainingError,
    TrainingInterrupted,
    UsageError,
)
from lwm_core.hardware import cores
from lwm_core.train import agreement
from lwm_core.train.checkpoints import Checkpoints, last_step
from lwm_core.train.events import TrainEvent
from lwm_core.train.jobs import Job, make_job
from lwm_core.train.metrics import figures, open_metrics, write_line
from lwm_core.train.prefetch import prefetch
from lwm_core.train.provenance import compare_origin, compare_recipe, note
from lwm_core.train.recipe import ImageRecipe, LanguageRecipe, read_recipe, to_document
from lwm_core.train.signals import Wishes, listening

METRICS = "metrics.jsonl"
SAMPLES = "samples"


def train(
    recipe: Mapping[str, Any], *, output: Path, resume: bool = False, mesh: str = "auto"
) -> Iterator[TrainEvent]:
    """Train by a recipe (a TOML document); writes checkpoints, metrics and `output/model`.

    A run resumed by the same recipe sees what an uninterrupted one would have seen. Its steps,
    stages, rates, saving and habits of sampling may be changed on the way (`recipe.ADJUSTABLE`);
    then it goes on from the same weights, but along another schedule. The mesh and the number of
    processes may be others. Without a checkpoint to `resume` from the run begins at step 0, so that
    whoever starts it again and again can do so by the same call.

    SIGTERM and SIGINT (Ctrl-C) save a checkpoint after what is under way, a step, an evaluation or
    samples, and raise TrainingInterrupted; SIGUSR1 writes the model directory.

    Several processes that have joined (`distributed.join`) train as one. Each must call this, with
    an output that all of them see; the first writes what is not cut up.

    Raises ConfigError for a wrong recipe and for one that differs in more from the run that it is
    to resume, UsageError when the output holds a checkpoint already (and not `resume`), while
    another run writes to it, when a text can't be read, or a process doesn't see the output of the
    first, ClusterError when the processes don't mean the same run, TrainingError when no vocabulary
    can be made of the texts, a batch can't be made, what is measured on can't be read, a metric or
    a weight is no longer a finite number or too many steps in a row are skipped, FormatError when
    the recipe or the checkpoint of the run was damaged, DoesNotFit when memory can't hold that,
    OutputError when nothing can be written.
    """
    checked = read_recipe(recipe)
    backend.prepare(cpu_devices=cores() if mesh == "auto" else None)
    with _alone(output):
        yield from _trained(checked, output, resume, mesh)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep other runs out of an output; of several processes the first sees to it."""
    with ExitStack() as held:
        on_first("the output", lambda: held.enter_context(writing_alone(output)))
        yield


def _trained(
    recipe: ImageRecipe | LanguageRecipe, output: Path, resume: bool, mesh: str
) -> Iterator[TrainEvent]:
    """Train in an output where no other run writes."""
    first = last_step(output / "checkpoints")
    agreement.check(
        {
            **agreement.versions(),
            **agreement.facts_of(to_document(recipe), "the recipe's"),
            "the last checkpoint": str(first),
            "--mesh": mesh,
        }
    )
    if first and not resume:
        raise UsageError(f"{output} holds a run already; go on with --resume, or choose -o")
    job = _job(recipe, output, mesh, first)
    keeps = {"keep": recipe.keep, "keep_every": recipe.keep_every}
    with (
        listening() as wishes,  # also while the last checkpoint is waited for
        Checkpoints(output / "checkpoints", **keeps) as checkpoints,
        open_metrics(output / METRICS, first) as lines,
    ):
        _forget_rounds(output / SAMPLES, first)
        for event in _Run(recipe, job, output, checkpoints, wishes).events(first):
            if event.kind in ("step", "evaluation"):
                write_line(lines, event.step, event.metrics)
            yield event


def _forget_rounds(samples: Path, step: int) -> None:
    """Remove the samples of steps after `step`, which a run that was killed or another has left."""
    if is_first():
        for place in samples.glob("*"):
            if place.name.isdecimal() and int(place.name) > step:
                shutil.rmtree(place, ignore_errors=True)


def _job(recipe: ImageRecipe | LanguageRecipe, output: Path, mesh: str, first: int) -> Job:
    """The job of a run that goes on after step `first`, which its output then tells.

    Without a checkpoint a run begins anew, whatever its recipe was. Raises what `train` does.
    """
    if first:
        compare_recipe(recipe, output)
    job = make_job(recipe, output, mesh, begins=not first)
    fingerprint = job.fingerprint()
    agreement.check(fingerprint)
    if first:
        compare_origin(fingerprint, output)
    note(recipe, fingerprint, output)
    return job


@dataclass
class _Run:
    """A run under way; `skipped` steps in a row up to now."""

    recipe: ImageRecipe | LanguageRecipe
    job: Job
    output: Path
    checkpoints: Checkpoints
    wishes: Wishes
    skipped: int = 0

    def events(self, first: int) -> Iterator[TrainEvent]:
        """Take the steps after `first`, and do what is due between them."""
        job, model = self.job, self.output / "model"
        if first > job.steps:
            raise ConfigError(f"steps: {job.steps}, but this run is at {first} already; raise them")
        if first:
            state, cursors = self.checkpoints.restore(first, job.abstract_state())
        else:
            state, cursors = job.initial_state(), []
        self.checkpoints.is_under_way = True
        yield TrainEvent("start", first, job.steps)
        if first >= job.steps:  # a run that was killed between its last checkpoint and its model
            job.export(state, model)
        with closing(prefetch(job.batches(first, cursors), job.steps - first)) as batches:
            began = time.perf_counter()
            for step, (batch, cursor) in enumerate(batches, first + 1):
                state, values = job.step(state, batch)
                metrics = {name: float(value) for name, value in jax.device_get(values).items()}
                seconds = time.perf_counter() - began
                metrics |= figures(*job.size(batch), job.flops(batch), seconds)
                self._check(step, metrics)
                yield TrainEvent("step", step, job.steps, metrics)
                yield from self._between(step, state, cursor)
                began = time.perf_counter()  # what was written is not charged to the next step
        yield TrainEvent("done", job.steps, job.steps, path=str(model))

    def _check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raise TrainingError where a step can't have been one, or too many were skipped."""
        advice = "lower optimizer.rate"
        if metrics.get("skipped"):
            self.skipped += 1
            if self.skipped >= self.recipe.max_skipped:
                raise TrainingError(
                    f"step {step}: {self.skipped} steps in a row were skipped, for their gradients "
                    f"were no finite numbers or far too large; {advice}"
                )
            return
        self.skipped = 0
        if lost := [name for name, number in metrics.items() if not math.isfinite(number)]:
            raise TrainingError(f"step {step}: {lost[0]} is no finite number; {advice}")

    def _between(self, step: int, state: Any, cursor: dict[str, Any]) -> Iterator[TrainEvent]:
        """Do what is due after a step. Raises TrainingInterrupted when a signal asked to stop.

        A checkpoint comes first: it is written while the rest is done, and is there whatever
        becomes of that. Who is asked to stop may have little time, and saves only.
        """
        recipe, job, is_last = self.recipe, self.job, step == self.job.steps
        stop, exports = self.wishes.tell()
        saves = is_last or _is_due(step, recipe.save_every)
        if saves:
            yield from self._save(step, state, cursor)
        looks = (self._evaluation, job.evaluate_every), (self._samples, job.sample_every)
        for look, every in looks:
            if not stop and _is_due(step, every):
                yield look(step, state)
                stop, also = self.wishes.tell()
                exports |= also
        if stop:
            if not saves:
                yield from self._save(step, state, cursor)
            yield from self._landed(wait=True)
            name = signal.Signals(stop).name
            raise TrainingInterrupted(
                f"stopped by {name}; step {step} is saved: go on with --resume", stop
            )
        if exports or is_last or _is_due(step, recipe.export_every):
            job.export(state, self.output / "model")
        yield from self._landed(wait=is_last)

    def _evaluation(self, step: int, state: Any) -> TrainEvent:
        measured = self.job.evaluate(state)
        named = {f"evaluation_{name}": value for name, value in measured.items()}
        return TrainEvent("evaluation", step, self.job.steps, named)

    def _samples(self, step: int, state: Any) -> TrainEvent:
        folder = self.output / SAMPLES
        self.job.samples(state, folder, step)
        return TrainEvent("sample", step, self.job.steps, path=str(folder))

    def _save(self, step: int, state: Any, cursor: dict[str, Any]) -> Iterator[TrainEvent]:
        """Begin a checkpoint when the one before is whole. Raises TrainingError for lost weights:
        the metrics are of those before the step."""
        if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
            raise TrainingError(f"step {step}: a weight is no finite number; lower optimizer.rate")
        yield from self._landed(wait=True)
        self.checkpoints.save(step, state, cursor)

    def _landed(self, *, wait: bool) -> Iterator[TrainEvent]:
        """The event of a checkpoint that has become whole."""
        if wait:
            self.checkpoints.wait()
        if step := self.checkpoints.landed():
            path = str(self.checkpoints.folder / str(step))
            yield TrainEvent("checkpoint", step, self.job.steps, path=path)


def _is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps (0: never) is due after this one."""
    return bool(every) and step % every == 0
