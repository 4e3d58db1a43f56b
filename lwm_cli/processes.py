"""A command that runs in several processes at once, and is heard once."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import wraps
from threading import Timer
from typing import Any

import typer

from lwm_cli import options
from lwm_cli.files import SILENCE_SECONDS
from lwm_core import distributed

SPEAKER = ContextVar("speaker", default="lwm")
"""Who a line about a failure is from: of several processes others than the first are numbered."""

_OPTIONS = {
    "coordinator": options.Coordinator,
    "processes": options.Processes,
    "process": options.Process,
}


def with_others(run: Callable[..., None]) -> Callable[..., None]:
    """A command that also takes the options of several processes, and joins the others first."""

    @wraps(run)
    def together(
        *,
        coordinator: str | None = None,
        processes: int | None = None,
        process: int | None = None,
        **arguments: Any,
    ) -> None:
        line = "lwm: waiting for the other processes"
        patience = Timer(SILENCE_SECONDS, typer.echo, [line], {"err": True})
        patience.start()
        try:
            are_others = distributed.join(coordinator, processes, process)
        finally:
            patience.cancel()
        if not are_others:
            return run(**arguments)
        with _one_voice():
            if not distributed.is_first():
                SPEAKER.set(f"lwm: process {distributed.number()}")
                arguments |= {"quiet": True, "verbose": False}
            run(**arguments)

    signature = inspect.signature(run, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _OPTIONS.items()
    ]
    parameters = [*signature.parameters.values(), *more]
    vars(together)["__signature__"] = signature.replace(parameters=parameters)
    together.__annotations__ = {one.name: one.annotation for one in parameters}
    return together


@contextmanager
def _one_voice() -> Iterator[None]:
    """Give standard output to the first process, and there to none of its libraries."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    place = answers if distributed.is_first() else nowhere
    with open(place, "w", encoding=sys.stdout.encoding) as stream, redirect_stdout(stream):
        yield
