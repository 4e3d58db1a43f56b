"""Why a repository did not come, and what to do, in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from lwm_core.hub import cache
from lwm_core.hub.address import Address

_LOG_IN = "run `hf auth login` or set HF_TOKEN"


def explanation(error: BaseException, address: Address) -> str:
    """One line on what the Hub's client, its HTTP library or the system raised."""
    from huggingface_hub import constants

    chain = list(causes(error))
    for cause in chain:
        if reason := _hub_reason(cause, address) or _disk_reason(cause, address):
            return reason
    return (
        f"fetching {address.repository} from {constants.ENDPOINT} failed "
        f"({' '.join(str(chain[-1]).split()):.160}); check the connection and run it again, "
        "it goes on where it stopped"
    )


def _hub_reason(error: BaseException, address: Address) -> str | None:
    from huggingface_hub import constants, errors

    repository = address.repository
    page = f"{constants.ENDPOINT}/{repository}"
    match error:
        case errors.OfflineModeIsEnabled():
            return (
                f"HF_HUB_OFFLINE forbids to fetch {repository}; unset it, or give the path of a "
                "model directory"
            )
        case errors.GatedRepoError():
            return f"{repository} is given on request; accept its terms at {page}, then {_LOG_IN}"
        case errors.RevisionNotFoundError():
            return f"{repository} has no revision {address.revision!r}; see {page}/commits"
        case errors.RepositoryNotFoundError():
            return (
                f"there is no public repository {repository}; check the name, or {_LOG_IN} if it "
                "is private"
            )
        case errors.HfHubHTTPError():
            return _answer(error.response.status_code, repository)
    return None


def _answer(status: int, repository: str) -> str:
    if status in (401, 403):
        what_to_do = f"{_LOG_IN}; the token may be wrong or may not read this"
    elif status == 429:
        what_to_do = f"that is too many requests: try again in a few minutes, or {_LOG_IN}"
    else:
        what_to_do = "try again in a few minutes"
    return f"the hub answers {status} for {repository}; {what_to_do}"


def _disk_reason(error: BaseException, address: Address) -> str | None:
    if isinstance(error, PermissionError):
        return f"{cache.root()} can't be written; set HF_HOME to a directory that can"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full while fetching {address.repository}; free some space or set HF_HOME"
        )
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the root last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
