"""A file becomes a `Clip`: one way for pictures, animations and films, with every refusal.

Pillow is asked first (it knows pictures best), PyAV gets what Pillow does not know. Both
give a source with `times` and `read(indices)`; only the chosen frames are ever held at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from lwm_core.errors import MediaError, UsageError
from lwm_core.media.choice import check_choice, choose_frames
from lwm_core.media.clips import Video
from lwm_core.media.pictures import Picture, open_picture
from lwm_core.media.shape import prepare


@dataclass(frozen=True)
class Clip:
    """What was read: frames uint8 `[frames, height, width, 3]`, times float64 `[frames]` (s)."""

    frames: np.ndarray
    times: np.ndarray


def read_media(
    path: str | os.PathLike[str],
    *,
    frames: int | None = 8,
    start: float | None = None,
    end: float | None = None,
    rate: float | None = None,
    size: int | None = None,
) -> Clip:
    """Read a picture (one frame; start and end do not matter) or at most `frames` of a clip.

    start, end: seconds from the first frame. rate: so many frames a second are enough; with
    frames=None there is no other bound. Frames stand upright as a player shows them;
    pixels are the stored ones (their aspect ratio is not applied, as in the original).
    size: give each frame through `prepare` as it is read, so that an hour needs little memory.

    A damaged clip is read as far as it goes. Raises UsageError (no such file, a directory,
    start beyond the end) or MediaError (no picture in it, damaged, too large).
    """
    check_choice(frames, start, end, rate)
    wish = partial(choose_frames, frames=frames, start=start, end=end, rate=rate)
    path = _existing_file(path)
    with _one_line_refusals(path):
        try:
            with open_picture(path) as picture:
                return _take(picture, wish(picture.times), size)
        except UnidentifiedImageError:
            video = Video(path)
            return _take(video, wish(video.times), size)


def _take(source: Picture | Video, chosen: np.ndarray, size: int | None) -> Clip:
    """Stack the frames of chosen indices, each copied into place as it is decoded."""
    pictures = np.empty(0, np.uint8)
    times: list[float] = []
    for time, pixels in source.read(chosen):
        if size is not None:
            pixels = prepare(pixels[None], size)[0]
        if not times:
            pictures = np.empty((len(chosen), *pixels.shape), np.uint8)
        pictures[len(times)] = pixels
        times.append(time)
    if not times:
        raise MediaError("none of its frames can be decoded")
    return Clip(pictures[: len(times)], np.array(times))


def _existing_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    try:
        empty = path.stat().st_size == 0
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UsageError(f"can't open {path}: {reason}") from problem
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a picture or clip in it")
    if not path.is_file():
        raise UsageError(f"{path} is not an ordinary file; save its content to a file first")
    if empty:
        raise MediaError(f"{path} is empty")
    return path


@contextmanager
def _one_line_refusals(path: Path) -> Iterator[None]:
    """Give every failure one line with the file's name.

    Decoders meet arbitrary bytes and raise whatever they stumble over (OSError, struct.error,
    SyntaxError, IndexError, ...); none of it is a bug of ours, so all of it is a MediaError.
    """
    try:
        yield
    except UsageError as problem:
        raise UsageError(f"{path}: {problem}") from problem
    except MediaError as problem:
        raise MediaError(f"can't read {path}: {problem}") from problem
    except Exception as problem:
        reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        raise MediaError(f"can't read {path}: {reason.splitlines()[0]}") from problem
