"""Packages that only some data need; they come with the extra `[data]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lwm_core.errors import UsageError


@contextmanager
def needed_for(what: object) -> Iterator[None]:
    """Around an import: where the package is missing, UsageError says what installs it."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        raise UsageError(
            f"{what}: the package {package} that reads it is not installed; install lwm with [data]"
        ) from error
