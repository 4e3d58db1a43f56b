"""Pictures and clips in and out: files become uint8 `[frames, height, width, 3]` and back.

read.py      a file of any kind → `Clip`: what is asked, what is refused
choice.py    which frames of a clip are taken
pictures.py  stills and animations (Pillow)
clips.py     films (PyAV): seek instead of decoding everything
shape.py     resize, crop, enlarge, tile
write.py     pictures and films to files, whole or not at all
"""

from lwm_core.media.read import Clip, read_media
from lwm_core.media.shape import grid, prepare, upscale
from lwm_core.media.write import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    check_output,
    write_image,
    write_video,
)

__all__ = [
    "PICTURE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Clip",
    "check_output",
    "grid",
    "prepare",
    "read_media",
    "upscale",
    "write_image",
    "write_video",
]
