"""Where the entries of an uncompressed zip lie in the file, so that each can be read by itself."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np

from lwm_core.errors import FormatError

MAX_TABLE = 1 << 20
"""Bytes of a table of contents that are read at once: those of large models have a tenth of it."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # its mark; the lengths of the name and of what follows
_ENCRYPTED = 1


class Entry(NamedTuple):
    """The bytes of one entry: where they begin in the file, and how many they are."""

    begin: int
    size: int


def stored_entries(path: Path) -> dict[str, Entry]:
    """The entries of a zip by name, all inside the file.

    Raises FormatError when the file is missing or damaged, or when an entry is compressed.
    """
    try:
        if not path.is_file():
            raise FormatError(f"{path}: missing; fetch the model again")
        with _SmallReads(open(path, "rb", buffering=0)) as file, ZipFile(file) as table:
            end = path.stat().st_size
            return {info.filename: _locate(file, info, end) for info in table.infolist()}
    except OSError as error:
        raise FormatError(
            f"{path}: can't be read ({error.strerror or 'damaged'}); fetch the model again"
        ) from error
    except (BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        reason = " ".join(str(error).split())[:100]
        raise FormatError(f"{path}: not whole ({reason}); fetch the model again") from error


def read_entry(path: Path, entry: Entry) -> np.ndarray:
    """The bytes of an entry, or of a part of one: `uint8 [size]`.

    Raises FormatError when the file can't be read, or has become shorter.
    """
    try:
        content = np.fromfile(path, np.uint8, entry.size, offset=entry.begin)
    except OSError as error:
        raise FormatError(f"{path}: can't be read ({error.strerror})") from error
    if content.size != entry.size:
        raise FormatError(f"{path}: it was cut off while it was read; fetch the model again")
    return content


class _SmallReads(io.BufferedReader):
    """A file that gives little at once: a length in a damaged zip must not claim memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_TABLE:
            raise BadZipFile("its table of contents is too large")
        return super().read(size)


def _locate(file: BinaryIO, info: ZipInfo, end: int) -> Entry:
    """Follow the table of contents to the header that stands before the bytes of an entry."""
    if info.compress_type != ZIP_STORED or info.compress_size != info.file_size:
        raise BadZipFile("its entries are compressed, which those of weights never are")
    if info.flag_bits & _ENCRYPTED:
        raise BadZipFile("its entries are encrypted")
    file.seek(info.header_offset)
    mark, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    begin = info.header_offset + _LOCAL_HEADER.size + name + extra
    if mark != b"PK\3\4" or begin + info.file_size > end:
        raise BadZipFile("its table of contents does not fit the file")
    return Entry(begin, info.file_size)
