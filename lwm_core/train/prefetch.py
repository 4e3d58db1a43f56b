"""Batches that are made while the devices work."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from lwm_core.errors import LwmError, TrainingError

T = TypeVar("T")

AHEAD = 2
"""Batches that are made while another is in use."""


def prefetch(batches: Iterator[T], count: int) -> Generator[T]:
    """The first `count` of `batches`, made ahead in a thread; a generator of them is closed after.

    Whatever ends the making of one ends the iteration in its place: an LwmError as it is, anything
    else, such as a worker process that died, and an end of the data, as TrainingError.
    """
    maker = ThreadPoolExecutor(1)
    coming: deque[Future[T]] = deque()
    try:
        for index in range(count + AHEAD):
            if index < count:
                coming.append(maker.submit(next, batches))
            if index >= AHEAD:
                yield _made(coming.popleft())
    finally:
        maker.shutdown(cancel_futures=True)
        if isinstance(batches, Generator):
            batches.close()


def _made(future: Future[T]) -> T:
    try:
        return future.result()
    except LwmError:
        raise
    except StopIteration as end:
        raise TrainingError("the data came to an end before the steps did") from end
    except Exception as error:
        raise TrainingError(f"a batch can't be made: {type(error).__name__}: {error}") from error
