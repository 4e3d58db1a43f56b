"""Long English text as passages that are laid end to end: to learn from, and to hide needles in.

The package's own, `haystack.txt.gz`, is Jane Austen's *Persuasion* (1818, public domain).
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from importlib.resources import files
from pathlib import Path

from lwm_core.errors import UsageError

LOG = logging.getLogger(__name__)


def read_prose(path: Path | None = None) -> list[str]:
    """The passages of a text: the package's own, a file, or all texts of a directory by name.

    Files are UTF-8 text, whose passages are paragraphs, or `.jsonl`, where a passage is the
    `text` of a line. In a directory and those within it, hidden files and what is no text are
    left out. Raises UsageError for a file that can't be read so, and where no text is left.
    """
    if path is None:
        packed = files("lwm_core").joinpath("data/haystack.txt.gz").read_bytes()
        return _paragraphs(gzip.decompress(packed).decode())
    try:
        passages = _read_directory(path) if path.is_dir() else _read_file(path)
    except OSError as error:
        raise UsageError(f"{error.filename or path}: can't be read: {error.strerror}") from error
    except _NotProse as error:
        raise UsageError(
            f"{path}: not prose: UTF-8 text, or JSON lines with a `text`, is needed"
        ) from error
    if not "".join(passages).strip():
        raise UsageError(f"{path}: there is no text in it")
    return passages


class _NotProse(Exception):
    """A file that is neither UTF-8 text nor JSON lines with a `text`."""


def _read_directory(directory: Path) -> list[str]:
    passages = []
    for path in sorted(directory.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if is_hidden or not path.is_file():
            continue
        try:
            passages += _read_file(path)
        except _NotProse:
            LOG.info("%s is left out: no text", path)
    return passages


def _read_file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            passages = [json.loads(line)["text"] for line in text.split("\n") if line.strip()]
            "".join(passages)  # all of them are strings
        else:
            passages = _paragraphs(text)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _NotProse from error
    if "\0" in text:
        raise _NotProse
    return passages


def _paragraphs(text: str) -> list[str]:
    return [part + "\n\n" for part in re.split(r"\n\s*\n", text) if part.strip()]
