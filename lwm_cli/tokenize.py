"""`lwm tokenize`: pictures and clips become tokens that a model can be trained on."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lwm_cli import options
from lwm_cli.ui import Pace, Screen

if TYPE_CHECKING:
    from lwm_core.tokenize import Tokenized
    from lwm_core.types import Progress

FRAMES = 8


def run(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC",
            help="Folders of pictures and clips, single files, or tables (.csv, .jsonl) of them.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder of the data set.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            metavar="TASKS",
            help="What is to be learned: see (answers and captions), draw (by captions), or both.",
        ),
    ] = "see",
    model: options.Model = options.DEFAULT_MODEL,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames", min=1, metavar="N", help=f"Frames of a clip, at most; {FRAMES} if no --fps."
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option("--fps", min=0.001, max=240, metavar="RATE", help="Frames a second, at most."),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Make tokens of pictures and clips, to train on.

    A run that was stopped goes on when the same command is given again. What can't be read is left
    out; errors.jsonl says why.
    """
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.tokenize import tokenize

    with Screen(quiet=quiet, verbose=verbose) as screen:
        try:
            made = tokenize(
                sources,
                output,
                model=model,
                frames=frames or (None if fps else FRAMES),
                fps=fps,
                tasks=tuple(task.strip() for task in tasks.split(",")),
                on_progress=_Reporter(screen),
                on_note=screen.note,
            )
        except KeyboardInterrupt:
            screen.note("what is done is kept; the same command goes on from there")
            raise
        screen.clear()
        told = {**dataclasses.asdict(made), "folder": str(made.folder)}
        typer.echo(json.dumps(told) if as_json else made.folder)
        screen.footer(_figures(made))


class _Reporter:
    """Draws the bar; where there is none, now and then a line."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._began = time.monotonic()
        self._pace = Pace(self._began)
        self._before: int | None = None

    def __call__(self, event: Progress) -> None:
        if self._screen.is_terminal:
            self._screen.progress(event)
            return
        now = time.monotonic()
        if self._before is None:
            self._before = event.done
        elif event.done > self._before and self._pace.is_due(now):
            left = (now - self._began) * (event.total - event.done) / (event.done - self._before)
            self._screen.note(f"{event.done}/{event.total} {event.unit}  {left:.0f} s left")


def _figures(made: Tokenized) -> list[str]:
    """The closing line."""
    from lwm_core.data.records import ERRORS

    speed = [f"{made.frames / made.seconds:.1f} frames/s"] if made.frames else []
    before = [f"{made.before} were there"] if made.before else []
    reworded = [f"{made.reworded} of them with other words"] if made.reworded else []
    damaged = [_counted(made.damaged, "damaged line") + " left out"] if made.damaged else []
    failed = [f"{made.failed} failed, see {made.folder / ERRORS}"] if made.failed else []
    done = [_counted(made.media, "file"), _counted(made.frames, "frame")]
    learned = [f"{count} {task}" for task, count in made.examples.items()]
    wordless = [f"{made.wordless} without words"] if made.wordless else []
    return [*done, *speed, *learned, *wordless, *before, *reworded, *damaged, *failed]


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
