"""Read the weights of a Hugging Face directory that PyTorch wrote: `pytorch_model.bin` and shards.

Such a file is an uncompressed zip. Its `data.pkl` is a pickle of a dict of tensors; each says which
entry `data/<key>` holds its numbers, and by what offset and strides. The pickle is read as data,
once for each file; the numbers of a tensor are read when they are asked for, and are not kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lwm_core.errors import FormatError
from lwm_core.formats.pickle_data import (
    Constructors,
    Global,
    OrderedDict,
    RefusedPickle,
    read_pickle,
)
from lwm_core.formats.stored_zip import MAX_TABLE, Entry, read_entry, stored_entries
from lwm_core.tensor_files import Shape, TensorFiles

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_MAX_AXES = 8
_MAX_NUMBER = 1 << 48  # beyond every file; keeps the arithmetic of sizes short
_PICKLE = b"\x80"  # how a pickle begins


class TorchFile:
    """The tensors of one file, for instance of one shard.

    Raises FormatError when the file is missing, damaged, of the format that PyTorch wrote before
    1.6, or when its pickle is more than a dict of tensors; nothing that it names is ever called.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            self._tensors = _read_table(path)
        except RefusedPickle as error:
            raise FormatError(
                f"{path}: refused as weights, and nothing in it was run: {error}; "
                "get the file from the model's own repository"
            ) from error
        self.names: Collection[str] = self._tensors.keys()

    def shape(self, name: str) -> Shape:
        """The shape of one tensor, without reading its numbers."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """The number format of one tensor."""
        return self._tensors[name].dtype.name

    def tensor(self, name: str) -> np.ndarray:
        """One tensor, in the type that is stored; a transposed one comes as a transposed view.

        Raises FormatError when the file can't be read any more.
        """
        stored = self._tensors[name]
        numbers = read_entry(self._path, stored.place)
        return np.ndarray(stored.shape, stored.dtype, numbers, strides=stored.strides)


class TorchFiles(TensorFiles):
    """The tensors by name of a directory with `pytorch_model.bin`, or with shards and an index.

    Raises FormatError when there are no such files or they hold anything but tensors.
    """

    whole, index = WEIGHTS, INDEX
    open_file = TorchFile


class _Storage(NamedTuple):
    """An entry of the zip as a run of `size` numbers."""

    dtype: np.dtype
    begin: int
    size: int


class _Tensor(NamedTuple):
    """Where the numbers of a tensor are, and their order; strides are in bytes as numpy's."""

    dtype: np.dtype
    shape: Shape
    strides: tuple[int, ...]
    place: Entry


def _read_table(path: Path) -> dict[str, _Tensor]:
    """The tensors that a file describes, all inside their entries."""
    _check_new_format(path)
    entries = stored_entries(path)
    folders = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise RefusedPickle("it holds no data.pkl, or several")
    (folder,) = folders

    def find_storage(identifier: Any) -> _Storage:
        match identifier:
            case ("storage", Global(name=kind), str(key), _, int(count)) if kind in _DTYPES:
                return _storage(_DTYPES[kind], entries.get(f"{folder}data/{key}"), count)
        raise RefusedPickle("it refers to what is no storage of numbers")

    if _content(path, entries.get(f"{folder}byteorder", Entry(0, 0))) not in (b"", b"little"):
        raise RefusedPickle("its numbers are big-endian")
    table = read_pickle(_content(path, entries[f"{folder}data.pkl"]), _CONSTRUCTORS, find_storage)
    if not isinstance(table, dict):
        raise RefusedPickle(f"it holds a {type(table).__name__} where a dict of tensors should be")
    return {name: value for name, value in table.items() if isinstance(value, _Tensor)}


def _check_new_format(path: Path) -> None:
    """Older files are one pickle after another; what to do about them is worth a word."""
    try:
        if not path.is_file():  # to open a pipe would wait for its other end
            return
        with open(path, "rb") as file:
            old = file.read(1) == _PICKLE
    except OSError:
        return  # the zip's reader says why
    if old:
        raise FormatError(
            f"{path}: a bare pickle: PyTorch before 1.6 wrote such weights, and anybody may write "
            "others; fetch the model as safetensors"
        )


def _content(path: Path, entry: Entry) -> bytes:
    """All bytes of a small entry."""
    if entry.size > MAX_TABLE:
        raise RefusedPickle("its table of tensors is too large")
    return read_entry(path, entry).tobytes()


def _storage(dtype: np.dtype, entry: Entry | None, count: int) -> _Storage:
    if entry is None or count * dtype.itemsize != entry.size:
        raise RefusedPickle("a storage is missing or has not as many numbers as it should")
    return _Storage(dtype, entry.begin, count)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """What `torch._utils._rebuild_tensor_v2` is given, counted in numbers; hooks are left out."""
    fits = (
        isinstance(storage, _Storage)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MAX_AXES
        and all(type(n) is int and 0 <= n <= _MAX_NUMBER for n in (offset, *shape, *strides))
    )
    if not fits:
        raise RefusedPickle("a tensor has an impossible shape or place")
    numbers = math.prod(shape)
    steps = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    span = steps + 1 if numbers else 0
    # An expanded tensor would repeat its numbers: a few bytes that claim to be gigabytes.
    if max(offset + span, numbers) > storage.size:
        raise RefusedPickle("a tensor is larger than its storage")
    width = storage.dtype.itemsize
    return _Tensor(
        storage.dtype,
        shape,
        tuple(stride * width for stride in strides),
        Entry(storage.begin + offset * width, span * width),
    )


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _only_named(*_: Any) -> None:
    raise RefusedPickle("it calls the type of a storage")


_CONSTRUCTORS: Constructors = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _only_named for name in _DTYPES},
}
