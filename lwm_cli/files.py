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
from typing import TextIO

import typer

from lwm_core.distributed import agree, are_several, is_first
from lwm_core.errors import LwmError, OutputError, UsageError

STANDARD = Path("-")
SILENCE_SECONDS = 5.0
SLUG_LENGTH = 48
MOST_TEXT = 8_000_000
"""Bytes of a text that is read: about twice as much as the longest context holds."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream leads to a terminal; it is None if it was closed."""
    return stream is not None and stream.isatty()


def has_person() -> bool:
    """Whether someone can be asked: of several processes each would have to hear the answer."""
    return is_terminal(sys.stdin) and not are_several()


def piped_text(*, is_needed: bool) -> str:
    """All of standard input if it is a pipe or a file, else nothing; of several, the first's."""
    return agree(_read_pipe(is_needed=is_needed) if is_first() else "")


def _read_pipe(*, is_needed: bool) -> str:
    """What stands in the pipe or the file that standard input is, if it is one.

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
    content = sys.stdin.buffer.read(MOST_TEXT + 1)
    if len(content) > MOST_TEXT:
        raise UsageError(f"standard input is too long; a text may have {MOST_TEXT // 10**6} MB")
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise UsageError(
            "standard input is no UTF-8 text; a picture or clip in it is named by - (chat: -a -)"
        ) from error


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
    if sys.stdin is None:
        raise UsageError("standard input is closed; name a file, or pipe one in")
    with tempfile.NamedTemporaryFile(prefix="standard-input-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        try:
            yield Path(copy.name)
        except LwmError as error:
            if copy.name not in str(error):
                raise
            raise type(error)(str(error).replace(copy.name, "standard input")) from error


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
    if not path.name:
        raise UsageError(f"{path} is a directory; name a file in it")
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def claim(paths: Sequence[Path], suffixes: tuple[str, ...], *, force: bool) -> bool:
    """Check that every output can be written; on a terminal, ask before one is overwritten.

    Returns whether existing files may be replaced. Raises UsageError or OutputError.
    """
    from lwm_core.media import check_output

    if STANDARD in paths:
        if is_terminal(sys.stdout):
            raise UsageError("standard output is a terminal; name a file or a pipe")
        return force
    for path in paths:
        check_output(path, suffixes, force=True)
    taken = [path for path in paths if path.is_file()]
    if taken and not force and has_person():
        if not typer.confirm(f"{', '.join(map(str, taken))} exists. Overwrite?", err=True):
            raise OutputError("nothing was overwritten")
        force = True
    for path in paths:
        check_output(path, suffixes, force)
    return force


@contextmanager
def written(path: Path, suffix: str) -> Iterator[Path]:
    """Where to write: `path`, or for standard output a temporary file that is copied there.

    Of several processes the first has the path; what the others write goes nowhere.
    """
    if path != STANDARD and is_first():
        yield path
        typer.echo(path)
        return
    with tempfile.TemporaryDirectory(prefix="lwm-") as folder:
        yield (copy := Path(folder) / f"output{suffix}")
        with copy.open("rb") as content:
            shutil.copyfileobj(content, sys.stdout.buffer)
            sys.stdout.buffer.flush()
