"""Convolutions in tiles are convolutions: beside sums in float64, and their gradients."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lwm_core import convolution

SHAPES = [((1, 16, 16), 128, 160), ((2, 20, 28), 128, 128), ((3, 32, 16), 160, 128)]


def random(frames: int, height: int, width: int, channels: int, outputs: int) -> list[np.ndarray]:
    """Pixels `[F, H, W, C]` and a kernel `[3, 3, C, O]` by which results have spread one."""
    draw = np.random.default_rng(0).normal
    shapes = (frames, height, width, channels), (3, 3, channels, outputs)
    spread = (9 * channels) ** -0.5
    return [draw(size=shapes[0]).astype(np.float32), np.float32(spread * draw(size=shapes[1]))]


def summed(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The convolution by its definition, in float64, `[F, H, W, O]`."""
    _, height, width, _ = x.shape
    around = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        around[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
        for i in range(3)
        for j in range(3)
    )


@pytest.mark.parametrize(("size", "channels", "outputs"), SHAPES)
def test_results_are_those_of_sums(size: tuple[int, int, int], channels: int, outputs: int) -> None:
    x, kernel = random(*size, channels, outputs)
    assert convolution.is_for_tiles(x, kernel)
    found, expected = convolution.in_tiles(x, kernel), summed(x, kernel)
    # By the points 0, 1, -1, 2, -2 it would be 5e-5 and 2.3e-6; plain sums are 3e-6 and 4e-7 off.
    assert np.abs(found - expected).max() < 2e-5
    assert np.sqrt(np.mean((found - expected) ** 2)) < 1.5e-6


def test_matrices_are_those_of_the_formula() -> None:
    """In one dimension: four results of three taps over six numbers, by six products."""
    given, taps = np.random.default_rng(1).normal(size=(6,)), np.array([0.25, -3.0, 7.0])
    results, kernels, inputs = convolution.RESULTS, convolution.KERNELS, convolution.INPUTS
    found = results @ ((kernels @ taps) * (inputs @ given))
    np.testing.assert_allclose(found, np.correlate(given, taps, "valid"), atol=1e-5)


@pytest.mark.parametrize(("size", "channels", "outputs"), SHAPES)
def test_gradients_are_those_of_the_definition(
    size: tuple[int, int, int], channels: int, outputs: int
) -> None:
    x, kernel = random(*size, channels, outputs)
    weights = np.random.default_rng(2).normal(size=(*size, outputs)).astype(np.float32)
    found, expected = (
        jax.vjp(made, x, kernel)[1](weights)
        for made in (convolution.in_tiles, convolution.directly)
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("x", "kernel", "dtype", "expected"),
    [
        ((1, 16, 16, 128), (3, 3, 128, 128), np.float32, True),
        ((1, 16, 16, 128), (3, 3, 128, 128), np.float64, False),
        ((1, 16, 16, 128), (1, 1, 128, 128), np.float32, False),
        ((1, 16, 18, 128), (3, 3, 128, 128), np.float32, False),
        ((9, 8, 8, 128), (3, 3, 128, 128), np.float32, False),
        ((1, 16, 16, 64), (3, 3, 64, 128), np.float32, False),
        ((1, 16, 16, 128), (3, 3, 128, 3), np.float32, False),
    ],
)
def test_what_tiles_are_for(
    x: tuple[int, ...], kernel: tuple[int, ...], dtype: type, expected: bool
) -> None:
    assert convolution.is_for_tiles(np.zeros(x, dtype), np.zeros(kernel, dtype)) == expected


@pytest.mark.parametrize(("platform", "is_direct"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_other_platforms_choose_for_themselves(platform: str, is_direct: bool) -> None:
    traced = jax.jit(convolution.in_tiles).trace(*random(1, 16, 16, 32, 32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == is_direct
