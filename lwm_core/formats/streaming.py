"""Read LWM's streaming weight files: msgpack pairs `[path, tensor]`, one after another.

The file is mapped, not loaded, and every tensor stays there until it is read, whole or one index
of its first axis, so that a file of many gigabytes costs no memory but for what is in use. This is
why msgpack is decoded here: the msgpack package copies a binary at each of the three levels at
which this format nests it. Every length is compared with what is left of the file before anything
is made of it.

A tensor is itself a msgpack document: an extension 1 (array) or 3 (scalar) whose payload is
`[shape, dtype name, little-endian bytes]`, a bare number, or, for arrays over 2^30 bytes, a map
with a shape and flat chunks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lwm_core.errors import FormatError
from lwm_core.formats.mapped import map_file, release

_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_SIZED = {
    **{0xC4: ("binary", ">B"), 0xC5: ("binary", ">H"), 0xC6: ("binary", ">I")},
    **{0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I")},
    **{0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I")},
    **{0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I")},
}
_MAX_DEPTH = 8
_MAX_VALUES = 100_000  # in one document; a real one has a few dozen
_MAX_SIZE = 1 << 40


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: flat pieces of the mapping, which are joined only when it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[np.ndarray, ...]

    def read(self, index: int | None = None) -> np.ndarray:
        """All of it, or what is at `index` of its first axis: a view, if that is in one piece."""
        if index is None:
            return self._flat(0, math.prod(self.shape)).reshape(self.shape)
        size = math.prod(self.shape[1:])
        return self._flat(index * size, (index + 1) * size).reshape(self.shape[1:])

    def _flat(self, begin: int, end: int) -> np.ndarray:
        parts = []
        for piece in self.pieces:
            if begin < len(piece) and end > 0:
                parts.append(piece[max(begin, 0) : end])
            begin, end = begin - len(piece), end - len(piece)
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, self.dtype)])


class _Malformed(Exception):
    """What is wrong with the bytes; becomes a FormatError that names the file."""


class _Extension(NamedTuple):
    code: int
    payload: memoryview


class _Reader:
    """Walks through msgpack; binaries and extensions come out as views of the data."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0
        self.values = 0

    def read(self, depth: int = 0) -> Any:
        """The next value."""
        self.values += 1
        if depth > _MAX_DEPTH or self.values > _MAX_VALUES:
            raise _Malformed("it nests or repeats values endlessly")
        byte = self._take(1)[0]
        if byte in _CONSTANTS:
            return _CONSTANTS[byte]
        if byte in _NUMBERS:
            return self._number(_NUMBERS[byte])
        if byte < 0x80 or byte >= 0xE0:
            return byte if byte < 0x80 else byte - 0x100
        kind, size = self._header(byte)
        match kind:
            case "binary":
                return self._take(size)
            case "text":
                return self._text(size)
            case "extension":
                return _Extension(self._number(">b"), self._take(size))
            case "array":
                return [self.read(depth + 1) for _ in range(size)]
            case _:
                return {self._key(): self.read(depth + 1) for _ in range(size)}

    def _header(self, byte: int) -> tuple[str, int]:
        """The kind of a value with a length, and the length."""
        if byte in _SIZED:
            kind, code = _SIZED[byte]
            return kind, self._number(code)
        if byte < 0xA0:
            return ("map" if byte < 0x90 else "array"), byte & 0x0F
        if byte < 0xC0:
            return "text", byte & 0x1F
        if 0xD4 <= byte <= 0xD8:
            return "extension", 1 << (byte - 0xD4)
        raise _Malformed("it holds bytes that are no msgpack")

    def _take(self, size: int) -> memoryview:
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise _Malformed("it ends in the middle of a value, so it is cut off or no such file")
        return self.data[start : self.position]

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _text(self, size: int) -> str:
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise _Malformed("a name in it is no UTF-8") from error

    def _key(self) -> str:
        key = self.read(_MAX_DEPTH)
        if not isinstance(key, str):
            raise _Malformed("a map in it has keys that are no text")
        return key


