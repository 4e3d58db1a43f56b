"""Which patches of a clip look the same: they get one code in what is learned to be made."""

from __future__ import annotations

import numpy as np
from einops import rearrange
from numpy.lib.stride_tricks import sliding_window_view


def stand_ins(frames: np.ndarray, grid: int) -> np.ndarray:
    """For each patch of a clip the number of the one whose code it gets: int64 `[F, grid * grid]`.

    An encoder sees more than a patch, so one ground has many codes, which flicker as something
    moves over it. What is to be made is learned from one of them, of a place in the middle; then
    a thing that moves by a patch has its codes one place further. Patches are alike if their
    pixels are, with those around them. Frames are uint8 `[F, S, S, 3]`.
    """
    side = frames.shape[1] // grid
    framed = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    windows = sliding_window_view(framed, (side + 2, side + 2), axis=(1, 2))[:, ::side, ::side]
    patches = rearrange(windows, "f y x c h w -> (f y x) (c h w)")
    _, kinds, counts = np.unique(patches, axis=0, return_inverse=True, return_counts=True)
    by_kind = np.argsort(kinds.reshape(-1), kind="stable")
    middle = by_kind[np.cumsum(counts) - counts + counts // 2]
    return middle[kinds.reshape(-1)].reshape(len(frames), grid * grid)
