"""What is to be tokenized: the media of folders, single files, and tables that name files.

In a folder, and beside a single file, a text of the same name is a caption: `cat.png`, `cat.txt`.
A table is a CSV file or JSON lines with a row for each thing that is said of a file; the only one
that lies in a folder is read with it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from io import SEEK_END
from pathlib import Path
from typing import Any

from lwm_core.errors import FormatError, UsageError
from lwm_core.identity import digest

COLUMNS = {
    "file": ("file", "file_name", "path", "image", "video"),
    "caption": ("caption", "text"),
    "question": ("question", "instruction"),
    "answer": ("answer", "output"),
}
"""What the columns of a table may be called; of several the first that says something counts."""
KNOWN = tuple(name for names in COLUMNS.values() for name in names)

TABLES = (".csv", ".jsonl")
NO_MEDIA = (*TABLES, ".json", ".md", ".tsv", ".txt")
"""What may lie in a folder beside its media."""

ENDS = 1 << 16
"""Bytes at the beginning and the end of a file that its fingerprint is made of."""


@dataclass(frozen=True)
class Said:
    """What a table or a text says of a medium; what is not said is empty."""

    caption: str = ""
    question: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Medium:
    """A picture or clip, the name that it has in the data, and what is said of it.

    `fingerprint` is that of the file that its codes were made of, once they are.
    """

    name: str
    path: Path
    said: tuple[Said, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class Failure:
    """A file or a row that nothing could be made of, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Note:
    """What a person should know of the sources: something in them that is not used."""

    text: str


