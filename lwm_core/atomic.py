"""What is written: whole or not at all, by one run at a time, and whether it finds room."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lwm_core.errors import OutputError, UsageError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path`: what is written there takes its place if the block succeeds.

    Raises OutputError where the system refuses.
    """
    target = Path(os.path.realpath(path))  # through a link: the file it points to is replaced
    temporary = target.with_name(f".lwm-{secrets.token_hex(4)}{target.suffix}")
    try:
        with refusals(path):
            yield temporary
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def refusals(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise OutputError where the system refuses to write to a path."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}") from error


@contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to a folder; one that it has to make does not stay empty.

    Raises UsageError while another writes to it, and OutputError where the system refuses.
    """
    is_new = not folder.exists()
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        try:
            yield
        finally:
            if is_new:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{folder}: another run writes to it; wait for its end, or choose another with -o"
        ) from None
    except OSError:  # a file system without locks
        return


def free_bytes(path: Path) -> int:
    """The room on the disk of a path, which need not exist yet."""
    existing = next(one for one in (path, *path.absolute().parents) if one.exists())
    return shutil.disk_usage(existing).free
