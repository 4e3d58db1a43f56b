"""Weights in fewer bits, made as they are read; and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lwm_core import four_bits
from lwm_core.config import ModelConfig
from lwm_core.errors import FormatError
from lwm_core.parameters import LEAST, SCALES, Parameter, parameters, stored
from lwm_core.quantize import LARGEST
from lwm_core.weights import Weights


class Rounded:
    """Weights with matrices in 8 or 4 bits, as a table of `parameters` says: made when read.

    `packed` are the same weights as a model directory stores them, where that is in 4 bits.
    """

    def __init__(
        self, weights: Weights, table: Mapping[str, Parameter], packed: Weights | None = None
    ):
        self._weights, self._table, self.packed = weights, table, packed
        self._last: tuple[str, int | None] = "", None
        self._parts: dict[str, np.ndarray] = {}

    @property
    def dtype(self) -> str:
        """The number format of what stays as it is."""
        return self._weights.dtype

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter: integers of a matrix, or what belongs to its rows or groups.

        Raises FormatError for numbers that are not finite.
        """
        if self._table[name].dtype is None:
            return self._weights.read(name, layer)
        matrix = name.removesuffix(SCALES).removesuffix(LEAST)
        if self._last != (matrix, layer):  # its parts are often asked for one after the other
            self._parts = self._round(matrix, layer)
            self._last = matrix, layer
        return self._parts[name.removeprefix(matrix)]

    def _round(self, matrix: str, layer: int | None) -> dict[str, np.ndarray]:
        """A matrix and what belongs to it, by the ends of their names."""
        weight = self._weights.read(matrix, layer).astype(np.float32)
        _check_finite(matrix, weight)
        if self._table[matrix].dtype == "uint8":
            packed = four_bits.pack(weight)
            return {"": packed.codes, SCALES: packed.scales, LEAST: packed.least}
        scales = np.abs(weight).max(axis=-1) / np.float32(LARGEST)
        rows = np.rint(weight / np.where(scales > 0, scales, 1)[:, None])
        return {"": rows.astype(np.int8), SCALES: scales}


class Plain:
    """Quantized weights, of a table of `parameters`, as the numbers that they stand for."""

    def __init__(self, weights: Weights, table: Mapping[str, Parameter]):
        self._weights, self._table = weights, table

    @property
    def dtype(self) -> str:
        """The number format of what was not quantized."""
        return self._weights.dtype

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter; a matrix is float32. Raises FormatError for scales that are not finite."""
        weight = self._weights.read(name, layer)
        kind = self._table[name].dtype
        if kind is None:
            return weight
        scales = self._weights.read(name + SCALES, layer)
        _check_finite(name + SCALES, scales)
        if kind == "int8":
            return weight * scales[:, None]
        least = self._weights.read(name + LEAST, layer)
        _check_finite(name + LEAST, least)
        return four_bits.unpack(four_bits.Packed(weight, scales, least))


def _check_finite(name: str, numbers: np.ndarray) -> None:
    if not np.isfinite(numbers).all():
        raise FormatError(f"{name} holds numbers that are not finite; fetch or convert it again")


def rounded(weights: Weights, config: ModelConfig) -> Rounded:
    """Plain weights as a quantized model computes with them."""
    table = parameters(config)
    if config.quantized == "int8":
        return Rounded(weights, table)
    return unpacked(Rounded(weights, stored(config)), config)


def unpacked(packed: Weights, config: ModelConfig) -> Rounded:
    """Weights that are stored in 4 bits as a model computes with them, in 8."""
    return Rounded(Plain(packed, stored(config)), parameters(config), packed)
