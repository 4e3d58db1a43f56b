"""The shape of pictures: cut to the square the model sees, enlarge, tile.

Resizing is Pillow's, so that the numbers agree with the original's.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

# A strip of 1 x 20000 would be resized to gigabytes, only to keep its middle.
LONGEST_STRIP = 64


def prepare(frames: np.ndarray, size: int) -> np.ndarray:
    """Resize the shorter side to `size` (bicubic), crop the centre: uint8 `[F, size, size, 3]`.

    frames: uint8 `[F, height, width, 3]`. As in the original: the longer side becomes
    int(size * long / short), and a crop at half a pixel is rounded to the even one. Of a
    strip longer than 64 times its width only the middle is looked at.
    """
    longest = LONGEST_STRIP * min(frames.shape[1:3])
    top, left = (max(side - longest, 0) // 2 for side in frames.shape[1:3])
    frames = frames[:, top : top + longest, left : left + longest]
    height, width = frames.shape[1:3]
    if width < height:
        resized = size, int(size * height / width)
    else:
        resized = int(size * width / height), size
    left, top = (round((side - size) / 2) for side in resized)
    box = (left, top, left + size, top + size)
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for index, frame in enumerate(frames):
        whole = Image.fromarray(frame).resize(resized, Image.Resampling.BICUBIC)
        out[index] = np.asarray(whole.crop(box))
    return out


def upscale(frames: np.ndarray, size: int) -> np.ndarray:
    """Enlarge smoothly (Lanczos) until the shorter side is at least `size` pixels.

    frames: uint8 `[F, height, width, 3]`; the aspect ratio stays. What is large enough
    comes back as it is.
    """
    height, width = frames.shape[1:3]
    factor = size / min(height, width)
    if factor <= 1:
        return frames
    width, height = round(width * factor), round(height * factor)
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
            for frame in frames
        ]
    )


def grid(pictures: np.ndarray) -> np.ndarray:
    """Tile uint8 `[N, height, width, 3]` row by row into one near-square picture.

    Returns `[rows * height, columns * width, 3]`; cells that are left over are black.
    """
    count, height, width, channels = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), pictures.dtype)
    cells[:count] = pictures
    cells = cells.reshape(rows, columns, height, width, channels)
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
