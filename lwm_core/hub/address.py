"""How a repository of the Hub is written: `OWNER/NAME`, as a URL, or as `hf://OWNER/NAME`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from lwm_core import registry
from lwm_core.errors import UsageError

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REVISION = re.compile(r"(?!.*\.\.)[\w.+-]+(/[\w.+-]+)*")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


@dataclass(frozen=True)
class Address:
    """A repository of the Hub at a branch, tag or commit; None is its default branch."""

    repository: str
    revision: str | None = None


def is_written(name: str) -> bool:
    """Whether a name is written as a repository of the Hub, in any of its ways."""
    return "://" in name or bool(_REPOSITORY.fullmatch(name))


def address_of(name: str, revision: str | None = None) -> Address:
    """Where a model is fetched from: an alias, a repository, or its URL.

    Raises ModelNotFound for an unknown name, and UsageError for a URL of something else and for
    two revisions that differ.
    """
    if not is_written(name):
        return Address(registry.get(name).repositories[0], _checked(revision))
    written = _of_url(name) if "://" in name else Address(name)
    if revision and written.revision and revision != written.revision:
        raise UsageError(f"{name} names a revision, and --revision {revision} another; give one")
    repository = _spelled(written.repository)
    return Address(repository, _checked(revision or written.revision))


def _spelled(repository: str) -> str:
    """A repository in the capitals of its card: the cache keeps it under that name."""
    card = registry.find(repository)
    known = card.repositories if card else ()
    return next((each for each in known if each.lower() == repository.lower()), repository)


def _of_url(url: str) -> Address:
    """The address behind `https://HOST/OWNER/NAME[/tree/REVISION]` or `hf://OWNER/NAME[@REVISION]`.

    Only the Hub's own hosts will do: a token must not go to another, and what came from there
    would stand in the cache under the Hub's name.
    """
    parts = urlsplit(url.strip())
    if parts.scheme == "hf":
        path, _, revision = (parts.netloc + parts.path).strip("/").partition("@")
    elif parts.scheme in ("http", "https"):
        _check_host(url, parts.netloc)
        path, _, revision = unquote(parts.path).strip("/").partition("/tree/")
    else:
        path = revision = ""
    if not _REPOSITORY.fullmatch(path):
        raise UsageError(
            f"{url} is no model of the Hub; write OWNER/NAME, https://huggingface.co/OWNER/NAME "
            "(/tree/REVISION may follow) or hf://OWNER/NAME"
        )
    return Address(path, unquote(revision) or None)


def _check_host(url: str, host: str) -> None:
    from huggingface_hub import constants

    if host.lower() not in (*_HOSTS, urlsplit(constants.ENDPOINT).netloc.lower()):
        raise UsageError(
            f"{url}: {host} is not the Hub; if it is a mirror of it, set HF_ENDPOINT to it first"
        )


def _checked(revision: str | None) -> str | None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise UsageError(f"{revision!r} is no revision; give a branch, a tag or a commit")
    return revision
