"""`lwm convert`: a model from one format to another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lwm_cli import options
from lwm_cli.ui import Screen

if TYPE_CHECKING:
    from lwm_core.convert import Plan


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="The model: a name, a directory or a file; or an adapter, to merge it.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The directory to write.")],
    to: Annotated[
        Literal["lwm", "hf", "lwm-jax"],
        typer.Option(
            "--to",
            help="A model directory; one that transformers opens with its tokenizer; "
            "the files of the original.",
        ),
    ] = "lwm",
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model of the same heads, rotary base and context, where the source is silent.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Number format to store; by default that of the source."),
    ] = None,
    quantize: options.Quantize = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare logits with the source's at the end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")
    ] = False,
    as_json: options.AsJson = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Take a model from one format to another.

    It goes layer by layer, so that a large one needs little memory; what was written is read again
    and compared.
    """
    from lwm_core import backend

    backend.prepare()  # before the next lines bring in jax
    from lwm_core import convert
    from lwm_core.source import open_source, quantized

    with Screen(quiet=quiet, verbose=verbose) as screen:
        opened = quantized(open_source(source, like=like), quantize)
        planned = convert.plan(opened, target, to=to, dtype=dtype, force=force)
        for line in opened.assumed:
            screen.note(f"{source} does not say all; taken: {line}")
        if not dry_run:
            convert.convert(
                opened,
                target,
                to=to,
                dtype=dtype,
                force=force,
                verify=verify,
                on_progress=screen.progress,
            )
            if verify:
                screen.note("its logits are those of the source")
    typer.echo(_told(planned, as_json=as_json, dry_run=dry_run))


def _told(planned: Plan, *, as_json: bool, dry_run: bool) -> str:
    """What was or would be written, in a line or as JSON."""
    if as_json:
        values = dataclasses.asdict(planned)
        return json.dumps(values | {"source": str(planned.source), "target": str(planned.target)})
    if not dry_run:
        return str(planned.target)
    size = f"{planned.bytes / 1e6:,.1f} MB"
    if planned.image_bytes:
        size += f" and {planned.image_bytes / 1e6:,.1f} MB for the image tokenizer"
    return (
        f"{planned.target}: {planned.parameters:,} parameters in {planned.tensors} tensors as "
        f"{planned.dtype}, {size}, format {planned.format}, from {planned.source}"
    )
