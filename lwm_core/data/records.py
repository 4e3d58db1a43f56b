"""Training data as records, whatever files hold them: numbered, and read from any number on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from io import SEEK_END
from os.path import commonpath
from pathlib import Path, PurePath
from typing import Any, Protocol

from lwm_core.data.json_lines import COMPRESSIONS, SUFFIXES, JsonLines
from lwm_core.data.tables import HUB, Arrow, HubDataset, Parquet
from lwm_core.errors import UsageError

Numbered = Iterator[tuple[int, dict[str, Any] | None]]
"""Records with their numbers; None for one that is malformed."""

TABLES: dict[str, Callable[[Path], _Part]] = {".parquet": Parquet, ".arrow": Arrow}
ERRORS = "errors.jsonl"
"""The file of a directory that tells what could not become data, and is none."""
ENDS = 1 << 16
"""Bytes at the beginning and the end of a file that its fingerprint is made of."""


class Records(Protocol):
    """Records that can be read again and again.

    `fingerprint` is a cheap digest that tells apart the data of two processes, or of a run and its
    continuation. Where the data lie is no part of it: they may be copied or moved in between.
    """

    name: str

    def fingerprint(self) -> str: ...

    def read(self, start: int, step: int = 1) -> Numbered:
        """One pass over every `step`-th record from number `start` on; the others are not parsed.

        Blank lines only take a number.
        """
        ...


def open_records(spec: str | Path) -> Records:
    """The records of a file, of all files of a directory or a pattern by name, or of a dataset.

    Files are JSON lines (`.jsonl`, `.ndjson`, `.json`; `.gz` or `.zst` may follow), `.parquet`
    and `.arrow`. In a directory and those within it, hidden files and what is called otherwise
    (also `.json`: often settings) are left out; `errors.jsonl` is, in a pattern too.
    `hf:OWNER/NAME?split=train` is a dataset of Hugging Face, `HubDataset`.

    Raises UsageError where nothing is there, a file is of another kind, or a package is missing;
    FormatError for a file that is not what its name says; DownloadError.
    """
    name = str(spec)
    if name.startswith(HUB):
        return HubDataset(name)
    try:
        paths = sorted(path for path in _named(name) if path.is_file() and path.name != ERRORS)
    except (OSError, RuntimeError) as error:  # as of too long a name, or of no user
        raise UsageError(f"{name:.80}: can't be looked at: {error!s:.80}") from error
    if not paths:
        raise UsageError(f"{name}: there are no records: no such file, or none in it")
    return Files(name, paths)


def _named(name: str) -> list[Path]:
    """The file of a name, or the files of a directory or pattern."""
    path = Path(name).expanduser()
    if path.is_dir():
        return [file for file in path.rglob("*") if _is_data(file.relative_to(path))]
    return [path] if path.exists() else [Path(file) for file in glob(str(path), recursive=True)]


class Files:
    """The records of several files, one behind the other, as one row of numbers."""

    def __init__(self, name: str, paths: Sequence[Path]):
        self.name = name
        self._paths = paths
        self._parts = [_opened(path) for path in paths]

    def fingerprint(self) -> str:
        """Of the files' names within the folder that holds all, sizes, beginnings and ends."""
        digest = hashlib.sha256()
        folder = commonpath(path.parent for path in self._paths)
        for path in self._paths:
            try:
                digest.update(_ends(path, path.relative_to(folder)))
            except OSError as error:
                raise UsageError(f"{path}: can't be read: {error.strerror}") from error
        return digest.hexdigest()

    def read(self, start: int, step: int = 1) -> Numbered:
        """Every `step`-th record from number `start` on."""
        first = 0
        for part in self._parts:
            is_last = part is self._parts[-1]
            # Only where it decides something is a file looked through for how much it holds.
            if is_last or start <= first or start < first + len(part):
                begin = start - first if start > first else (start - first) % step
                for number, record in part.read(begin, step):
                    yield first + number, record
            if not is_last:
                first += len(part)


class _Part(Protocol):
    """The records of one file, numbered from 0; `len` may have to read all of it."""

    def __len__(self) -> int: ...

    def read(self, start: int, step: int = 1) -> Numbered: ...


def _ends(path: Path, name: PurePath) -> bytes:
    """What a file is called and its size, its beginning and its end."""
    with path.open("rb") as file:
        beginning = file.read(ENDS)
        size = file.seek(0, SEEK_END)
        file.seek(max(0, size - ENDS))
        return json.dumps([name.as_posix(), size]).encode() + beginning + file.read(ENDS)


def _opened(path: Path) -> _Part:
    if table := TABLES.get(path.suffix):
        return table(path)
    if _inner_suffix(path) in SUFFIXES:
        return JsonLines(path)
    kinds = ", ".join((*SUFFIXES, *TABLES))
    raise UsageError(f"{path}: no file of records: known are {kinds}, and lines with .gz or .zst")


def _inner_suffix(path: Path) -> str:
    """The suffix of what a file holds, compressed or not."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _is_data(path: Path) -> bool:
    """Whether a file of a directory is one of records, by its path within."""
    is_hidden = any(part.startswith(".") for part in path.parts)
    is_lines = _inner_suffix(path) in SUFFIXES and path.suffix != ".json"
    return (is_lines or path.suffix in TABLES) and not is_hidden
