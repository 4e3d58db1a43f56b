"""The safetensors of one directory, one file or many with an index: read and written by name.

Reading maps the files into memory. Writing needs the shapes beforehand, and then holds one tensor
at a time, so that models larger than the memory can pass through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from lwm_core.errors import FormatError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 << 30

Shape = tuple[int, ...]

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model directory. Raises FormatError when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: missing; this is no whole model directory") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not readable as JSON; fetch or convert it again") from error
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds no JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON object, indented for people."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class TensorFiles:
    """The tensors of a directory by name."""

    def __init__(self, directory: Path):
        if (directory / INDEX).exists():
            places = read_json(directory / INDEX).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
                raise FormatError(f"{directory / INDEX}: weight_map is no table of file names")
            self._files = {name: directory / Path(file).name for name, file in places.items()}
        else:
            whole = directory / WEIGHTS
            self._files = dict.fromkeys(_open(whole).keys(), whole)
        self._opened: dict[Path, Any] = {}

    def read(self, name: str, shape: Shape) -> np.ndarray:
        """One tensor. Raises FormatError when it is missing or has another shape."""
        if name not in self._files:
            raise FormatError(f"{name} is missing from the weights; fetch or convert them again")
        path = self._files[name]
        if path not in self._opened:
            self._opened[path] = _open(path)
        try:
            tensor: np.ndarray = self._opened[path].get_tensor(name)
        except SafetensorError as error:
            raise FormatError(f"{path}: {name} is not there; fetch or convert it again") from error
        if tensor.shape != shape:
            raise FormatError(f"{path}: {name} has shape {tensor.shape}, config.json says {shape}")
        return tensor


def _open(path: Path) -> Any:
    if not path.exists():
        raise FormatError(f"{path}: missing; fetch or convert the model again")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: not whole ({error}); fetch or convert it again") from error


def write_tensors(
    folder: Path,
    shapes: Mapping[str, Shape],
    dtype: np.dtype,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors, in whatever order they come, each cast to `dtype` and put in its place.

    What is more than `shard_bytes` goes to several files and an index. Raises ValueError when the
    tensors are not those of `shapes`.
    """
    shards = list(_shards(shapes, dtype.itemsize, shard_bytes))
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(map(math.prod, shapes.values())) * dtype.itemsize
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    with ExitStack() as opened:
        places: dict[str, tuple[BinaryIO, int]] = {}
        for name, shard in zip(names, shards, strict=True):
            file = opened.enter_context((folder / name).open("wb"))
            places |= _write_header(file, shard, dtype)
        for name, tensor in tensors:
            if tensor.shape != shapes[name]:
                raise ValueError(f"{name} has shape {tensor.shape}, expected {shapes[name]}")
            target, begin = places.pop(name)
            target.seek(begin)
            target.write(np.ascontiguousarray(tensor, dtype).tobytes())
    if places:
        raise ValueError(f"{', '.join(places)} did not come")


def _shards(
    shapes: Mapping[str, Shape], itemsize: int, shard_bytes: int
) -> Iterator[dict[str, Shape]]:
    """Tensors by file, in their order: as many as a file may hold, at least one."""
    shard: dict[str, Shape] = {}
    size = 0
    for name, shape in shapes.items():
        bytes_ = math.prod(shape) * itemsize
        if shard and size + bytes_ > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += bytes_
    yield shard


def _write_header(
    file: BinaryIO, shapes: Mapping[str, Shape], dtype: np.dtype
) -> dict[str, tuple[BinaryIO, int]]:
    """The table at the begin of a safetensors file: its length, then JSON padded to 8 bytes.

    Returns where each tensor's bytes go.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        begins[name] = end
        end += math.prod(shape) * dtype.itemsize
        offsets = [begins[name], end]
        table[name] = {"dtype": _CODES[dtype.name], "shape": shape, "data_offsets": offsets}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: (file, 8 + len(text) + begin) for name, begin in begins.items()}
