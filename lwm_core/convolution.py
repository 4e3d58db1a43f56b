"""Convolutions; on a CPU those of 3x3 with many channels by a quarter of the products.

A tile of 4x4 results needs 144 products for each pair of channels. As values of polynomials at six
points each way it needs 36, with sums before and after: F(4x4, 3x3) of Winograd (1980) and of Lavin
and Gray (2016). Other platforms' libraries choose for themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lwm_core.types import Array

TILE, TAPS = 4, 3
POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""And infinity. Points that are each other's reciprocals round least (Alam et al. 2022): with 128
channels in float32 the error is three times that of direct sums, and by 0, 1, -1, 2 and -2 six
times, the largest of many 17 times."""

FEWEST_CHANNELS = 128
"""With fewer, products are so small that sums before and after cost more than they save."""
FEWEST_TILES = 16
"""In a frame, whatever else is in its batch: with fewer, to transform the kernel costs more."""

Parts = jax.Array | Sequence[jax.Array]
"""Arrays of one shape, or one array of them along its first axis."""


def _transforms() -> tuple[np.ndarray, ...]:
    """The matrices of Toom and Cook, float32: that of results `[4, 6]`, of kernels `[6, 3]` and of
    inputs `[6, 6]`.

    To multiply polynomials, evaluate both, multiply the values and interpolate. Transposed, that
    convolves: inputs interpolate, and results evaluate.
    """
    others = [[other for other in POINTS if other != point] for point in POINTS]
    scales = [np.prod(np.subtract(point, rest)) for point, rest in zip(POINTS, others, strict=True)]
    results = [*np.vander(POINTS, TILE, increasing=True), np.eye(TILE)[-1]]
    kernels = [*(np.vander(POINTS, TAPS, increasing=True).T / scales).T, np.eye(TAPS)[-1]]
    inputs = [*(np.append(np.poly(roots)[::-1], 0) for roots in others), np.poly(POINTS)[::-1]]
    return tuple(np.array(rows, np.float32) for rows in (np.transpose(results), kernels, inputs))


RESULTS, KERNELS, INPUTS = _transforms()


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Any = "SAME") -> jax.Array:
    """`x [F, height, width, in]` convolved with `kernel [h, w, in, out]`, in their dtype."""
    if (stride, padding) == (1, "SAME") and is_for_tiles(x, kernel):
        return in_tiles(x, kernel)
    return directly(x, kernel, stride, padding)


def directly(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Any = "SAME") -> jax.Array:
    """As `convolve`, by the definition."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


def is_for_tiles(x: Array, kernel: Array) -> bool:
    """Whether `in_tiles` can convolve the two, and is faster."""
    _, height, width, _ = x.shape
    *size, channels, outputs = kernel.shape
    is_tiled = height % TILE == width % TILE == 0
    is_large = height * width >= FEWEST_TILES * TILE**2
    is_deep = min(channels, outputs) >= FEWEST_CHANNELS
    is_plain = x.dtype == kernel.dtype == np.float32
    return size == [TAPS, TAPS] and is_tiled and is_large and is_deep and is_plain


@jax.custom_vjp
def in_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [F, height, width, in]` convolved with `kernel [3, 3, in, out]`, with padding "SAME".

    All is float32; height and width are multiples of 4. It has gradients, but no forward mode.
    """
    return lax.platform_dependent(x, kernel, cpu=_by_points, default=directly)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return in_tiles(x, kernel), (x, kernel)


def _backward(
    seen: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """By the transposed kernel, and for the kernel by definition: transposed steps are slow."""
    x, kernel = seen
    transposed = kernel[::-1, ::-1].swapaxes(2, 3)
    _, of_kernel = jax.vjp(lambda kernel: directly(x, kernel), kernel)
    return in_tiles(gradient, transposed), *of_kernel(gradient)


in_tiles.defvjp(_forward, _backward)


def _by_points(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `in_tiles`, in steps that XLA does well on a CPU: products of matrices, and sums that
    write one array."""
    frames, height, width, channels = x.shape
    rows, columns, outputs = height // TILE, width // TILE, kernel.shape[-1]
    points = len(INPUTS)

    beside = (1, TILE - 1)  # a window begins one before its tile; the last block is half used
    padded = jnp.pad(x, ((0, 0), beside, beside, (0, 0)))
    padded = padded.reshape(frames, rows + 1, TILE, columns + 1, TILE, channels)
    # [6, F, rows, columns + 1, 4, in]
    windows = jnp.stack([padded[:, i // TILE :][:, :rows, i % TILE] for i in range(points)])
    # A product is kept in memory; sums would be made again for each column that looks at them.
    by_row = jnp.dot(INPUTS, windows.reshape(points, -1)).reshape(windows.shape)
    by_column = [by_row[:, :, :, j // TILE :][:, :, :, :columns, j % TILE] for j in range(points)]
    inputs = _combine(INPUTS, by_column, axis=1)  # [6, 6, F, rows, columns, in]
    kernels = jnp.dot(np.kron(KERNELS, KERNELS), kernel.reshape(TAPS**2, -1))  # [36, in * out]

    # [36, F * rows * columns, out]
    products = lax.dot_general(
        inputs.reshape(points**2, -1, channels),
        kernels.reshape(points**2, channels, outputs),
        (((2,), (1,)), ((0,), (0,))),
    )
    of_rows = jnp.dot(RESULTS, products.reshape(points, -1))
    of_rows = of_rows.reshape(TILE, points, frames, rows, columns, outputs)
    # [F, rows, 4, columns, 4, out]
    results = _combine(RESULTS, of_rows.transpose(1, 2, 3, 0, 4, 5), axis=4)
    return results.reshape(frames, height, width, outputs)


def _combine(matrix: np.ndarray, parts: Parts, axis: int) -> jax.Array:
    """Sums of n parts weighted by each row of a matrix `[m, n]`; a new axis has the m sums."""
    behind = parts[0].ndim - axis
    terms = [
        jnp.expand_dims(part, axis) * weights.reshape(-1, *[1] * behind)
        for weights, part in zip(matrix.T, parts, strict=True)
    ]
    return sum(terms[1:], start=terms[0])
