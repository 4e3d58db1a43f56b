"""What cameras, encoders and other programs do to clean pictures.

Brightness and contrast, blur and sharpening, colour kept at half resolution, blocks of
rounded frequencies as in JPEG and H.264, grain, and light that falls off to a side.
Each comes or stays away by chance, the same for all frames of a clip (grain excepted).
"""

from __future__ import annotations

import numpy as np

# Rec. 601 luma and two colour differences, as JPEG has them.
_TO_YCC = np.array(
    [[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]], np.float32
)
_FROM_YCC = np.linalg.inv(_TO_YCC).astype(np.float32)


def degrade(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A worse copy of a clip, uint8 `[F, H, W, 3]` → the same shape and type."""
    pixels = frames.astype(np.float32) * np.float32(1 / 255)
    for effect, chance in _EFFECTS:
        if rng.random() < chance:
            pixels = effect(pixels, rng)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def _light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another brightness, contrast and gamma."""
    gain, lift, gamma = rng.uniform(0.82, 1.1), rng.uniform(0, 0.06), rng.uniform(0.88, 1.15)
    table = np.linspace(0, 1, 257, dtype=np.float32) ** gamma * gain + lift
    return table[(np.clip(pixels, 0, 1) * 256).astype(np.int32)]


def _falloff(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light that grows or falls from one side to the other."""
    down, across = rng.uniform(-0.12, 0.12, 2)
    height, width = pixels.shape[1:3]
    slope = np.linspace(-down, down, height)[:, None] + np.linspace(-across, across, width)
    return pixels * (1 + slope[..., None]).astype(np.float32)


def _blur(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A three-tap kernel each way: blur, or (negative) the halo of a sharpening resize."""
    side = np.float32(rng.uniform(-0.1, 0.25))
    pixels = _smooth(pixels, side, axis=1)
    return _smooth(pixels, side, axis=2)


def _smooth(pixels: np.ndarray, side: np.float32, axis: int) -> np.ndarray:
    length = pixels.shape[axis]
    before = np.take(pixels, np.maximum(np.arange(length) - 1, 0), axis)
    after = np.take(pixels, np.minimum(np.arange(length) + 1, length - 1), axis)
    return (1 - 2 * side) * pixels + side * (before + after)


def _half_colour(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour differences at half resolution (4:2:0), a little paler, richer or shifted."""
    ycc = pixels @ _TO_YCC
    height, width = (side // 2 * 2 for side in pixels.shape[1:3])
    colour = ycc[:, :height, :width, 1:]
    small = colour.reshape(len(ycc), height // 2, 2, width // 2, 2, 2).mean((2, 4))
    small = small * np.float32(rng.uniform(0.85, 1.08))
    small += rng.uniform(-0.012, 0.012, 2).astype(np.float32)
    colour[:] = small.repeat(2, 1).repeat(2, 2)
    return ycc @ _FROM_YCC


def _blocks(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frequencies of blocks of 4 or 8 pixels, rounded: the higher, the coarser."""
    side = 4 if rng.random() < 0.6 else 8
    height, width = (length // side * side for length in pixels.shape[1:3])
    if not height or not width:
        return pixels
    basis = _cosines(side)
    pixels = pixels.copy()
    blocks = pixels[:, :height, :width].reshape(-1, height // side, side, width // side, side, 3)
    order = np.arange(side)
    coarseness = rng.uniform(0.02, 0.1) * (0.4 + (order[:, None] + order) / side)
    step = coarseness.astype(np.float32)[:, None, :, None]
    spectrum = np.einsum("ki,lj,fyixjc->fykxlc", basis, basis, blocks, optimize=True)
    spectrum = np.round(spectrum / step) * step
    blocks = np.einsum("ki,lj,fykxlc->fyixjc", basis, basis, spectrum, optimize=True)
    pixels[:, :height, :width] = blocks.reshape(-1, height, width, 3)
    return pixels


def _cosines(side: int) -> np.ndarray:
    """The orthonormal discrete cosine transform, `[side, side]`."""
    order = np.arange(side)
    basis = np.cos(np.pi * order[:, None] * (order + 0.5) / side) * np.sqrt(2 / side)
    basis[0] *= np.sqrt(0.5)
    return basis.astype(np.float32)


def _grain(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    strength = np.float32(rng.uniform(0.004, 0.04))
    return pixels + strength * rng.standard_normal(pixels.shape, np.float32)


_EFFECTS = (
    (_falloff, 0.2),
    (_light, 0.5),
    (_blur, 0.5),
    (_half_colour, 0.5),
    (_grain, 0.3),
    (_blocks, 0.4),
)
