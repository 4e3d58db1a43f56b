"""A file as memory: read where it lies, page by page, without being loaded."""

from __future__ import annotations

import mmap
from pathlib import Path

from lwm_core.errors import FormatError, UsageError


def release(mapping: mmap.mmap) -> None:
    """Give back the memory of what was read so far; views of it stay valid, and read it again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def map_file(path: str | Path) -> mmap.mmap:
    """Map a weight file read-only; arrays made from it keep the mapping alive.

    Raises UsageError when there is no such file and FormatError when it is empty or unreadable.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: there is no such file; give the path of a weight file")
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # a file of no bytes can't be mapped
        raise FormatError(f"{path}: the file is empty; download it again") from error
    except OSError as error:
        raise FormatError(
            f"{path}: can't be read ({error.strerror}); check its permissions"
        ) from error
