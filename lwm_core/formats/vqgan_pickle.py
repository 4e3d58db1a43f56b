"""Read the pickle of an LWM image tokenizer: nested dicts of numpy or jax arrays, as data.

The arrays are rebuilt here, from their type, shape and bytes; neither numpy's nor jax's functions
are looked up by the names in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lwm_core.config import VQConfig
from lwm_core.errors import FormatError
from lwm_core.formats.mapped import map_file
from lwm_core.formats.pickle_data import (
    Constructors,
    Global,
    OrderedDict,
    RefusedPickle,
    Stateful,
    read_pickle,
)

_NUMBERS = {
    code: np.dtype(code)
    for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
}
_MAX_DEPTH = 16
_MAX_VALUES = 10_000


class _DType(Stateful):
    """The type of the numbers of an array; its state says the byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if isinstance(code, Global) and code.name == "bfloat16":
            self.value = np.dtype(ml_dtypes.bfloat16)
        elif isinstance(code, str) and code in _NUMBERS:
            self.value = _NUMBERS[code]
        else:
            kind = code if isinstance(code, str) else type(code).__name__
            raise RefusedPickle(f"it holds arrays of {kind!a:.20}, not of numbers")

    def set_state(self, state: Any) -> None:
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")


class _Array(Stateful):
    """An array; its state is `(version, shape, type, whether by columns, bytes)`."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def set_state(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        self.value = _rebuilt(data, dtype, shape, by_columns)


def _rebuilt(data: Any, dtype: Any, shape: Any, by_columns: bool) -> np.ndarray:
    """Numbers in a shape, where type, shape and length of the bytes agree."""
    fits = (
        isinstance(dtype, _DType)
        and isinstance(data, bytes | bytearray)
        and isinstance(shape, tuple)
        and len(shape) <= 32
        and all(isinstance(size, int) and size >= 0 for size in shape)
        and math.prod(shape) * dtype.value.itemsize == len(data)
    )
    if not fits:
        raise RefusedPickle("the bytes of an array do not fill its shape")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if by_columns else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _rebuilt(data, dtype, shape, order == "F")
    return array


def _from_jax(_: Any, __: Any, state: Any, *___: Any) -> _Array:
    array = _Array()
    array.set_state(state)
    return array


def _frozen_dict(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise RefusedPickle("a FrozenDict in it holds no dict")
    return content


def _only_named(*_: Any) -> None:
    raise RefusedPickle("it calls the type of an array")


_CONSTRUCTORS: Constructors = {
    ("numpy", "ndarray"): _only_named,
    ("numpy", "dtype"): _DType,
    ("ml_dtypes", "bfloat16"): _only_named,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("jax._src.array", "_reconstruct_array"): _from_jax,
    ("jax._src.device_array", "reconstruct_device_array"): _from_jax,
    ("flax.core.frozen_dict", "FrozenDict"): _frozen_dict,
    ("collections", "OrderedDict"): OrderedDict,
}


def load_lwm_vqgan(
    path: str | Path, *, resolution: int = 256, groups: int = 32
) -> tuple[VQConfig, dict[str, Any]]:
    """Sizes and weights of an image tokenizer of the original, a nested dict as it is stored.

    The weights are numpy arrays under the original's names (`encoder/Conv_0/kernel` is
    `[3, 3, in, out]`). `resolution`, in pixels, and the `groups` of channels that are normalised
    together are what the file does not say.

    Raises UsageError when there is no such file, FormatError when it is not such a pickle.
    """
    try:
        stored = read_pickle(map_file(path), _CONSTRUCTORS)
        weights = _plain(stored, iter(range(_MAX_VALUES)))
    except RefusedPickle as error:
        raise FormatError(
            f"{path}: refused as image tokenizer weights, and nothing in it was run: {error}; "
            "get the file from the model's own repository"
        ) from error
    weights = weights.get("params", weights) if isinstance(weights, dict) else {}
    try:
        return _infer_config(weights, resolution, groups), weights
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else "shapes"
        raise FormatError(
            f"{path}: not an LWM image tokenizer (no fitting {missing}); "
            "give the file called vqgan of a vision model"
        ) from error


def _plain(value: Any, budget: Iterator[int], depth: int = 0) -> Any:
    """Nested dicts of arrays; a value that repeats or contains itself endlessly is refused."""
    if next(budget, None) is None or depth > _MAX_DEPTH:
        raise RefusedPickle("its containers contain each other endlessly")
    if isinstance(value, dict):
        return {key: _plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    raise RefusedPickle(f"it holds a {type(value).__name__} where weights should be")


def _infer_config(weights: dict[str, Any], resolution: int, groups: int) -> VQConfig:
    encoder = weights["encoder"]
    levels = [
        encoder[f"DownsamplingBlock_{n}"] for n in range(_count(encoder, "DownsamplingBlock"))
    ]
    base = encoder["Conv_0"]["kernel"].shape[3]
    widths = [level["ResnetBlock_0"]["Conv_1"]["kernel"].shape[3] for level in levels]
    codes, code_dim = weights["quantize"]["embeddings"].shape
    return VQConfig(
        resolution=resolution,
        base_channels=base,
        channel_mult=tuple(width // base for width in widths),
        res_blocks=_count(levels[0], "ResnetBlock"),
        latent_channels=encoder["Conv_1"]["kernel"].shape[3],
        codes=codes,
        code_dim=code_dim,
        groups=groups,
    )


def _count(tree: dict[str, Any], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in tree)
