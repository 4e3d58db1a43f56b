"""The safetensors of one directory, one file or many with an index: read and written by name.

Reading takes one tensor from the disk. Writing needs the shapes beforehand, and then holds one
tensor at a time, so that models larger than the memory can pass through.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from zlib import crc32

import ml_dtypes  # noqa: F401  (tells numpy of bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from lwm_core.errors import FormatError, OutputError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 << 30

Shape = tuple[int, ...]

_FILE_NAME = re.compile(r"[\w-][\w.-]{0,200}", re.ASCII)
_NUMBERS = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I8": "int8", "U8": "uint8", "I32": "int32"},
}
_CODES = {name: code for code, name in _NUMBERS.items()}
"""Number formats as safetensors spells them, and as numpy does."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model directory. Raises FormatError when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: missing; this is no whole model directory") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not readable as JSON; fetch or convert it again") from error
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds no JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON object, indented for people."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class WeightFile(Protocol):
    """One file of weights, opened: its tensors by name."""

    @property
    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> Shape: ...

    def dtype(self, name: str) -> str: ...

    def tensor(self, name: str) -> np.ndarray: ...


class SafetensorsFile:
    """One safetensors file. Raises FormatError when it is missing or not whole."""

    def __init__(self, path: Path):
        if not path.exists():
            raise FormatError(f"{path}: missing; fetch or convert the model again")
        try:
            with safe_open(path, framework="numpy"):  # compares the table with the file
                pass
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path}: not whole ({error}); fetch or convert it again") from error
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self._table: dict[str, dict[str, Any]] = json.loads(file.read(size))
        self._path, self._begin = path, 8 + size
        self.metadata: Mapping[str, str] = self._table.pop("__metadata__", None) or {}
        self.names: Collection[str] = self._table.keys()

    def shape(self, name: str) -> Shape:
        return tuple(self._table[name]["shape"])

    def dtype(self, name: str) -> str:
        code = self._table[name]["dtype"]
        return _NUMBERS.get(code, code)

    def tensor(self, name: str) -> np.ndarray:
        """One tensor where it lies in the file: read page by page, when it is used."""
        shape, dtype = self.shape(name), self.dtype(name)
        if dtype not in _CODES:
            known = ", ".join(_CODES)
            raise FormatError(f"{self._path}: {name} is stored as {dtype}; what is read is {known}")
        begin = self._begin + self._table[name]["data_offsets"][0]
        # Mapped for each: what was read of a mapping counts as this program's memory.
        with self._path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapping, dtype, math.prod(shape), begin).reshape(shape)


class TensorFiles:
    """The tensors of a directory by name: in one file, `whole`, or in many that `index` lists.

    Raises FormatError when the index, or without one the file, is missing or damaged.
    """

    whole, index = WEIGHTS, INDEX
    open_file: Callable[[Path], WeightFile] = SafetensorsFile

    def __init__(self, directory: Path):
        self._opened: dict[Path, WeightFile] = {}
        if (directory / self.index).exists():
            self._files = _read_index(directory / self.index)
        else:
            path = directory / self.whole
            self._files = dict.fromkeys(self._open(path).names, path)

    @classmethod
    def found(cls, directory: Path) -> bool:
        """Whether a directory holds weights of this kind."""
        return (directory / cls.whole).exists() or (directory / cls.index).exists()

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors, those of shards as the index has them."""
        return self._files.keys()

    def check(self, name: str, shape: Shape) -> None:
        """Raise FormatError unless a tensor is there and has this shape."""
        if name not in self._files:
            raise FormatError(f"{name} is missing from the weights; fetch or convert them again")
        path = self._files[name]
        file = self._open(path)
        if name not in file.names:
            raise FormatError(f"{path}: {name} is not there; fetch or convert it again")
        if file.shape(name) != shape:
            raise FormatError(
                f"{path}: {name} has shape {file.shape(name)}, config.json says {shape}"
            )

    def dtype(self, name: str) -> str:
        """The number format of a tensor: numpy's name, or safetensors' code of one it lacks."""
        return self._open(self._files[name]).dtype(name)

    def read(self, name: str, shape: Shape) -> np.ndarray:
        """One tensor. Raises FormatError when it is missing or has another shape."""
        self.check(name, shape)
        return self._open(self._files[name]).tensor(name)

    def _open(self, path: Path) -> WeightFile:
        if path not in self._opened:
            self._opened[path] = type(self).open_file(path)
        return self._opened[path]


def _read_index(path: Path) -> dict[str, Path]:
    """The file of each tensor; files lie beside the index and nowhere else."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise FormatError(f"{path}: weight_map is no table of file names")
    for file in places.values():
        if not _FILE_NAME.fullmatch(file):
            raise FormatError(f"{path}: weight_map names {file!a:.80}, which is no file beside it")
    return {name: path.parent / file for name, file in places.items()}


