"""Convolutions of 3x3 by a quarter of the products (Winograd 1980; Lavin and Gray 2016).

A tile of 4x4 results needs 144 products for each pair of channels. As values of polynomials at six
points each way it needs 36, with a few sums before and after: F(4x4, 3x3). On CPUs, where such
convolutions are bound by arithmetic; other platforms' libraries choose for themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lwm_core.types import Array

TILE, TAPS = 4, 3
POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""And infinity. Reciprocal points round least (Barabasz et al. 2020): in float32 the error is two
to three times that of direct sums, where 0, 1, -1, 2 and -2 make it ten times that."""

FEWEST_CHANNELS, FEWEST_TILES = 32, 16
"""With fewer channels the sums before and after cost more than they save; with fewer tiles, those
for kernels."""


Parts = jax.Array | Sequence[jax.Array]


def _transforms() -> tuple[np.ndarray, ...]:
    """The matrices of Toom and Cook, float32: they make results `[4, 6]` of the products of kernels
    `[6, 3]` and inputs `[6, 6]`.

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


def serves(x: Array, kernel: Array) -> bool:
    """Whether `convolve` takes `x [F, height, width, in]` and a kernel `[h, w, in, out]`."""
    _, height, width, _ = x.shape
    *size, channels, outputs = kernel.shape
    is_tiled = height % TILE == width % TILE == 0
    is_large = height * width >= FEWEST_TILES * TILE**2
    is_deep = min(channels, outputs) >= FEWEST_CHANNELS
    return size == [TAPS, TAPS] and is_tiled and is_large and is_deep


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [F, height, width, in]` convolved with `kernel [3, 3, in, out]`, with padding "SAME".

    Height and width are multiples of 4.
    """
    return lax.platform_dependent(x, kernel, cpu=_by_points, default=directly)


def directly(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same by its definition."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _backward(
    seen: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """By the transposed kernel, and for the kernel by definition: transposed steps are slow."""
    x, kernel = seen
    transposed = kernel[::-1, ::-1].swapaxes(2, 3)
    _, of_kernel = jax.vjp(lambda kernel: directly(x, kernel), kernel)
    return convolve(gradient, transposed), *of_kernel(gradient)


convolve.defvjp(_forward, _backward)


def _by_points(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """In steps that XLA does well on a CPU: products of matrices, and sums that write one array."""
    frames, height, width, channels = x.shape
    rows, columns, outputs = height // TILE, width // TILE, kernel.shape[-1]
    points = len(INPUTS)

    beside = (1, TILE - 1)  # a window begins one before its tile; the last block is half used
    padded = jnp.pad(x, ((0, 0), beside, beside, (0, 0)))
    padded = padded.reshape(frames, rows + 1, TILE, columns + 1, TILE, channels)
    windows = jnp.stack([padded[:, i // TILE :][:, :rows, i % TILE] for i in range(points)])
    # A product is kept in memory; sums would be made again for each column that looks at them.
    by_row = jnp.dot(INPUTS, windows.reshape(points, -1)).reshape(windows.shape)
    by_column = [by_row[:, :, :, j // TILE :][:, :, :, :columns, j % TILE] for j in range(points)]
    inputs = _combine(INPUTS, by_column, axis=1)
    kernels = jnp.dot(np.kron(KERNELS, KERNELS), kernel.reshape(TAPS**2, -1))

    products = lax.dot_general(
        inputs.reshape(points**2, -1, channels),
        kernels.reshape(points**2, channels, outputs),
        (((2,), (1,)), ((0,), (0,))),
    )
    of_rows = jnp.dot(RESULTS, products.reshape(points, -1))
    of_rows = of_rows.reshape(TILE, points, frames, rows, columns, outputs)
    results = _combine(RESULTS, of_rows.transpose(1, 2, 3, 0, 4, 5), axis=4)
    return results.reshape(frames, height, width, outputs)


def _combine(matrix: np.ndarray, parts: Parts, axis: int) -> jax.Array:
    """Sums of parts weighted by each row of a matrix, the rows along a new axis."""
    behind = parts[0].ndim - axis
    terms = [
        jnp.expand_dims(part, axis) * weights.reshape(-1, *[1] * behind)
        for weights, part in zip(matrix.T, parts, strict=True)
    ]
    return sum(terms[1:], start=terms[0])
