"""`lwm convert`: a model from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lwm_cli import options
from lwm_cli.ui import Screen


def run(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The model: a name, a directory or a file.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The directory to write.")],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model of the same heads, rotary base and context, where the source is silent.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option("--dtype", help="Number format to store; by default that of the source."),
    ] = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Convert a model to a model directory.

    It goes tensor by tensor, so that a large model needs little memory.
    """
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.convert import convert

    with Screen(quiet=quiet, verbose=verbose) as screen:
        convert(
            source,
            target,
            like=like,
            dtype=dtype,
            force=force,
            on_progress=screen.progress,
        )
    typer.echo(target)
