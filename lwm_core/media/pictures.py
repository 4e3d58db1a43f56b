"""Stills and animations through Pillow: any mode becomes upright 8-bit RGB.

Alpha is dropped, as the original does. An animation is decoded one frame at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from lwm_core.errors import MediaError

# Formats that Pillow reads itself, recognised by their first bytes; EPS would start a program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO", "QOI")
# Other formats with several pictures hold pages or views of one moment (TIFF, MPO), not a film.
ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
# Browsers show a frame without a duration of its own for this long.
DEFAULT_DURATION = 0.1
MAX_PIXELS = 128_000_000  # 384 MB as RGB; the largest phone cameras give 108 million

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture:
    """An open still or animation: `times` float64 `[n]` (s) and the pictures at given indices."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        animated = image.format in ANIMATED_FORMATS and getattr(image, "n_frames", 1) > 1
        self.times = _frame_times(image) if animated else np.zeros(1)

    def read(self, indices: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (seconds, uint8 `[height, width, 3]`) for increasing indices."""
        for index in indices:
            self._image.seek(int(index))
            yield float(self.times[index]), np.asarray(_upright_rgb(self._image))


@contextmanager
def open_picture(path: Path) -> Iterator[Picture]:
    """Open what Pillow knows; raises PIL.UnidentifiedImageError for anything else.

    Raises MediaError for a picture of more than MAX_PIXELS (a few kB can unpack to gigabytes).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata: the picture is what counts
        try:
            image = Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError as problem:
            raise too_large() from problem
        with image:
            check_pixels(*image.size)
            yield Picture(image)


def check_pixels(width: int, height: int) -> None:
    """Raise MediaError if the frame is larger than anything a camera makes."""
    if width * height > MAX_PIXELS:
        raise too_large()


def too_large() -> MediaError:
    """The refusal of a picture whose pixels would fill the memory."""
    return MediaError(
        f"it has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller first"
    )


def _frame_times(image: Image.Image) -> np.ndarray:
    """When each frame begins, float64 `[n]` s, up to the first that can't be decoded."""
    times: list[float] = []
    now = 0.0
    for index in count():
        try:
            image.seek(index)
            image.load()
        except Exception:  # the end, or damage, in whatever way the decoder noticed it
            if not times:
                raise
            break
        times.append(now)
        now += image.info.get("duration", 0) / 1000 or DEFAULT_DURATION
    return np.array(times)


def _upright_rgb(image: Image.Image) -> Image.Image:
    method = None
    with suppress(Exception):  # broken metadata is no reason to refuse the picture
        method = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    image = image.convert("RGB")
    return image if method is None else image.transpose(method)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit integers, or floats from 0 to the brightest, to 0 ... 255; Pillow would clip."""
    values = np.asarray(image, np.float32)
    white = 65535 if image.mode.startswith("I") else max(1, values.max())
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
