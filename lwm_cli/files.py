"""What the command line names: piped prompts, inputs, outputs.

All of it is checked before a model is loaded. `-` is standard input or standard output.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from lwm_core.errors import OutputError, UsageError

STANDARD = Path("-")
SILENCE_SECONDS = 5.0
SLUG_LENGTH = 48
MOST_TEXT = 8_000_000
"""Bytes of a text that is read: about twice as much as the longest context holds."""


def piped_text(*, is_needed: bool) -> str:
    """All of standard input if it is a pipe or a file, else nothing.

    A pipe that stays silent is waited for only if there `is_needed` text: programs that start
    others often leave them a pipe that never ends. A line says what is done.
    """
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return ""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
        return ""
    if not select.select([sys.stdin], [], [], SILENCE_SECONDS)[0]:
        if not is_needed:
            typer.echo("lwm: nothing comes through the pipe; going on without it", err=True)
            return ""
        typer.echo("lwm: waiting for text from the pipe", err=True)
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise UsageError("standard input is no UTF-8 text; attach pictures with -a -") from error


def prompt_text(prompt: str | None) -> str:
    """The prompt, or the piped text where it is `-` or missing. Raises UsageError for neither."""
    text = piped_text(is_needed=True) if prompt in (None, "-") else prompt
    if not text or not text.strip():
        raise UsageError("the prompt is empty; write what you want, or pipe it in")
    return text.strip()


def read_text(path: Path) -> str | None:
    """The text of a UTF-8 file; None for anything else: a picture, a device, nothing at all.

    No more than MOST_TEXT bytes are read. Raises UsageError for a longer text, or without access.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MOST_TEXT + 1)
    except OSError as error:
        raise UsageError(f"can't open {path}: {error.strerror}") from error
    is_whole = len(content) <= MOST_TEXT
    try:
        # What was cut off may end inside a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=is_whole)
    except UnicodeDecodeError:
        return None
    if not text or "\0" in text:
        return None
    if not is_whole:
        raise UsageError(f"{path} is too long; a text may have {MOST_TEXT // 10**6} MB")
    return text


@contextmanager
def as_file(name: str) -> Iterator[Path]:
    """The input called `name`; standard input becomes a temporary file while it is read.

    `~` is the home directory here too, for names that no shell has seen.
    """
    if name != "-":
        yield Path(os.path.expanduser(name))  # Path's own raises for a name like ~draft.txt
        return
    with tempfile.NamedTemporaryFile(prefix="standard-input-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def output_name(prompt: str, suffix: str) -> Path:
    """A file name made of the prompt's words: `fireworks-over-a-city.mp4`."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:SLUG_LENGTH].rstrip("-")
    return Path(f"{words or 'lwm'}{suffix}")


def numbered(path: Path, count: int) -> list[Path]:
    """The names of `count` outputs: `x.png`, or `x-1.png`, `x-2.png` …"""
    if count == 1:
        return [path]
    if path == STANDARD:
        raise UsageError("several pictures can't go to standard output; add --grid or name a file")
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def claim(paths: Sequence[Path], suffixes: tuple[str, ...], *, force: bool) -> bool:
    """Check that every output can be written; on a terminal, ask before one is overwritten.

    Returns whether existing files may be replaced. Raises UsageError or OutputError.
    """
    from lwm_core.media import check_output

    if STANDARD in paths:
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal; name a file or a pipe")
        return force
    taken = [path for path in paths if path.is_file()]
    if taken and not force and sys.stdin.isatty():
        if not typer.confirm(f"{', '.join(map(str, taken))} exists. Overwrite?", err=True):
            raise OutputError("nothing was overwritten")
        force = True
    for path in paths:
        check_output(path, suffixes, force)
    return force


@contextmanager
def written(path: Path, suffix: str) -> Iterator[Path]:
    """Where to write: `path`, or for standard output a temporary file that is copied there."""
    if path != STANDARD:
        yield path
        typer.echo(path)
        return
    with tempfile.TemporaryDirectory(prefix="lwm-") as folder:
        yield (copy := Path(folder) / f"output{suffix}")
        with copy.open("rb") as content:
            shutil.copyfileobj(content, sys.stdout.buffer)
            sys.stdout.buffer.flush()