@dataclass(frozen=True)
class Found:
    """All media of some sources, each once, in their order; the rows of tables that are none."""

    media: tuple[Medium, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def fingerprint(path: Path) -> str:
    """A cheap digest of a file: of its size, its beginning and its end; empty if it is none."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            beginning = file.read(ENDS)
            size = file.seek(0, SEEK_END)
            file.seek(max(0, size - ENDS))
            return digest(str(size).encode() + beginning + file.read(ENDS))
    except OSError:
        return ""


def find_media(sources: Sequence[Path]) -> Found:
    """What is to be tokenized of some folders, files, tables, and patterns of their names.

    Folders are searched in the order of names, without hidden files. A medium's name is its path
    in its folder, or as its table spells it. A table that lies in a folder tells of its media; if
    there are several, only one that is a source itself does. Raises UsageError for a source that is
    not there, for different files of the same name and where there is nothing at all, FormatError
    for a table that is none.
    """
    media: dict[str, Medium] = {}
    failures: list[Failure] = []
    notes: list[str] = []
    paths = [path for source in sources for path in _meant(source)]
    for found in (found for path in paths for found in _look_into(path, paths)):
        match found:
            case Failure():
                failures.append(found)
            case Note():
                notes.append(found.text)
            case Medium():
                media[found.name] = _joined(media.get(found.name), found)
    if not media:
        reasons = [*notes, *(f"{failure.name}: {failure.reason}" for failure in failures)]
        reason = f": {reasons[0]}" if reasons else ""
        raise UsageError(f"there is no picture or clip in {', '.join(map(str, sources))}{reason}")
    return Found(tuple(media.values()), tuple(failures), tuple(notes))


def _meant(source: Path) -> list[Path]:
    """A path, or those of a pattern that no shell has looked at, in the order of names."""
    path = Path(os.path.expanduser(source))
    matching = [] if path.exists() else sorted(map(Path, glob(str(path), recursive=True)))
    return matching or [path]


def _joined(known: Medium | None, found: Medium) -> Medium:
    """A medium that may be known already, with all that is said of it, each once."""
    if known is None:
        return found
    if os.path.abspath(known.path) != os.path.abspath(found.path):
        raise UsageError(
            f"{known.path} and {found.path} would both be called {found.name}: give a folder "
            "that holds them both"
        )
    return replace(known, said=tuple(dict.fromkeys(known.said + found.said)))


def _look_into(source: Path, sources: Sequence[Path]) -> Iterator[Medium | Failure | Note]:
    if source.is_dir():
        return _in_folder(source, sources)
    if not source.exists():
        raise UsageError(f"can't open {source}: there is no such file or folder")
    if _is_table(source):
        return _in_table(source)
    return iter([Medium(source.name, source, _beside(source))])


def _in_folder(folder: Path, sources: Sequence[Path]) -> Iterator[Medium | Failure | Note]:
    """The media of a folder, and what its table says of them unless one of its tables is among
    the sources itself."""
    names: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if not is_hidden and path.suffix.lower() not in NO_MEDIA and path.is_file():
            names[os.path.abspath(path)] = name.as_posix()
            yield Medium(name.as_posix(), path, _beside(path))
    tables = [path for path in sorted(folder.glob("[!.]*")) if _is_table(path)]
    if {*map(os.path.abspath, tables)} & {*map(os.path.abspath, sources)}:
        return
    if len(tables) == 1:
        yield from _said_within(tables[0], names)
    elif tables:
        several = ", ".join(map(str, tables))
        yield Note(f"not read: {several}: there are several; lwm tokenize {tables[0]} reads one")


def _said_within(table: Path, names: Mapping[str, str]) -> Iterator[Medium | Failure | Note]:
    """What the table of a folder says of its media, whose names are given by absolute paths.

    Where it is no table of them, a note says so.
    """
    try:
        rows = list(_in_table(table))
    except FormatError as error:
        yield Note(f"not read: {error}")
        return
    paths = [os.path.abspath(row.path) for row in rows if isinstance(row, Medium)]
    if not names.keys() & set(paths):
        yield Note(
            f"not read: {table}: it names nothing in its folder; lwm tokenize {table} reads it"
        )
        return
    for row in rows:
        if isinstance(row, Medium):
            row = replace(row, name=names.get(os.path.abspath(row.path), row.name))
        yield row


def _is_table(path: Path) -> bool:
    """Whether a file is a table, by its name."""
    return path.suffix.lower() in TABLES and path.is_file()


def _beside(path: Path) -> tuple[Said, ...]:
    """The caption in the text beside a file, if there is one. Raises FormatError."""
    text = path.with_suffix(".txt")
    if text == path or not text.is_file():
        return ()
    try:
        caption = " ".join(text.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{text}: the caption of {path.name} is no UTF-8 text") from error
    return (Said(caption),) if caption else ()


def _in_table(table: Path) -> Iterator[Medium | Failure | Note]:
    columns: dict[str, None] = {}
    for line, row in _rows(table):
        try:
            name, said = _told(row)
        except ValueError as error:
            yield Failure(f"{table.name}:{line}", str(error))
            continue
        columns |= dict.fromkeys(row or ())
        yield Medium(name, table.parent / name, (said,) if said != Said() else ())
    if unknown := ", ".join(column for column in columns if column not in KNOWN):
        yield Note(f"{table}: not used: {unknown:.200} (columns are {', '.join(KNOWN)})")


def _told(row: Mapping[str, Any] | None) -> tuple[str, Said]:
    """The file that a row names, and what it says of it. Raises ValueError."""
    if row is None:
        raise ValueError("no JSON object")
    if None in row:  # where the CSV reader puts them
        raise ValueError("more values than columns; a text with a comma needs quotes")
    name, *words = (_value(row, key) for key in COLUMNS)
    said = Said(*words)
    if said.question and not said.answer:
        raise ValueError("a question without an answer")
    return Path(name).as_posix(), said


def _value(row: Mapping[str, Any], key: str) -> str:
    """What a row has in one of the columns of a kind. Raises ValueError."""
    values = (row.get(column) for column in COLUMNS[key])
    value = next((value for value in values if value not in (None, "")), "")
    if not isinstance(value, str):
        raise ValueError(f"the {key} is no text")
    if key == "file" and not value:
        raise ValueError(f"no file is named (column {' or '.join(COLUMNS[key])})")
    return value.strip()


def _rows(table: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """The rows of a table by the number of their line, from 1; None for one that is malformed."""
    read = _csv_rows if table.suffix.lower() == ".csv" else _json_rows
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            yield from read(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{table} can't be read as a table: {reason}") from error


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = csv.DictReader(file)
    columns = rows.fieldnames or ()
    if not set(columns) & set(COLUMNS["file"]):
        names = " or ".join(COLUMNS["file"])
        raise csv.Error(f"its first line has no column {names}, but {','.join(columns):.80}")
    for row in rows:
        yield rows.line_num, row


def _json_rows(file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield number, row if isinstance(row, dict) else None