def write_tensors(
    folder: Path,
    table: Mapping[str, tuple[Shape, str]],
    tensors: Iterable[tuple[str, np.ndarray]],
    on_bytes: Callable[[int], None] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors, in whatever order they come, each cast and put in its place.

    The table has the shape and number format of each by name. What is more than `shard_bytes` goes
    to several files and an index. `on_bytes(count)` is called after each. At the end all are read
    again and compared with what was meant. Raises ValueError when the tensors are not those of the
    table, OutputError when the disk gives back other bytes.
    """
    meant = {name: (shape, np.dtype(number)) for name, (shape, number) in table.items()}
    shards = list(_shards(meant, shard_bytes))
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in meant.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    checksums: dict[str, int] = {}
    with ExitStack() as opened:
        places: dict[str, tuple[BinaryIO, int]] = {}
        for name, shard in zip(names, shards, strict=True):
            file = opened.enter_context((folder / name).open("wb"))
            begins = write_header(file, shard, {"format": "pt"})
            places |= {key: (file, begin) for key, begin in begins.items()}
        for name, tensor in tensors:
            shape, dtype = meant[name]
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tensor.shape}, expected {shape}")
            target, begin = places.pop(name)
            data = bytes_of(np.ascontiguousarray(tensor, dtype))
            target.seek(begin)
            target.write(data)
            checksums[name] = crc32(data)
            if on_bytes:
                on_bytes(len(data))
    if places:
        raise ValueError(f"{', '.join(places)} did not come")
    written = TensorFiles(folder)
    for name, checksum in checksums.items():
        if crc32(bytes_of(written.read(name, meant[name][0]))) != checksum:
            raise OutputError(f"{name} reads otherwise than it was written; check the disk")


def bytes_of(tensor: np.ndarray) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    return tensor.reshape(-1).view(np.uint8).data


def _shards(
    table: Mapping[str, tuple[Shape, np.dtype]], shard_bytes: int
) -> Iterator[dict[str, tuple[Shape, np.dtype]]]:
    """Tensors by file, in their order: as many as a file may hold, at least one."""
    shard: dict[str, tuple[Shape, np.dtype]] = {}
    size = 0
    for name, (shape, dtype) in table.items():
        bytes_ = math.prod(shape) * dtype.itemsize
        if shard and size + bytes_ > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = shape, dtype
        size += bytes_
    yield shard


def write_header(
    file: BinaryIO,
    tensors: Mapping[str, tuple[Shape, np.dtype]],
    metadata: Mapping[str, str],
) -> dict[str, int]:
    """The table at the begin of a safetensors file: its length, then JSON padded to 8 bytes.

    `tensors` are shapes and number formats by name. Returns where each tensor's bytes go.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    end = 0
    for name, (shape, dtype) in tensors.items():
        begins[name] = end
        end += math.prod(shape) * dtype.itemsize
        offsets = [begins[name], end]
        table[name] = {"dtype": _CODES[dtype.name], "shape": shape, "data_offsets": offsets}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + begin for name, begin in begins.items()}
