"""A file as the Hub lists it, and whether what came is that file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 1 << 22  # bytes read at once


@dataclass(frozen=True)
class File:
    """A file of a repository, `size` in bytes.

    `sha256` is known of large files, `git_hash` (that of a git blob) of small ones.
    """

    name: str
    size: int
    sha256: str | None
    git_hash: str | None


def damage(path: Path, file: File, on_block: Callable[[int], None]) -> str | None:
    """What is wrong with a received file, or None; `on_block(bytes read so far)` is called."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes instead of {file.size}"
    if file.sha256:
        computed = _digest(path, hashlib.sha256(), on_block)
        return None if computed == file.sha256 else "its sha256 is not the Hub's"
    if file.git_hash:
        begun = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        computed = _digest(path, begun, on_block)
        return None if computed == file.git_hash else "its git hash is not the Hub's"
    return None


def _digest(path: Path, checksum: Any, on_block: Callable[[int], None]) -> str:
    done = 0
    with path.open("rb") as opened:
        while block := opened.read(BLOCK):
            checksum.update(block)
            done += len(block)
            on_block(done)
    digest: str = checksum.hexdigest()
    return digest
