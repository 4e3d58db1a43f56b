"""Curves of a training for TensorBoard, beside its metrics file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lwm_core.errors import UsageError

if TYPE_CHECKING:
    from lwm_core.train import TrainEvent


def drawn(events: Iterable[TrainEvent], folder: Path) -> Iterator[TrainEvent]:
    """The same events; the metrics of each step are also written to a folder of TensorBoard's.

    Raises UsageError if TensorBoard is not installed.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise UsageError("TensorBoard is not installed; install lwm with [logs]") from error
    curves = None
    try:
        for event in events:
            curves = curves or Writer(str(folder))  # not before the training could begin
            for name, value in event.metrics.items():
                curves.add_scalar(name, value, event.step)
            yield event
    finally:
        if curves:
            curves.close()
