"""What signals ask a run for: to save and stop, or to write its model."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lwm_core.train.agreement import largest

STOP = (signal.SIGTERM, signal.SIGINT)
EXPORT = signal.SIGUSR1


class Wishes:
    """What this process has been asked for and has not told yet."""

    def __init__(self) -> None:
        self._stop, self._export = 0, 0

    def note(self, number: int) -> None:
        """Remember a signal."""
        if number == EXPORT:
            self._export = 1
        else:
            self._stop = self._stop or number

    def tell(self) -> tuple[int, bool]:
        """The signal by which any process was asked to stop, or 0, and whether any was asked for
        the model since the last call; each must ask."""
        stop, export = largest((self._stop, self._export))
        self._export = 0
        return stop, bool(export)


@contextmanager
def listening() -> Iterator[Wishes]:
    """Note SIGTERM, SIGINT and SIGUSR1 until the block ends.

    A second Ctrl-C acts as if nobody listened. A second SIGTERM does not: launchers send it to a
    process and to its parent, which hands it on. Only a main thread hears signals.
    """
    wishes = Wishes()
    if threading.current_thread() is not threading.main_thread():
        yield wishes
        return

    def heard(number: int, frame: FrameType | None) -> None:
        wishes.note(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.signal(number, heard) for number in (*STOP, EXPORT)}
    try:
        yield wishes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
