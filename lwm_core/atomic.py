"""Files that are written whole or not at all, and whether they find room."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lwm_core.errors import OutputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path`: what is written there takes its place if the block succeeds.

    Raises OutputError where the system refuses.
    """
    target = Path(os.path.realpath(path))  # through a link: the file it points to is replaced
    temporary = target.with_name(f".lwm-{secrets.token_hex(4)}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as problem:
        raise OutputError(f"can't write {path}: {problem.strerror or problem}") from problem
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def free_bytes(path: Path) -> int:
    """The room on the disk of a path, which need not exist yet."""
    existing = next(one for one in (path, *path.absolute().parents) if one.exists())
    return shutil.disk_usage(existing).free
