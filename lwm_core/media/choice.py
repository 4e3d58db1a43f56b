"""Which frames of a clip are taken: evenly spread over the wanted stretch of time.

The rule is the original's (`int(linspace(0, n - 1, frames))`), applied to the frames
themselves and not to the clock, so that variable frame rates need no special case.
"""

from __future__ import annotations

import numpy as np

from lwm_core.errors import UsageError

# Times in files are rounded to their clock; a frame this close before `start` counts as at it.
TIME_TOLERANCE = 1e-3


def check_choice(
    frames: int | None, start: float | None, end: float | None, rate: float | None = None
) -> None:
    """Raise UsageError where no clip at all could satisfy the wish."""
    if frames is not None and frames < 1:
        raise UsageError(f"frames must be at least 1, not {frames}")
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"a rate must be above 0 frames a second, not {rate:g}")
    if start is not None and not 0 <= start < float("inf"):
        raise UsageError(f"start must be a time of 0 seconds or later, not {start:g}")
    if end is not None and not end > (start or 0):
        raise UsageError(f"end must lie after start ({start or 0:g} s), not at {end:g} s")


def choose_frames(
    times: np.ndarray,
    frames: int | None,
    start: float | None,
    end: float | None,
    rate: float | None = None,
) -> np.ndarray:
    """Indices int64 `[chosen]`, increasing, of at most `frames` frames with start <= time < end.

    times: float64 `[n]` seconds, increasing. With a `rate` only those count that are on view when a
    clock ticks so often a second; with frames=None every one that counts is taken. Where no frame
    begins in the stretch, the one on view at `start` is taken. A single picture has no time: it is
    always taken. Raises UsageError if the clip ends before `start`.
    """
    if len(times) == 1:
        return np.array([0])
    start = start or 0.0
    length = times[-1] + (
        times[-1] - times[-2]
    )  # the last frame is shown as long as the one before
    if start >= length:
        raise UsageError(f"start {start:g} s lies beyond the end: the clip is {length:.4g} s long")
    first = int(np.searchsorted(times, start - TIME_TOLERANCE))
    stop = len(times) if end is None else int(np.searchsorted(times, end - TIME_TOLERANCE))
    if first >= stop:
        return np.array([max(first - 1, 0)])
    chosen = np.arange(first, stop)
    if rate is not None:
        chosen = chosen[_is_on_view(np.append(times, length)[first : stop + 1], rate)]
    if frames is None or len(chosen) <= frames:
        return chosen
    return chosen[np.linspace(0, len(chosen) - 1, frames).astype(np.int64)]


def _is_on_view(begins: np.ndarray, rate: float) -> np.ndarray:
    """Whether a clock that ticks `rate` times a second does so during each frame, bool `[n]`.

    begins: float64 `[n + 1]`, when the frames begin and when the last ends; the clock starts with
    the first.
    """
    ticks = np.ceil((begins - begins[0] - TIME_TOLERANCE) * rate)
    return np.diff(ticks) > 0
