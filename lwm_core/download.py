"""Fetch models from the Hugging Face hub into its cache, and find those that are already there."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwm_core import registry
from lwm_core.errors import DownloadError, LwmError

if TYPE_CHECKING:
    from huggingface_hub.file_download import DryRunFileInfo

    from lwm_core.types import Progress

LOG = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHARD = re.compile(r".*-\d+-of-\d+\.\w+")
_WEIGHTS = ("*.safetensors", "params")
_FILES = ("*.json", "*.model", "vqgan", *_WEIGHTS)


def download(
    name: str,
    *,
    revision: str | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """The directory of a model, fetched first unless it is here: an alias or `owner/repository`.

    A model that ships with the package has its directory there, and nothing is fetched. With
    `force`, every file is fetched anew. `on_progress` is called from several threads, one at a
    time, with bytes done of all bytes to fetch.

    Raises ModelNotFound for an unknown name and DownloadError for what keeps it from coming.
    """
    if registry.find(name) is registry.NANO:
        return registry.embedded_path()
    repository = _repository(name)
    if not force and (here := _local_snapshot(repository, revision)):
        return here
    try:
        return _fetch(repository, revision, force, on_progress)
    except LwmError:
        raise
    except Exception as error:  # the hub's client raises its own, its HTTP library's, the system's
        raise DownloadError(_explanation(error, repository, revision)) from error


def local_path(model: registry.Card | str, *, revision: str | None = None) -> Path | None:
    """The directory of a whole model on this machine, or None; `model` may be a hub repository."""
    if isinstance(model, str):
        return _local_snapshot(model, revision)
    if model.embedded:
        return registry.embedded_path()
    found = (_local_snapshot(repository, revision) for repository in model.repositories)
    return next((path for path in found if path), None)


def is_repository(name: str) -> bool:
    """Whether a name is written as a hub repository, `owner/repository`."""
    return bool(_REPOSITORY.fullmatch(name))


def _repository(name: str) -> str:
    """The hub repository that a name stands for; one written out stands for itself."""
    card = registry.find(name)
    if card is None and is_repository(name):
        return name
    repositories = registry.get(name).repositories
    written = [each for each in repositories if each.lower() == name.strip().lower()]
    return (written or repositories)[0]


def _local_snapshot(repository: str, revision: str | None) -> Path | None:
    """Where the hub's cache keeps a whole copy of a repository, looked up without its client."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit if commit else None
    return snapshot if snapshot and _is_whole(snapshot, repository) else None


def _is_whole(directory: Path, repository: str) -> bool:
    """Whether all weights are there; the cache shows a file only once it is complete."""
    card = registry.find(repository)
    if card is not None and card.kind == "vision" and not (directory / "vqgan").exists():
        return False
    weights = {path.name for pattern in _WEIGHTS for path in directory.glob(pattern)}
    if any(not _SHARD.fullmatch(name) for name in weights):
        return True
    return any(
        weights.issuperset(shards) for shards in map(_shards, directory.glob("*.index.json"))
    )


def _shards(index: Path) -> set[str | None]:
    """The files that an index names; one that is damaged names none that could be there."""
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {None}


def _fetch(
    repository: str,
    revision: str | None,
    force: bool,
    on_progress: Callable[[Progress], None] | None,
) -> Path:
    from huggingface_hub import snapshot_download

    def snapshot(patterns: Sequence[str], total: int, *, dry_run: bool) -> Any:
        return snapshot_download(
            repository,
            revision=revision,
            force_download=force,
            allow_patterns=list(patterns),
            tqdm_class=_progress_bar(total, on_progress),
            dry_run=dry_run,
        )

    files = _wanted(snapshot([*_FILES, "*.bin"], 0, dry_run=True), repository)
    total = sum(file.file_size or 0 for file in files if file.will_download)
    LOG.info("fetching %s, %.0f MB", repository, total / 1e6)
    _check_space(repository, total)
    return Path(snapshot([file.filename for file in files], total, dry_run=False))


def _wanted(files: list[DryRunFileInfo], repository: str) -> list[DryRunFileInfo]:
    """All but PyTorch's `.bin`, which is not read. Raises DownloadError without other weights."""
    wanted = [file for file in files if ".bin" not in file.filename]
    if not any(Path(file.filename).match(pattern) for file in wanted for pattern in _WEIGHTS):
        held = "weights as PyTorch's .bin only" if len(wanted) < len(files) else "no weights"
        raise DownloadError(
            f"{repository} holds {held}; lwm reads safetensors and LWM's params, name a "
            "repository that has them"
        )
    return wanted


def _check_space(repository: str, needed: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DownloadError(
            f"{repository} needs {needed / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB left; "
            "free some space, or set HF_HOME to a directory on another disk"
        )


def _progress_bar(total: int, on_progress: Callable[[Progress], None] | None) -> type:
    """A progress bar for the hub's client that draws nothing and reports bytes instead."""
    from huggingface_hub.utils.tqdm import tqdm

    from lwm_core.types import Progress

    lock = threading.Lock()
    done = 0

    def report(count: float) -> None:
        nonlocal done
        with lock:
            if on_progress and count > done:
                done = min(int(count), total)
                on_progress(Progress("download", done, total, "bytes"))

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"  # others count files
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts_bytes:
                report(self.n)

    return Bar


def _explanation(error: BaseException, repository: str, revision: str | None) -> str:
    """One line on why a repository did not come, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    log_in = "run `hf auth login` or set HF_TOKEN"
    reasons: list[tuple[type[BaseException], str]] = [
        (
            errors.OfflineModeIsEnabled,
            f"{repository} is not on this machine and HF_HUB_OFFLINE forbids to fetch it; "
            "unset it, or give the path of a model directory",
        ),
        (
            errors.GatedRepoError,
            f"{repository} is given on request; accept its terms at {page}, then {log_in}",
        ),
        (
            errors.RevisionNotFoundError,
            f"{repository} has no revision {revision!r}; see {page}/commits",
        ),
        (
            errors.RepositoryNotFoundError,
            f"there is no public repository {repository}; check the name, or {log_in} "
            "if it is private",
        ),
    ]
    causes = list(_causes(error))
    for kind, reason in reasons:
        if any(isinstance(cause, kind) for cause in causes):
            return reason
    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            what_to_do = log_in if status in (401, 403) else "try again in a few minutes"
            return f"the hub answers {status} for {repository}; {what_to_do}"
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return f"the disk is full while fetching {repository}; free some space or set HF_HOME"
    return (
        f"fetching {repository} from {constants.ENDPOINT} failed "
        f"({' '.join(str(causes[-1]).split()):.160}); check the connection and run it again, "
        "it goes on where it stopped"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the root last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
