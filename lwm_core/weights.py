"""The parameters of a model wherever they lie, one layer of one tensor at a time.

Every format that we read offers this one way to its weights, so that loading and converting are
the same for all of them and need little more memory than one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Protocol

import numpy as np

from lwm_core.config import ModelConfig
from lwm_core.parameters import Parameter, parameters

ALIGNMENT = 64
"""Bytes; numpy's own arrays begin at any multiple of 16."""


class Weights(Protocol):
    """Parameters by the dotted names and in the orientation of a table of `parameters`."""

    @property
    def dtype(self) -> str:
        """The number format that they come in: float32, float16 or bfloat16."""

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter; of a stacked one, layer number `layer`. Raises FormatError."""


class Held:
    """Weights in memory, stacked as the model takes them."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors = tensors

    @property
    def dtype(self) -> str:
        """The number format of all of them."""
        return next(iter(self.tensors.values())).dtype.name

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter, or one layer of it: a view."""
        tensor = self.tensors[name]
        return tensor if layer is None else tensor[layer]


def layers_of(parameter: Parameter) -> list[int | None]:
    """What to read of a parameter: every layer of a stacked one, or the whole (None)."""
    return list(range(parameter.shape[0])) if parameter.stacked else [None]


def read_stacked(
    weights: Weights,
    config: ModelConfig,
    dtype: np.dtype | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
    names: Container[str] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """All parameters in the order of the table, or those of some names; layers stacked `[L, ...]`.

    In `dtype`, or in that of the weights; integers and scales as the table says. `on_tensor(done,
    total)` is called after each. Raises FormatError for damaged weights.
    """
    every = parameters(config).items()
    table = {name: one for name, one in every if names is None or name in names}
    for done, (name, parameter) in enumerate(table.items(), start=1):
        number = np.dtype(parameter.dtype or dtype or weights.dtype)
        yield name, _stacked(weights, name, parameter, number)
        if on_tensor:
            on_tensor(done, len(table))


def _stacked(weights: Weights, name: str, parameter: Parameter, dtype: np.dtype) -> np.ndarray:
    """One parameter, filled layer by layer."""
    stack = _aligned(parameter.shape, dtype)
    if parameter.stacked:
        for layer in range(parameter.shape[0]):
            stack[layer] = weights.read(name, layer)
    else:
        stack[...] = weights.read(name)
    return stack


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins where jax can take it over on a CPU instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)
