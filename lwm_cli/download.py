"""`lwm download`: fetch a model, or see which there are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from lwm_cli import options
from lwm_cli.ui import Screen, print_table
from lwm_core import registry
from lwm_core.errors import UsageError


def run(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A name, a Hub repository or its URL.",
            autocompletion=options.complete_model,
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the models known by name.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit to fetch.")
    ] = None,
    as_json: options.AsJson = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is here.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a model, or list the known ones.

    Models live in the Hugging Face cache; the path of the one that was asked for is written.
    """
    if listed:
        _list(as_json)
        return
    if name is None:
        raise UsageError("name a model, or see them with --list")
    if not verbose:
        # The Hub's client reads it once; its warnings would break the bars, and errors are ours.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    from lwm_core.download import download

    with Screen(quiet=quiet, verbose=verbose) as screen:
        try:
            path = download(name, revision=revision, force=force, on_progress=screen.progress)
        except KeyboardInterrupt:
            screen.note("what came so far is kept; the same command goes on from there")
            raise
    typer.echo(json.dumps({"model": name, "path": str(path)}) if as_json else path)


def _list(as_json: bool) -> None:
    from lwm_core.download import local_path

    places = [(card, local_path(card)) for card in registry.CARDS]
    if as_json:
        typer.echo(json.dumps([_facts(card, place) for card, place in places]))
        return
    headings = ["model", "name", "kind", "tokens>", "size>", "licence", "here"]
    print_table(headings, [_row(card, place) for card, place in places])


def _facts(card: registry.Card, place: Path | None) -> dict[str, object]:
    return {
        "model": options.short_name(card),
        "name": card.name,
        "repositories": card.repositories,
        "kind": card.kind,
        "context": card.context,
        "bytes": card.bytes,
        "licence": card.licence,
        "path": str(place) if place else None,
    }


def _row(card: registry.Card, place: Path | None) -> list[str]:
    size = f"{card.bytes / 1e9:.1f} GB" if card.bytes >= 1e9 else f"{card.bytes / 1e6:.0f} MB"
    thousands = card.context // 1024
    context = f"{thousands // 1024}M" if thousands >= 1024 else f"{thousands}K"
    here = "yes" if place else "no"
    return [options.short_name(card), card.name, card.kind, context, size, card.licence, here]
