"""`lwm needle`: does a model find the numbers that are hidden in a long text?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lwm_cli import files, loading, options
from lwm_cli.ui import Screen, print_table
from lwm_core.errors import UsageError

if TYPE_CHECKING:
    from lwm_core.needle import NeedleResult


def run(
    context: options.Context = 2048,
    lengths: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many context lengths, up to --ctx.")
    ] = 4,
    depths: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many depths, from begin to end.")
    ] = 5,
    needles: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many numbers to hide and ask for at once.")
    ] = 1,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often to try each place.")
    ] = 1,
    haystack: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text or JSON lines to hide them in.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Heat map to write.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    seed: options.Seed = 0,
    mesh: options.Mesh = "auto",
    dtype: options.Dtype = None,
    attention: options.Attention = "auto",
    as_json: options.AsJson = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Test how a model finds what is hidden in a long text.

    Numbers are hidden at several depths of several lengths; the share that was found is shown.
    """
    from lwm_core import needle
    from lwm_core.data.prose import read_prose
    from lwm_core.media import PICTURE_SUFFIXES, write_image

    config = needle.NeedleConfig(
        lengths=needle.evenly(context // lengths, context, lengths),
        depths=needle.evenly(0, 100, depths),
        needles=needles,
        asked=needles,
        rounds=rounds,
        seed=seed or 0,
    )
    passages = read_prose(haystack)
    if output == files.STANDARD:
        raise UsageError("the table goes to standard output; name a file for the heat map")
    force = files.claim([output] if output else [], PICTURE_SUFFIXES, force=force)
    with Screen(quiet=quiet, verbose=verbose) as screen:
        loaded = loading.load(model, screen, mesh=mesh, dtype=dtype, attention=attention)
        from lwm_core.types import Progress

        results: list[NeedleResult] = []
        for result in needle.run(loaded, config, passages, on_progress=screen.progress):
            results.append(result)
            screen.progress(Progress("questions", len(results), config.count, "answered"))
            if verbose:
                screen.note(f"{result.case.length} tokens: {result.answer.strip()}")
        screen.clear()
        if as_json:
            typer.echo(json.dumps({"model": loaded.name, **needle.to_json(results)}))
        else:
            _print_grid(results)
        if output:  # last, so that a full disk costs no result
            write_image(output, needle.heat_map(results), force=force)


def _print_grid(results: list[NeedleResult]) -> None:
    from lwm_core.needle import share_found, tabulate

    grid = tabulate(results)
    print_table(
        ["depth>", *(f"{length}>" for length in grid.lengths)],
        [
            [f"{depth:g} %", *("" if share != share else f"{share:.0%}" for share in shares)]
            for depth, shares in zip(grid.depths, grid.share, strict=True)
        ],
    )
    typer.echo(f"{share_found(results):.0%} of the needles found")
