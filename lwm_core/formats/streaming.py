"""Read LWM's streaming weight files: msgpack pairs `[path, tensor]`, one after another.

The file is mapped, not loaded, and every tensor is a view of the mapping, so that a file of many
gigabytes costs no memory until a tensor is used. This is why msgpack is decoded here: the msgpack
package copies a binary at each of the three levels at which this format nests it. Every length is
compared with what is left of the file before anything is made of it.

A tensor is itself a msgpack document: an extension 1 (array) or 3 (scalar) whose payload is
`[shape, dtype name, little-endian bytes]`, a bare number, or, for arrays over 2^30 bytes, a map
with a shape and flat chunks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lwm_core.errors import FormatError
from lwm_core.formats.mapped import map_file

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


def read_streaming(
    path: str | Path, *, below: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield `(path, tensor)` in the order of the file, each tensor a read-only view of the file.

    With `below`, only what lies under that path, which is then left out: the weights of a whole
    training state are `below=("params", "params")`. A tensor that the file holds in chunks is the
    exception: it is joined in memory when its turn comes.

    Raises UsageError when there is no such file, FormatError when it is not of this format.
    """
    for keys, document in _pairs(path):
        if keys[: len(below)] == below:
            try:
                yield keys[len(below) :], _tensor(document)
            except _Malformed as error:
                raise _refusal(path, f"{'/'.join(keys)!a:.160}: {error}") from error


def streaming_keys(path: str | Path) -> list[tuple[str, ...]]:
    """The paths of all tensors of a file; reads no tensor. Raises as `read_streaming` does."""
    return [keys for keys, _ in _pairs(path)]


def _pairs(path: str | Path) -> Iterator[tuple[tuple[str, ...], memoryview]]:
    """Paths and undecoded tensors; each pair gets a reader, and with it a budget, of its own."""
    rest = memoryview(map_file(path))
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


def _tensor(document: memoryview) -> np.ndarray:
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
            return np.asarray(value)
    raise _Malformed("it is no tensor")


def _array(payload: memoryview) -> np.ndarray:
    match _Reader(payload).read():
        case [[*shape], str(name), memoryview() as data]:
            if name not in _DTYPES:
                raise _Malformed(f"numbers of type {name!a:.40} are unknown")
            if len(data) % _DTYPES[name].itemsize:
                raise _Malformed(f"{len(data)} bytes are no whole {name} numbers")
            return _shaped(np.frombuffer(data, _DTYPES[name]), shape)
    raise _Malformed("an array is not [shape, type, bytes]")


def _joined(shape: dict[str, Any], chunks: dict[str, Any]) -> np.ndarray:
    """One array of flat pieces; both maps have the keys "0", "1", … in any order."""
    pieces = [_array(piece.payload) for piece in _in_order(chunks, _Extension)]
    if len({piece.dtype for piece in pieces}) != 1:
        raise _Malformed("the chunks of an array are of different types")
    return _shaped(np.concatenate([piece.reshape(-1) for piece in pieces]), _in_order(shape, int))


def _in_order(items: dict[str, Any], kind: type) -> list[Any]:
    values = [items.get(str(index)) for index in range(len(items))]
    if not all(isinstance(value, kind) for value in values):
        raise _Malformed("an array in chunks is not whole")
    return values


def _shaped(flat: np.ndarray, shape: list[Any]) -> np.ndarray:
    sizes = [size for size in shape if isinstance(size, int) and size >= 0]
    if len(sizes) != len(shape) or len(shape) > 32 or math.prod(sizes) != flat.size:
        raise _Malformed(f"{flat.size} numbers do not fill the shape it claims")
    try:
        return flat.reshape(sizes)
    except ValueError as error:  # no numbers, yet sizes that no machine can count
        raise _Malformed("the shape of an array is absurd") from error
