"""What may pass is tried again: a busy Hub, a line that breaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from lwm_core.hub.reasons import causes

LOG = logging.getLogger(__name__)

WAITS = (1.0, 4.0)
"""Seconds before each further attempt."""

Result = TypeVar("Result")


def patiently(attempt: Callable[[], Result]) -> Result:
    """The result of `attempt`, which is made again when it failed for what may pass.

    Raises what the last attempt raised.
    """
    for wait in WAITS:
        try:
            return attempt()
        except Exception as error:
            if not _may_pass(error):
                raise
            LOG.info("%s; trying again in %.0f s", " ".join(str(error).split())[:160], wait)
            time.sleep(wait)
    return attempt()


def _may_pass(error: Exception) -> bool:
    """Whether the Hub had a bad moment or the line broke, going by the first that tells."""
    from huggingface_hub import errors

    # The client's HTTP library has changed its name before; this is the base of its errors.
    http_error = errors.HfHubHTTPError.__bases__[0]
    for cause in causes(error):
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            return status in (408, 429) or status >= 500
        if isinstance(cause, http_error):
            return True
    return False
