"""Records in lines of JSON, plain or compressed by gzip or zstd: one block is held at a time."""

from __future__ import annotations

import json
import zlib
from bisect import bisect_left
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from lwm_core.data.extra import needed_for
from lwm_core.errors import FormatError, UsageError

SUFFIXES = (".jsonl", ".ndjson", ".json")
"""How such files are called; the name of a compression may follow."""
COMPRESSIONS = (".gz", ".zst")

BLOCK = 1 << 18
"""Bytes of a plain file that are read at once."""
PACKED = 1 << 10
"""Bytes of a compressed file that are: four of them may stand for 128 KiB (RFC 8878, 3.1.1.2), so
that what they hold stays below 32 MiB, whatever a file is made of."""
LONGEST = 1 << 28
"""Bytes of a line at most: a million codes of vision take six million."""


class JsonLines:
    """The records of one file, a line each.

    Raises UsageError for a file that can't be read, and FormatError for one that holds no lines
    but a single array.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self._path = path
        self._count: int | None = None
        # Line feeds before each block of a plain file, as far as it was looked through.
        self._feeds = [0]
        if path.suffix == ".json":
            self._check_is_lines()

    def read(self, start: int, step: int = 1) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Every `step`-th line from `start` on as a record, with its number; None for what is no
        JSON object.

        Blank lines are counted and left out. Raises FormatError, with the number of the record,
        for a compressed file that is cut short or damaged, and for one that the disk can't give.
        """
        for number, line in self._numbered(start):
            if (number - start) % step == 0 and (line is None or line.strip()):
                yield number, _parsed(line)

    def __len__(self) -> int:
        """The lines of the file, for which it is read through once."""
        if self._count is None:
            for _ in self._numbered(0):
                pass
        return self._count or 0

    def _numbered(self, start: int) -> Iterator[tuple[int, bytes | None]]:
        """The lines from number `start` on; None for one too long."""
        is_plain = self._path.suffix not in COMPRESSIONS
        number = start if is_plain else 0
        with self._opened() as file:
            try:
                if is_plain:
                    self._seek(file, start)
                for line in _lines(self._blocks(file)):
                    if number >= start:
                        yield number, line
                    number += 1
            except _Damaged as error:
                raise FormatError(
                    f"{self.name}: {error} at record {number}; fetch or write the file again"
                ) from error
            except OSError as error:
                raise FormatError(
                    f"{self.name}: can't be read at record {number}: {error.strerror or error}"
                ) from error
        if number > start or not start:  # otherwise the end may lie before `start`
            self._count = number

    def _opened(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise UsageError(f"{self.name}: can't be read: {error.strerror}") from error

    def _check_is_lines(self) -> None:
        with self._opened() as file:
            if file.read(1024).removeprefix(BOM_UTF8).lstrip().startswith(b"["):
                raise FormatError(
                    f"{self.name}: one JSON array, where a line for each record is needed; "
                    f"make them by: jq -c '.[]' {self._path.name}"
                )

    def _blocks(self, file: BinaryIO) -> Iterator[bytes]:
        """What is in the file from where it stands, unpacked."""
        if self._path.suffix not in COMPRESSIONS:
            return iter(lambda: file.read(BLOCK), b"")
        packed = iter(lambda: file.read(PACKED), b"")
        return _unpacked(packed, _gzip() if self._path.suffix == ".gz" else _zstd(self.name))

    def _seek(self, file: BinaryIO, start: int) -> None:
        """Go to where line `start` of a plain file begins, or to its end."""
        if start == 0:
            return
        while self._feeds[-1] < start:
            file.seek((len(self._feeds) - 1) * BLOCK)
            block = file.read(BLOCK)
            if len(block) < BLOCK:
                break
            self._feeds.append(self._feeds[-1] + block.count(b"\n"))
        before = bisect_left(self._feeds, start) - 1  # the block in which the line before ends
        file.seek(before * BLOCK)
        (feeds,) = np.nonzero(np.frombuffer(file.read(BLOCK), np.uint8) == ord("\n"))
        nth = start - self._feeds[before] - 1
        if nth < len(feeds):
            file.seek(before * BLOCK + int(feeds[nth]) + 1)


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends, the last one also if nothing ends it; None for one too long."""
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for end in ends:
            size += len(end)
            yield b"".join([*parts, end]) if size <= LONGEST else None
            parts, size = [], 0
        size += len(rest)
        if size <= LONGEST:
            parts.append(rest)
        else:
            parts.clear()
    if size:
        yield b"".join(parts) if size <= LONGEST else None


def _parsed(line: bytes | None) -> dict[str, Any] | None:
    if line is None:
        return None
    try:
        record = json.loads(line.removeprefix(BOM_UTF8).decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


# Compression


class _Damaged(Exception):
    """Compressed data that end too early or are none; the message says which."""


class _Unpacker(Protocol):
    """What unpacks one compressed stream, as in `zlib`."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Codec(NamedTuple):
    begin: Callable[[], _Unpacker]
    error: type[Exception]


def _gzip() -> _Codec:
    return _Codec(lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), zlib.error)


def _zstd(name: str) -> _Codec:
    with needed_for(name):
        import zstandard
    return _Codec(lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError)


def _unpacked(blocks: Iterator[bytes], codec: _Codec) -> Iterator[bytes]:
    """What was compressed; such files may be several streams, one behind the other."""
    stream = None
    for block in blocks:
        while block:
            stream = stream or codec.begin()
            try:
                yield stream.decompress(block)
            except codec.error as error:
                raise _Damaged(f"damaged ({error})") from error
            block, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream:
        raise _Damaged("cut short")
