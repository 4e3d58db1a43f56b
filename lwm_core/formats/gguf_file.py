"""GGUF files of llama.cpp: their metadata and tensors, read where they lie in the file.

The gguf package turns blocks of small numbers into float32. Its reader is not used: it believes
the counts in a file, and makes an array of every single value. Here every length is compared with
what is left of the file before anything is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from lwm_core.errors import FormatError
from lwm_core.formats.mapped import map_file, release

Kind = GGMLQuantizationType

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_AXES = 4

_SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
"""The types of metadata by number; two more are text and list."""
_TEXT, _LIST = 8, 9

_PLAIN = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: ml_dtypes.bfloat16}
_QUANTIZED = (
    *(Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
)
READABLE = (*_PLAIN, *_QUANTIZED)
"""The kinds of numbers that a tensor may have."""


class _Malformed(Exception):
    """What is wrong with the bytes; becomes a FormatError that names the file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `shape` as numpy has it (rows first), `data` its bytes, uint8."""

    kind: Kind
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """What `numbers` gives: the format of plain numbers, float32 of quantized ones."""
        return np.dtype(_PLAIN.get(self.kind, np.float32))

    def numbers(self) -> np.ndarray:
        """The numbers, `[*shape]`; those of a plain tensor are a view of the file."""
        if self.kind in _PLAIN:
            return self.data.view(self.dtype).reshape(self.shape)
        with np.errstate(all="ignore"):  # damaged scales may be infinite
            return dequantize(self.data.reshape(self.shape[0], -1), self.kind).reshape(self.shape)


class GGUFFile:
    """The metadata by key, and the tensors by name. Lists of numbers are arrays."""

    def __init__(self, path: str | Path) -> None:
        """Open a file.

        Raises UsageError when there is no such file, FormatError when it is damaged or no GGUF,
        or holds a tensor of a kind that is not in `READABLE`.
        """
        self.path = path
        self._mapping = map_file(path)
        reader = _Reader(np.frombuffer(self._mapping, np.uint8))
        try:
            tensors, values = reader.counts()
            self.metadata = reader.table(values, reader.value)
            infos = reader.table(tensors, reader.tensor_info)
            start = _aligned(reader.position, self.metadata.get("general.alignment", 32))
            self.tensors = {
                name: _tensor(name, reader.data[start:], *info) for name, info in infos.items()
            }
        except _Malformed as problem:
            raise self.wrong(str(problem)) from problem

    def release(self) -> None:
        """Give back the memory of what was read so far; views of it read it again."""
        release(self._mapping)

    def wrong(self, reason: str) -> FormatError:
        """An error about this file."""
        return FormatError(f"{self.path}: not a GGUF model that can be read: {reason}")

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A size or an id of the metadata. Raises FormatError when it is missing or none."""
        value = self.metadata.get(key, default)
        if type(value) is not int or value < least:
            raise self.wrong(f"{key} is {_shown(value)}, expected a whole number from {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0 of the metadata. Raises FormatError when it is missing or none."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int | float) or value is True or not 0 < value < inf:
            raise self.wrong(f"{key} is {_shown(value)}, expected a number above 0")
        return float(value)

    def text(self, key: str) -> str | None:
        """A text of the metadata, or None. Raises FormatError when it is something else."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"{key} is {_shown(value)}, expected a text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts of the metadata. Raises FormatError when it is missing or none."""
        value = self.metadata.get(key)
        if not isinstance(value, list):
            raise self.wrong(f"{key} is {_shown(value)}, expected a list of texts")
        return value

    def numbers(self, key: str, count: int) -> np.ndarray:
        """A list of `count` numbers of the metadata, `[count]`. Raises FormatError."""
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray) or len(value) != count:
            raise self.wrong(f"{key} is {_shown(value)}, expected a list of {count} numbers")
        return value


class _Reader:
    """Walks through the head of a file."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> np.ndarray:
        """The next bytes."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise _Malformed("it ends in the middle of a value; download it again")
        return self.data[start : self.position]

    def counts(self) -> tuple[int, int]:
        """How many tensors and how many values of metadata there are."""
        if self.data[: len(_MAGIC)].tobytes() != _MAGIC:
            raise _Malformed("it does not begin with GGUF")
        self.position = len(_MAGIC)
        version = self._integer(4)
        if version not in _VERSIONS:
            raise _Malformed(f"its version is {version}, expected 2 or 3, little-endian")
        return self._integer(8), self._integer(8)

    def table(self, count: int, read: Callable[[], Any]) -> dict[str, Any]:
        """`count` names, and what follows each."""
        entries: dict[str, Any] = {}
        for _ in range(count):
            name = self._text()
            if name in entries:
                raise _Malformed(f"{_shown(name)} is there twice")
            entries[name] = read()
        return entries

    def value(self) -> Any:
        """A value of metadata, after the number of its type."""
        kind = self._integer(4)
        if kind != _LIST:
            return self._text() if kind == _TEXT else self._scalars(kind, 1)[0]
        kind, count = self._integer(4), self._integer(8)
        if kind == _TEXT:
            return [self._text() for _ in range(count)]
        return self._array(kind, count)

    def tensor_info(self) -> tuple[tuple[int, ...], int, int]:
        """Shape, number of the kind, and offset of a tensor."""
        axes = self._integer(4)
        if not 1 <= axes <= _MAX_AXES:
            raise _Malformed(f"a tensor in it has {axes} axes")
        shape = tuple(self._integer(8) for _ in range(axes))
        return shape[::-1], self._integer(4), self._integer(8)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        array = self._array(kind, count)
        if array.dtype == np.float32:  # 1e-5 shall not become 9.999999747378752e-06
            return [float(str(number)) for number in array]
        return array.tolist()

    def _array(self, kind: int, count: int) -> np.ndarray:
        if kind not in _SCALARS:
            raise _Malformed(f"its metadata hold a value of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return self.take(count * dtype.itemsize).view(dtype)

    def _integer(self, size: int) -> int:
        return int.from_bytes(self.take(size).tobytes(), "little")

    def _text(self) -> str:
        try:
            return self.take(self._integer(8)).tobytes().decode()
        except UnicodeDecodeError as error:
            raise _Malformed("a text in it is no UTF-8") from error


def _aligned(position: int, alignment: Any) -> int:
    """Where the tensors begin."""
    if type(alignment) is not int or alignment < 1:
        raise _Malformed(f"general.alignment is {_shown(alignment)}")
    return -(-position // alignment) * alignment


def _tensor(
    name: str, data: np.ndarray, shape: tuple[int, ...], number: int, offset: int
) -> StoredTensor:
    """A tensor at an offset in the bytes of all."""
    known = {kind.value: kind for kind in Kind}
    kind = known.get(number)
    if kind not in READABLE:
        readable = ", ".join(one.name for one in READABLE)
        stored = kind.name if kind else f"the unknown kind {number}"
        raise _Malformed(f"{_shown(name)} is stored as {stored}; take a file of {readable}")
    block, block_bytes = GGML_QUANT_SIZES[kind]
    count = math.prod(shape)
    if not count or shape[-1] % block:
        raise _Malformed(f"{_shown(name)} has the shape {shape}, which {kind.name} can't have")
    size = count // block * block_bytes
    if offset + size > len(data):
        raise _Malformed(f"it ends before the end of {_shown(name)}; download it again")
    return StoredTensor(kind, shape, data[offset : offset + size])


def _shown(value: Any) -> str:
    """A value of a file in a message: in one line, and short."""
    if value is None:
        return "missing"
    return f"{value if isinstance(value, int | float) else ascii(value)!s:.80}"
