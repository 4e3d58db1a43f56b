"""Pictures and films to files: whole or not at all.

Everything is written beside its place and moved there at the end, so that an error, a full
disk or Ctrl-C leaves what was there before and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from lwm_core.atomic import replacing
from lwm_core.errors import OutputError, UsageError

PICTURE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {},
    ".jpg": {"quality": 95},
    ".jpeg": {"quality": 95},
    ".webp": {"quality": 95},
    ".gif": {},
}
PICTURE_SUFFIXES = tuple(PICTURE_OPTIONS)
VIDEO_SUFFIXES = (".mp4", ".gif", ".webp")

X264_OPTIONS = {"crf": "18", "preset": "medium"}
BT709 = 1  # the same number in FFmpeg's lists of matrices, primaries and transfer curves
STUDIO_RANGE = 1
# Durations are stored in this many parts of a second.
ANIMATION_CLOCK = {".gif": 100, ".webp": 1000}
SHORTEST_DURATION = {".gif": 2, ".webp": 1}  # browsers slow a GIF down if it asks for less
FPS_RANGE = (0.1, 240)


def check_output(
    path: str | os.PathLike[str], suffixes: tuple[str, ...], force: bool = False
) -> Path:
    """Make sure, before any work, that `path` can be written and may be; returns it.

    Raises UsageError (suffix not in `suffixes`, a directory, no such directory to write in,
    exists and not `force`) or OutputError (no permission).
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory; name a file in it")
    if path.suffix.lower() not in suffixes:
        known = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UsageError(f"can't tell what {path} should be: let its name end in {known}")
    if not os.path.isdir(path.parent):
        raise UsageError(f"there is no directory {path.parent}; make it first")
    try:
        exists = path.exists()
    except OSError as problem:
        raise UsageError(f"can't write {path}: {problem.strerror}") from problem
    if exists and not force:
        raise UsageError(f"{path} exists; choose another name or overwrite it with --force")
    for target in (path.parent, path) if exists else (path.parent,):
        if not os.access(target, os.W_OK):
            raise OutputError(f"no permission to write {target}")
    return path


def write_image(path: str | os.PathLike[str], pixels: np.ndarray, *, force: bool = False) -> None:
    """Write uint8 `[height, width, 3]` as PNG, JPEG, WebP or GIF, by the suffix.

    Raises what `check_output` raises, and OutputError if writing fails.
    """
    path = check_output(path, PICTURE_SUFFIXES, force)
    with _encoding(path) as temporary:
        Image.fromarray(np.asarray(pixels)).save(temporary, **PICTURE_OPTIONS[path.suffix.lower()])


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    force: bool = False,
) -> None:
    """Write uint8 `[height, width, 3]` frames as MP4 (H.264), GIF or WebP, by the suffix.

    Frames are taken as they come; what the iterable raises goes through. An MP4 of odd size
    repeats its last row or column, because H.264 halves the colours. Raises what
    `check_output` raises, UsageError for an impossible fps, OutputError if writing fails.
    """
    path = check_output(path, VIDEO_SUFFIXES, force)
    slowest, fastest = FPS_RANGE
    if not slowest <= fps <= fastest:
        raise UsageError(f"fps must lie between {slowest:g} and {fastest:g}, not at {fps:g}")
    write = _write_mp4 if path.suffix.lower() == ".mp4" else _write_animation
    pictures = (np.asarray(pixels) for pixels in frames)
    first = next(pictures, None)
    if first is None:
        raise OutputError(f"there is no frame to write to {path}")
    with _encoding(path) as temporary:
        write(temporary, first, pictures, fps)


@contextmanager
def _encoding(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be `path`. Raises OutputError for what encoders refuse."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except (FFmpegError, ValueError) as problem:  # Pillow: more pixels than the format has
        reason = getattr(problem, "strerror", None) or problem
        raise OutputError(f"can't write {path}: {reason}") from problem


def _write_mp4(path: Path, first: np.ndarray, rest: Iterator[np.ndarray], fps: float) -> None:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=X264_OPTIONS)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = _even(first).shape[:2]
        stream.colorspace = stream.color_primaries = stream.color_trc = BT709
        stream.color_range = STUDIO_RANGE
        for pixels in chain([first], rest):
            picture = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")
            picture = picture.reformat(
                format="yuv420p", dst_colorspace=BT709, dst_color_range=STUDIO_RANGE
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _even(pixels: np.ndarray) -> np.ndarray:
    """Repeat the last row and column where their number is odd."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_animation(path: Path, first: np.ndarray, rest: Iterator[np.ndarray], fps: float) -> None:
    """Durations are whole ticks of the format's clock; rounding errors do not add up."""
    images = [Image.fromarray(pixels) for pixels in chain([first], rest)]
    suffix = path.suffix.lower()
    clock = ANIMATION_CLOCK[suffix]
    ticks = np.diff(np.rint(np.arange(len(images) + 1) * clock / fps))
    milliseconds = np.maximum(ticks, SHORTEST_DURATION[suffix]) * (1000 // clock)
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=milliseconds.astype(int).tolist(),
        loop=0,
        **PICTURE_OPTIONS[suffix],
    )
