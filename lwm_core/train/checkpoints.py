"""What is kept of a run, so that it goes on after anything: whole states, and the data's place."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import absl.logging
import orbax.checkpoint as ocp

from lwm_core.atomic import refusals
from lwm_core.distributed import is_first
from lwm_core.errors import (
    DoesNotFit,
    FormatError,
    LwmError,
    OutputError,
    TrainingError,
    TrainingInterrupted,
    UsageError,
    is_out_of_memory,
)
from lwm_core.train.agreement import everyone

UNFINISHED = "*.orbax-checkpoint-tmp*"
"""Names of checkpoints that Orbax has not finished."""


def last_step(folder: Path) -> int:
    """The step of the last whole checkpoint in a folder, 0 without any."""
    steps = [int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal()]
    return max(steps, default=0)


class Checkpoints:
    """The checkpoints of a run, written while it goes on.

    One takes the name of its step when all of it is on the disk, so whatever ends the run leaves
    the one before; what was not finished is removed when the next run begins. The newest `keep`
    stay, and those at multiples of `keep_every` (0: no others).

    A failure of what is done in its context, once the run `is_under_way`, is raised again with the
    step to go on from; one of the system, as when it can't read, as TrainingError.

    Several processes hold parts of one state, and each has a cursor of its own, its place in the
    data as JSON; all must call `save` and `restore`.
    """

    def __init__(self, folder: Path, *, keep: int, keep_every: int):
        self.folder = folder
        self.is_under_way = False
        self._coming: int | None = None
        absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax logs there what it raises as well
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every or None)
        with refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._discard()
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except OutputError as error:
            problem = problem if isinstance(problem, Exception) else error
        with suppress(Exception):  # `wait` has told what went wrong
            self._manager.close()
        if not self.is_under_way or isinstance(problem, UsageError | TrainingInterrupted):
            return
        if isinstance(problem, LwmError):
            raise type(problem)(f"{problem}; {self._way_on()}") from problem
        if isinstance(problem, OSError):  # of what was read: what writes raises OutputError
            what = f"{problem.filename}: " if problem.filename else ""
            reason = f"{what}{problem.strerror or problem}"
            raise TrainingError(f"{reason}; {self._way_on()}") from problem

    def _way_on(self) -> str:
        """What someone can do whose run has ended early, in words."""
        step = last_step(self.folder)
        return f"go on with --resume from step {step}" if step else "no step was saved: begin again"

    def save(self, step: int, state: Any, cursor: dict[str, Any]) -> None:
        """Begin to write a checkpoint; the state may be used up when this returns.

        Raises OutputError, also for the checkpoint before, which is waited for.
        """
        self.wait()
        if not self.folder.is_dir():
            raise OutputError(f"{self.folder} is gone, and step {step} can't be saved")
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), cursors=ocp.args.JsonSave(everyone(cursor))
        )
        self._coming = step
        with self._explained():
            self._manager.save(step, args=items)

    def landed(self) -> int | None:
        """The step of a checkpoint that has become whole since the last call, if any.

        Raises OutputError if it can't be written.
        """
        step = self._coming
        if step is None or self._manager.is_saving_in_progress():
            return None
        self.wait()
        self._coming = None
        return step

    def wait(self) -> None:
        """Come back when what was begun is on the disk. Raises OutputError."""
        if self._coming is not None:
            with self._explained():
                self._manager.wait_until_finished()

    def restore(self, step: int, state: Any) -> tuple[Any, list[dict[str, Any]]]:
        """The state of a step, laid out as the abstract `state` says, and the cursors of all the
        processes that there were.

        Raises FormatError for a checkpoint that is damaged, DoesNotFit when memory can't hold it,
        TrainingError when the system does not let it be read.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(state), cursors=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # of many kinds
            raise _unreadable(self.folder / str(step), error) from error
        return restored.state, restored.cursors

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what Orbax and TensorStore raise, which is of many kinds, as OutputError."""
        try:
            yield
        except Exception as error:
            step, self._coming = self._coming, None
            self._discard()  # a full disk is not to stay full
            raise OutputError(
                f"{self.folder}: step {step} can't be saved: {_reason(error)}"
            ) from error

    def _discard(self) -> None:
        """Remove what is unfinished."""
        if is_first():
            for rest in self.folder.glob(UNFINISHED):
                shutil.rmtree(rest, ignore_errors=True)


def _unreadable(path: Path, error: Exception) -> LwmError:
    """Why a checkpoint can't be read; only of one that is damaged, that it should be removed."""
    if is_out_of_memory(error):
        return DoesNotFit(f"{path} does not fit into memory; free some, or take more devices")
    reason = f"{path}: can't be read: {_reason(error)}"
    if _system_code(error) in (None, errno.ENOENT):
        return FormatError(f"{reason}; remove it to go on from the one before")
    return TrainingError(f"{reason}; see to that, and go on with --resume")


def _system_code(error: Exception) -> int | None:
    """The number of the system's error behind an error, if there is one."""
    said = re.search(r"\[os_error_code='(\d+)'", str(error))
    return int(said.group(1)) if said else getattr(error, "errno", None)


def _reason(error: Exception) -> str:
    """What the system said, if it can be found, or the beginning of the message."""
    text = " ".join(str(error).split())
    said = re.search(r"([^:]+) \[os_error_code", text)
    return said.group(1).strip() if said else getattr(error, "strerror", None) or text[:200]
