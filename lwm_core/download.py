"""Fetch models from the Hugging Face Hub into its cache, and find those that are already there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwm_core import registry
from lwm_core.errors import DownloadError, LwmError, ModelNotFound
from lwm_core.hub import cache
from lwm_core.hub.address import Address, address_of, is_written
from lwm_core.hub.checksum import File
from lwm_core.hub.choice import Choice, choose
from lwm_core.hub.patience import patiently
from lwm_core.hub.reasons import explanation
from lwm_core.hub.threads import in_threads
from lwm_core.hub.transfer import Transfer

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

    from lwm_core.types import Progress

LOG = logging.getLogger(__name__)

THREADS = 4
"""Files that come at the same time."""

LIST_TIMEOUT = 30.0
"""Seconds that the Hub may be silent before it says which files there are."""

WHOLE = "download"
"""The phase of the progress of all files together; that of one file is its name."""


def download(
    name: str,
    *,
    revision: str | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """The directory of a model, fetched first unless it is here.

    `name` is an alias, `owner/repository`, or its URL, which may name the revision. Of a model
    that a Python package ships the place is told, and nothing is fetched. What was interrupted
    goes on where it stopped; with `force`, every file is fetched anew. Checksums are compared,
    and the directory is whole or not there at all. `on_progress` is called from several threads,
    one at a time, with bytes: for each file in turn, for its check, and for all (`WHOLE`).

    Raises ModelNotFound for an unknown name, UsageError for an impossible URL or revision, and
    DownloadError for what keeps the model from coming.
    """
    card = registry.find(name)
    if card and not card.repositories:
        return registry.shipped_path(card)
    address = address_of(name, revision)
    if not force and (here := cache.snapshot_of(address)):
        return here
    try:
        return _fetch(address, force, on_progress)
    except LwmError:
        raise
    except Exception as error:  # the Hub's client raises its own, its HTTP library's, the system's
        raise DownloadError(explanation(error, address)) from error


def local_path(model: registry.Card | str, *, revision: str | None = None) -> Path | None:
    """The directory of a whole model on this machine, or None; `model` may be a hub repository.

    Raises UsageError for an impossible URL or revision.
    """
    if isinstance(model, str):
        return cache.snapshot_of(address_of(model, revision)) if is_written(model) else None
    if not model.repositories:
        try:
            return registry.shipped_path(model)
        except ModelNotFound:
            return None
    found = (cache.snapshot_of(Address(each, revision)) for each in model.repositories)
    return next((path for path in found if path), None)


def _fetch(address: Address, force: bool, on_progress: Callable[[Progress], None] | None) -> Path:
    commit, listed = _list(address)
    choice = choose(address.repository, listed)
    files = [listed[name] for name in (*choice.weights, *choice.beside)]
    _check_sizes(address.repository, files)
    stop = threading.Event()
    total = sum(file.size for file in files)
    report = _tally(total, on_progress)
    transfer = Transfer(address.repository, commit, force, report, stop)
    needed = sum(map(transfer.missing, files))
    LOG.info("fetching %.0f of %.0f MB of %s", needed / 1e6, total / 1e6, address.repository)
    cache.check_space(address.repository, needed)
    in_threads(transfer.fetch, files, threads=THREADS, stop=stop)
    return _put_in_place(address, commit, choice)


def _list(address: Address) -> tuple[str, dict[str, File]]:
    """The commit that a revision is today, and its files by name."""
    from huggingface_hub import HfApi

    info = patiently(
        lambda: HfApi().model_info(
            address.repository,
            revision=address.revision,
            files_metadata=True,
            timeout=LIST_TIMEOUT,
        )
    )
    if info.sha is None:
        raise DownloadError(f"the hub names no commit of {address.repository}; try again later")
    files = {
        each.rfilename: File(
            name=each.rfilename,
            size=each.size or 0,
            sha256=each.lfs.sha256 if each.lfs else None,
            git_hash=None if each.lfs else each.blob_id,
        )
        for each in info.siblings or ()
    }
    return info.sha, files


def _check_sizes(repository: str, files: Sequence[File]) -> None:
    """Make sure that the Hub gives all files by HTTP. Raises DownloadError if not."""
    from huggingface_hub import constants

    largest = max(files, key=lambda file: file.size)
    if largest.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise DownloadError(
            f"{largest.name} of {repository} has {largest.size / 1e9:.0f} GB, more than the hub "
            f"gives in one piece; fetch it with `hf download {repository}` first"
        )


def _tally(
    total: int, on_progress: Callable[[Progress], None] | None
) -> Callable[[str, int, int], None]:
    """A report of one file's progress that adds up that of all."""
    from lwm_core.types import Progress

    lock = threading.Lock()
    done_of: dict[str, int] = {}

    def report(phase: str, done: int, size: int) -> None:
        if on_progress is None:
            return
        with lock:
            on_progress(Progress(phase, done, size, "bytes"))
            if not phase.startswith("checking "):
                done_of[phase] = done
                on_progress(Progress(WHOLE, sum(done_of.values()), total, "bytes"))

    return report


def _put_in_place(address: Address, commit: str, choice: Choice) -> Path:
    """Let the client show the fetched files under their names, the weights last."""
    from huggingface_hub import snapshot_download

    def show(names: Sequence[str], revision: str | None) -> Path:
        return Path(
            snapshot_download(
                address.repository,
                revision=revision,
                allow_patterns=[escape(name) for name in names],
                tqdm_class=_silent_bar(),
            )
        )

    # The first call asks for the revision by its name, so that the cache learns what it is today.
    shown = patiently(lambda: show(choice.beside or choice.weights, address.revision))
    if shown.name != commit:
        raise DownloadError(f"{address.repository} changed while it was fetched; run it again")
    return patiently(lambda: show(choice.weights, commit))


def _silent_bar() -> type[tqdm]:
    """A progress bar for the client that draws nothing: nothing is left to wait for."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Bar
