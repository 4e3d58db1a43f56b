"""The data set on the disk: whole shards, one that grows, and what failed.

tokens.json       how it was made (manifest.py)
data-00000.jsonl  shards, each whole
.data.part        the shard that grows; what stands in it is kept when a run is stopped
errors.jsonl      what the last run could not read, and why

All records of a medium stand together, in one file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from lwm_core.atomic import refusals, replacing, writing_alone
from lwm_core.data.records import ERRORS
from lwm_core.errors import UsageError
from lwm_core.tokenize.examples import Example
from lwm_core.tokenize.manifest import Manifest, read_manifest
from lwm_core.tokenize.media import Failure

SHARD_BYTES = 256 << 20
"""A shard that would grow beyond this is closed."""

_SHARD = re.compile(r"data-(\d{5,})\.jsonl")
_PART = ".data.part"

Revise = Callable[[list[Example]], list[Example]]
"""The records of a medium as they stand, to those that should; asked twice, it answers the same."""


@contextmanager
def open_folder(folder: Path, manifest: Manifest, revise: Revise) -> Iterator[DataFolder]:
    """A data set to add to: a new one, or one that the same options made, with its records revised.

    Raises UsageError for one of other options, for a folder of something else and while another
    run writes to it, FormatError for one whose manifest is damaged, OutputError where the system
    refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder with -o")
    with writing_alone(folder):
        _claim(folder, manifest)
        data = DataFolder(folder, revise)
        try:
            yield data
        finally:
            data.close()


def _claim(folder: Path, manifest: Manifest) -> None:
    """Say in an empty folder how its data are made; raise UsageError where it is not the same."""
    if there := read_manifest(folder):
        if difference := there.difference(manifest):
            raise UsageError(
                f"{folder} was made with {difference}: give the same, or name another folder "
                "with -o"
            )
        return
    other = next((one.name for one in folder.iterdir() if not one.name.startswith(".")), None)
    if other:
        raise UsageError(f"{folder} holds {other}, which is no data set; name another with -o")
    manifest.write(folder)


class DataFolder:
    """A data set that grows. `shards` are its whole ones; `damaged` lines of them were left out."""

    def __init__(self, folder: Path, revise: Revise):
        self.folder = folder
        self._path = folder / _PART
        with refusals(folder):
            self.damaged = sum(_mend(self._shard(number), revise) for number in self._numbers())
            if self._path.exists():
                _mend(self._path, revise)  # where a run was stopped, a line may end anywhere
            self._part = self._path.open("ab")
            (folder / ERRORS).unlink(missing_ok=True)

    @property
    def shards(self) -> int:
        return len(self._numbers())

    def add(self, examples: Sequence[Mapping[str, Any]]) -> None:
        """Append all records of a medium, which begin with their source. Raises OutputError."""
        lines = b"".join(map(_line, examples))
        with refusals(self._path):
            if self._part.tell() and self._part.tell() + len(lines) > SHARD_BYTES:
                self._close_part()
                self._part = self._path.open("ab")
            self._part.write(lines)
            self._part.flush()

    def report(self, failure: Failure) -> None:
        """Append to the list of what could not be read. Raises OutputError."""
        path = self.folder / ERRORS
        with refusals(path), path.open("ab") as errors:
            errors.write(_line({"path": failure.name, "reason": failure.reason}))

    def finish(self) -> None:
        """Let what has grown be a shard. Raises OutputError."""
        with refusals(self._path):
            if self._part.tell():
                self._close_part()
            else:
                self._path.unlink()

    def close(self) -> None:
        """Leave the part as it is, to be gone on with."""
        with suppress(OSError):  # it was told when the line could not be written
            self._part.close()

    def _shard(self, number: int) -> Path:
        return self.folder / f"data-{number:05}.jsonl"

    def _numbers(self) -> list[int]:
        """Of the shards, in their order."""
        names = (_SHARD.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _close_part(self) -> None:
        self._part.flush()
        os.fsync(self._part.fileno())
        self._part.close()
        os.rename(self._path, self._shard(max(self._numbers(), default=-1) + 1))


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _mend(path: Path, revise: Revise) -> int:
    """Write a file anew unless all in it is as it should be; returns how many lines are damaged.

    A file that nothing is left of goes. Raises OutputError.
    """
    whole, is_right = 0, True
    for records in _media(path):
        whole += len(records)
        is_right &= revise(records) == records
    with path.open("rb") as lines:
        damaged = sum(1 for _ in lines) - whole
    if damaged or not is_right:
        with replacing(path) as temporary, temporary.open("wb") as file:
            for records in _media(path):
                file.writelines(map(_line, revise(records)))
    if not path.stat().st_size:
        path.unlink()
    return damaged


def _media(path: Path) -> Iterator[list[Example]]:
    """The records of a file, medium by medium, without damaged lines."""
    with path.open("rb") as lines:
        whole = (record for record in map(_parsed, lines) if record is not None)
        for _, records in groupby(whole, lambda record: record.get("source")):
            yield list(records)


def _parsed(line: bytes) -> Example | None:
    """The record of a line; None for a damaged one, as it is without its end."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
