"""Memory in huge pages: a processor looks up fewer addresses while it reads all of a model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""The setting of glibc (since 2.35) that asks Linux for them; it is read when a program starts."""
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_with_huge_pages() -> None:
    """Start this program anew where memory comes in huge pages only for those who ask.

    Writing measured 1.2 to 1.35 times as fast with them on a CPU, training 1.15 times. It is the
    first thing that a program does: whatever it did before is done again.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not _are_given_on_request():
        return
    settings = ":".join(filter(None, (tunables, HUGE_PAGES)))
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "GLIBC_TUNABLES": settings})


def _are_given_on_request() -> bool:
    """Whether Linux gives huge pages to programs that ask, and only to them."""
    try:
        return "[madvise]" in _POLICY.read_text()
    except OSError:
        return False