class StreamingFile:
    """A weight file, mapped: its paths, and the array at each.

    Raises UsageError when there is no such file, FormatError when it is not of this format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._mapping = map_file(path)
        self._documents = dict(_pairs(path, memoryview(self._mapping)))

    @property
    def paths(self) -> list[tuple[str, ...]]:
        """The paths of all arrays in their order."""
        return list(self._documents)

    def __getitem__(self, keys: tuple[str, ...]) -> StoredArray:
        """The array at a path, still in the file. Raises FormatError when it is malformed."""
        try:
            return _tensor(self._documents[keys])
        except _Malformed as error:
            raise _refusal(self.path, f"{'/'.join(keys)!a:.160}: {error}") from error

    def release(self) -> None:
        """Give back the memory that was read so far; views of it stay valid and read again."""
        release(self._mapping)


def _pairs(path: str | Path, rest: memoryview) -> Iterator[tuple[tuple[str, ...], memoryview]]:
    """Paths and undecoded tensors; each pair gets a reader, and with it a budget, of its own."""
    while rest:
        try:
            reader = _Reader(rest)
            pair = reader.read()
        except _Malformed as error:
            raise _refusal(path, str(error)) from error
        match pair:
            case [[*keys], memoryview() as document] if all(isinstance(key, str) for key in keys):
                yield tuple(keys), document
            case _:
                raise _refusal(path, "it is no series of pairs of a path and a tensor")
        rest = rest[reader.position :]


def _refusal(path: str | Path, reason: str) -> FormatError:
    return FormatError(f"{path}: not a whole LWM streaming file ({reason}); download it again")


def _tensor(document: memoryview) -> StoredArray:
    reader = _Reader(document)
    value = reader.read()
    if reader.position != len(document):
        raise _Malformed("there are bytes after the tensor")
    match value:
        case _Extension(1 | 3, payload):
            return _array(payload)
        case {"__msgpack_chunked_array__": True, "shape": dict(shape), "chunks": dict(chunks)}:
            return _joined(shape, chunks)
        case bool():
            raise _Malformed("it is no tensor")
        case int() | float():
            number = np.asarray(value)
            return StoredArray((), number.dtype, (number.reshape(1),))
    raise _Malformed("it is no tensor")


def _array(payload: memoryview) -> StoredArray:
    match _Reader(payload).read():
        case [[*shape], str(name), memoryview() as data]:
            if name not in _DTYPES:
                raise _Malformed(f"numbers of type {name!a:.40} are unknown")
            if len(data) % _DTYPES[name].itemsize:
                raise _Malformed(f"{len(data)} bytes are no whole {name} numbers")
            return _shaped(shape, np.frombuffer(data, _DTYPES[name]))
    raise _Malformed("an array is not [shape, type, bytes]")


def _joined(shape: dict[str, Any], chunks: dict[str, Any]) -> StoredArray:
    """One array of flat pieces; both maps have the keys "0", "1", … in any order."""
    parts = [_array(piece.payload) for piece in _in_order(chunks, _Extension)]
    if len({part.dtype for part in parts}) != 1:
        raise _Malformed("the chunks of an array are of different types")
    return _shaped(_in_order(shape, int), *(part.pieces[0] for part in parts))


def _in_order(items: dict[str, Any], kind: type) -> list[Any]:
    values = [items.get(str(index)) for index in range(len(items))]
    if not all(isinstance(value, kind) for value in values):
        raise _Malformed("an array in chunks is not whole")
    return values


def _shaped(shape: list[Any], *pieces: np.ndarray) -> StoredArray:
    sizes = tuple(size for size in shape if isinstance(size, int) and size >= 0)
    held = sum(map(len, pieces))
    if len(sizes) != len(shape) or len(shape) > 32 or math.prod(sizes) != held:
        raise _Malformed(f"{held} numbers do not fill the shape it claims")
    if max(sizes, default=0) > _MAX_SIZE:  # of no numbers at all, yet more than machines count
        raise _Malformed("the shape of an array is absurd")
    return StoredArray(sizes, pieces[0].dtype, pieces)
