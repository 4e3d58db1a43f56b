"""Work on many items in a few threads that never keep the program from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

GRACE = 0.5
"""Seconds that each thread is given to put down its work."""

Item = TypeVar("Item")


def in_threads(
    work: Callable[[Item], None], items: Iterable[Item], *, threads: int, stop: threading.Event
) -> None:
    """Do `work` on every item; at the first error, or Ctrl-C, set `stop` and raise it.

    Unlike an executor this does not wait for threads that hang in a dead connection.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    finished: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    count = waiting.qsize()

    def run() -> None:
        while not stop.is_set():
            try:
                work(waiting.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:
                finished.put(error)
            else:
                finished.put(None)

    crew = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, count))]
    for thread in crew:
        thread.start()
    try:
        for _ in range(count):
            if error := finished.get():
                raise error
    finally:
        stop.set()
        for thread in crew:
            thread.join(GRACE)
