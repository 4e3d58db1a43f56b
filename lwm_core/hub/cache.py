"""The Hub's cache on this machine, looked into without the Hub's client, which is slow to import.

A repository has a folder there: `blobs/` are the contents, named by checksum; `snapshots/COMMIT/`
links file names to them; `refs/` says which commit a branch or tag is.
"""

from __future__ import annotations

from pathlib import Path

from lwm_core.atomic import free_bytes
from lwm_core.errors import DownloadError
from lwm_core.hub.address import Address
from lwm_core.hub.choice import is_whole


def root() -> Path:
    """The folder of the whole cache; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def folder_of(repository: str) -> Path:
    """The folder of one repository; it need not exist."""
    return root() / f"models--{repository.replace('/', '--')}"


def snapshot_of(address: Address) -> Path | None:
    """Where a whole copy of a repository lies, or None."""
    from huggingface_hub import constants

    folder = folder_of(address.repository)
    reference = folder / "refs" / (address.revision or constants.DEFAULT_REVISION)
    commit = reference.read_text().strip() if reference.is_file() else address.revision
    snapshot = folder / "snapshots" / commit if commit else None
    return snapshot if snapshot and is_whole(snapshot, address.repository) else None


def check_space(repository: str, needed: int) -> None:
    """Make sure that `needed` bytes find room in the cache. Raises DownloadError if not."""
    cache = root()
    free = free_bytes(cache)
    if needed > free:
        raise DownloadError(
            f"{repository} needs {needed / 1e9:.1f} GB more and {cache} has {free / 1e9:.1f} GB "
            "left; free some space, or set HF_HOME to a directory on another disk"
        )
