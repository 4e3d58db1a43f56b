"""One file of the Hub comes into the cache: on from where it stopped, and never unchecked.

The Hub's client forgets the part of a file that it has when it is interrupted, and does not
compute checksums. So a file is received here, by the client's own function for that, into a part
beside its place in the cache; only when its checksum is right it takes that place, where the
client finds it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lwm_core.errors import DownloadError
from lwm_core.hub import cache
from lwm_core.hub.checksum import File, damage
from lwm_core.hub.patience import patiently


class Stopped(Exception):
    """The whole download is being given up; a file that was coming keeps its part."""


@dataclass(frozen=True)
class Transfer:
    """What all files of one download have in common.

    `report(phase, done, total)` is called with bytes; once `stop` is set, files stop coming.
    """

    repository: str
    commit: str
    force: bool
    report: Callable[[str, int, int], None]
    stop: threading.Event

    def missing(self, file: File) -> int:
        """How many bytes of a file are still to come, as far as the cache shows."""
        blob = self._blob(file.sha256 or file.git_hash or file.name)
        if not self.force and (self._pointer(file).exists() or blob.exists()):
            return 0
        part = _part(blob)
        return file.size - part.stat().st_size if part.exists() else file.size

    def fetch(self, file: File) -> None:
        """Bring a file into the cache's `blobs/`, unless it is there (and not `force`).

        Raises DownloadError when it came damaged, Stopped, and what the Hub's client raises.
        """
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.utils import WeakFileLock

        url = hf_hub_url(self.repository, file.name, revision=self.commit)
        etag = patiently(lambda: HfApi().get_hf_file_metadata(url=url)).etag
        if not etag or Path(etag).name != etag:
            raise DownloadError(
                f"{file.name} of {self.repository} came without a usable ETag; a proxy may have "
                "taken it away: try another connection"
            )
        blob = self._blob(etag)
        lock = cache.root() / ".locks" / cache.folder_of(self.repository).name / f"{etag}.lock"
        for path in (blob, lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the client's own: nobody else fetches this file meanwhile
            if self.force or not blob.exists():
                self._receive(url, _part(blob), file)
                self._check(_part(blob), file)
                os.replace(_part(blob), blob)
        pointer = self._pointer(file)
        if self.force and pointer.is_file() and not pointer.is_symlink():
            pointer.unlink()  # where links are not to be had, the old file itself lies here
        self.report(file.name, file.size, file.size)

    def _blob(self, etag: str) -> Path:
        return cache.folder_of(self.repository) / "blobs" / etag

    def _pointer(self, file: File) -> Path:
        """Where the cache shows a file under its name."""
        return cache.folder_of(self.repository) / "snapshots" / self.commit / file.name

    def _receive(self, url: str, part: Path, file: File) -> None:
        """Let the part grow to the whole file."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        # Compressed on the way, a file could not be asked for from the middle.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}

        def attempt() -> None:
            with part.open("ab") as opened:
                there = done = opened.tell()

                def count(more: int) -> None:
                    nonlocal done
                    done += more
                    self._advance(file.name, done, file)

                count(0)
                if there < file.size:
                    bar = _counting_bar(count)
                    http_get(url, opened, resume_size=there, headers=headers, tqdm_class=bar)

        patiently(attempt)

    def _check(self, part: Path, file: File) -> None:
        """Compare a received file with the Hub's list; a damaged one is removed."""
        phase = f"checking {file.name}"
        reason = damage(part, file, lambda done: self._advance(phase, done, file))
        if reason:
            part.unlink()
            raise DownloadError(
                f"{file.name} of {self.repository} came damaged ({reason}) and was removed; "
                "run it again"
            )

    def _advance(self, phase: str, done: int, file: File) -> None:
        if self.stop.is_set():
            raise Stopped
        self.report(phase, done, file.size)


def _part(blob: Path) -> Path:
    """Where a file lies until it is complete."""
    return blob.with_name(f"{blob.name}.lwm.incomplete")


def _counting_bar(count: Callable[[int], None]) -> type:
    """What the client takes for a progress bar: it draws nothing and passes on bytes that come.

    Their number is negative when the server begins again.
    """

    class Bar:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, more: float | None = 1) -> None:
            count(int(more or 0))

    return Bar
