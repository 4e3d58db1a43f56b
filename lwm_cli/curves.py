"""Logs of a training beside its metrics file: for TensorBoard and for Weights & Biases."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwm_core.errors import OutputError, UsageError

if TYPE_CHECKING:
    from lwm_core.train import TrainEvent

Write = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its metrics."""
Log = AbstractContextManager[Write]


def logged(events: Iterable[TrainEvent], logs: Iterable[Log]) -> Iterator[TrainEvent]:
    """The same events; their metrics also go to logs, opened not before training could begin."""
    with ExitStack() as opened:
        writers: list[Write] | None = None
        for event in events:
            if writers is None:
                writers = [opened.enter_context(log) for log in logs]
            for write in writers if event.metrics else ():
                write(event.step, event.metrics)
            yield event


def tensorboard(folder: Path) -> Log:
    """Curves in a folder of TensorBoard's. Raises UsageError if it is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise UsageError("TensorBoard is not installed; install lwm with [logs]") from error

    @contextmanager
    def log() -> Iterator[Write]:
        curves = Writer(str(folder))

        def write(step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                curves.add_scalar(name, value, step)

        try:
            yield write
        finally:
            curves.close()

    return log()


def wandb(output: Path, recipe: Mapping[str, Any], *, resume: bool) -> Log:
    """A run of Weights & Biases, of the output's name; to `resume` goes on in the same run.

    Its own variables say where that is, such as WANDB_PROJECT and WANDB_MODE. Raises UsageError
    if it is not installed; the log raises OutputError where it can't begin.
    """
    try:
        import wandb
    except ImportError as error:
        raise UsageError("Weights & Biases is not installed; install lwm with [logs]") from error

    @contextmanager
    def log() -> Iterator[Write]:
        place = output / "wandb"
        place.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "lwm"),
                name=output.resolve().name,
                id=_run_id(place / "lwm-run", resume=resume),
                resume="allow",
                dir=output,
                config=dict(recipe),
                settings=wandb.Settings(console="off", silent=True),  # the terminal is ours
            )
        except wandb.Error as error:
            raise OutputError(f"Weights & Biases: {error}") from error
        run.define_metric("*", step_metric="step")  # its own counter can't go back on resuming
        with run:
            yield lambda step, metrics: run.log({"step": step, **metrics})

    return log()


def _run_id(path: Path, *, resume: bool) -> str:
    """The name that a run has there, kept in a file so that it goes on under it."""
    if not (resume and path.exists()):
        path.write_text(secrets.token_hex(4), encoding="ascii")
    return path.read_text(encoding="ascii")
