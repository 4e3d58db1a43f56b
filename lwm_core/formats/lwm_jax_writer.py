"""Write weights as the original does: streamed `params` and a pickled `vqgan`.

Sizes of the nested msgpack are known before the numbers are, so that a tensor of all layers is
written layer by layer. The keys come in the order of flax's sorted trees.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import msgpack
import numpy as np

from lwm_core import vqgan
from lwm_core.config import ModelConfig
from lwm_core.errors import OutputError
from lwm_core.formats import lwm_jax
from lwm_core.formats.streaming import StreamingFile
from lwm_core.formats.vqgan_names import original_name
from lwm_core.tensor_files import bytes_of
from lwm_core.weights import Weights

CHUNK_BYTES = 1 << 30
"""Arrays of more bytes are stored in pieces, as flax does."""

Layout = list[bytes | int]
"""A document with gaps: bytes as they are, and how many bytes of numbers come between them."""


def write_streaming(
    path: Path,
    config: ModelConfig,
    weights: Weights,
    dtype: np.dtype,
    on_bytes: Callable[[int], None] | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Write weights as a streaming file of the original, layers stacked, cast to `dtype`.

    `on_bytes(count)` is called after each layer of each tensor. At the end all are read again and
    compared with what was meant: raises OutputError when the disk gives back other bytes.
    """
    checksums = {}
    shapes = {
        tuple(name.split("/")): shape for name, shape in lwm_jax.stored_shapes(config).items()
    }
    with path.open("wb") as file:
        for keys, shape in sorted(shapes.items()):
            document = _document(shape, dtype, chunk_bytes)
            parts = (np.ascontiguousarray(part, dtype) for part in _parts(config, weights, keys))
            layout = [b"\x92" + msgpack.packb(keys), *_binary(document)]
            checksums[keys] = _fill(file, layout, parts, on_bytes)
    written = StreamingFile(path)
    for keys, checksum in checksums.items():
        if _checksum(written, keys) != checksum:
            name = "/".join(keys)
            raise OutputError(f"{name} reads otherwise than it was written; check the disk")


def _checksum(file: StreamingFile, keys: tuple[str, ...]) -> int:
    """The checksum of a tensor's bytes, read layer by layer."""
    array, found = file[keys], 0
    for index in range(array.shape[0]):
        found = crc32(bytes_of(np.ascontiguousarray(array.read(index))), found)
        file.release()
    return found


def write_vqgan_pickle(path: Path, image: vqgan.VQGAN) -> None:
    """Write an image tokenizer as nested dicts of float32 arrays under the original's names."""
    tree: dict[str, Any] = {}
    for name, tensor in vqgan.to_tensors(image).items():
        *outer, last = original_name(name)
        branch = tree
        for key in outer:
            branch = branch.setdefault(key, {})
        branch[last] = np.asarray(tensor, np.float32)
    with path.open("wb") as file:
        pickle.dump(tree, file, protocol=4)


def _parts(config: ModelConfig, weights: Weights, keys: tuple[str, ...]) -> Iterator[np.ndarray]:
    """A tensor of the original in pieces along its first axis."""
    path = "/".join(keys)
    for table, names in lwm_jax.TABLES.items():
        if path in names:
            whole = weights.read("embed" if config.tie_embeddings else table)
            text = slice(config.text_vocab)
            rows = whole[text if path == names[0] else slice(config.text_vocab, None)]
            yield rows if table == "embed" else rows.T
            return
    if path == lwm_jax.NORM:
        yield weights.read("norm")
        return
    kind = lwm_jax.kind_at(path)
    for layer in range(config.layers):
        tensor = weights.read(f"layers.{kind}", layer)
        if kind in lwm_jax.TURNED:
            tensor = lwm_jax.to_pairs(tensor, config.head_dim)
        yield tensor if kind in lwm_jax.NORMS else tensor.T


def _fill(
    file: BinaryIO,
    layout: Layout,
    parts: Iterator[np.ndarray],
    on_bytes: Callable[[int], None] | None,
) -> int:
    """Write a layout, its gaps filled by the numbers of arrays that come one after another.

    Returns the checksum of the numbers.
    """
    data, checksum = memoryview(b""), 0
    for piece in layout:
        if isinstance(piece, bytes):
            file.write(piece)
            continue
        while piece:
            if not data:
                data = bytes_of(next(parts))
            part = data[:piece]
            file.write(part)
            checksum = crc32(part, checksum)
            if on_bytes:
                on_bytes(len(part))
            data, piece = data[len(part) :], piece - len(part)
    return checksum


def _document(shape: tuple[int, ...], dtype: np.dtype, chunk_bytes: int) -> Layout:
    """One array as flax writes it: whole, or in flat chunks."""
    count = math.prod(shape)
    if count * dtype.itemsize <= chunk_bytes:
        return _array(shape, dtype)
    chunk = max(1, chunk_bytes // dtype.itemsize)
    sizes = [min(chunk, count - begin) for begin in range(0, count, chunk)]
    head = b"\x83" + msgpack.packb("__msgpack_chunked_array__") + msgpack.packb(True)
    head += msgpack.packb("shape") + msgpack.packb({str(i): n for i, n in enumerate(shape)})
    layout: Layout = [head + msgpack.packb("chunks") + msgpack.Packer().pack_map_header(len(sizes))]
    for index, size in enumerate(sizes):
        layout += [msgpack.packb(str(index)), *_array((size,), dtype)]
    return layout


def _array(shape: tuple[int, ...], dtype: np.dtype) -> Layout:
    """Extension 1: an array `[shape, type, bytes]`."""
    numbers: Layout = [math.prod(shape) * dtype.itemsize]
    head = b"\x93" + msgpack.packb(shape) + msgpack.packb(dtype.name)
    payload: Layout = [head, *_binary(numbers)]
    size = _length(payload)
    fixed = {1: b"\xd4", 2: b"\xd5", 4: b"\xd6", 8: b"\xd7", 16: b"\xd8"}
    return [fixed.get(size) or _sized(size, b"\xc7\xc8\xc9"), b"\x01", *payload]


def _binary(content: Layout) -> Layout:
    return [_sized(_length(content), b"\xc4\xc5\xc6"), *content]


def _sized(size: int, codes: bytes) -> bytes:
    """The head of a value of so many bytes: the code for a length of 1, 2 or 4 bytes, and it."""
    width = 0 if size < 1 << 8 else 1 if size < 1 << 16 else 2
    return codes[width : width + 1] + size.to_bytes(1 << width, "big")


def _length(layout: Layout) -> int:
    return sum(piece if isinstance(piece, int) else len(piece) for piece in layout)
