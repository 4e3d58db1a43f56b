"""The program: its commands, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from lwm_cli import (
    bench,
    chat,
    convert,
    download,
    draw,
    film,
    needle,
    plan,
    see,
    tokenize,
    train,
)
from lwm_cli.completions import without_rich
from lwm_cli.failures import DONE, FAILED, INTERRUPTED, explain
from lwm_cli.options import Debug
from lwm_cli.processes import SPEAKER, with_others

app = typer.Typer(
    name="lwm",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for module in (chat, see, draw, film, needle, bench, plan, tokenize, train, convert, download):
    runs_models = module not in (plan, tokenize, convert, download)
    run = with_others(module.run) if runs_models else module.run
    app.command(name=module.__name__.rpartition(".")[2])(run)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lwm {version('lwm')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", is_eager=True, callback=_show_version, help="Show the version."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """The Large World Model: chat with it, show it pictures and clips, let it draw and film."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lwm` with these arguments (by default the command line's); returns the exit code.

    0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 ended by SIGTERM. A failure
    is one line on standard error; `--debug`, before or after the command, shows the traceback too.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with without_rich():
            code = typer.main.get_command(app).main(words, prog_name="lwm", standalone_mode=False)
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away; Python must not complain when it closes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if "--debug" in words:
            import traceback

            traceback.print_exc()
        message, code = explain(error)
        typer.echo(f"{SPEAKER.get()}: error: {message}", err=True)
        return code
    if code == INTERRUPTED:  # Typer's word for Ctrl-C
        typer.echo(f"{SPEAKER.get()}: interrupted", err=True)
    return code or DONE
