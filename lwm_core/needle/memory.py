"""How many questions are answered at once: what memory holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    from lwm_core.config import ModelConfig

MOST_ROWS = 16
"""More at once are hardly faster, and a run that is killed loses what it was at."""
SHARE = 0.5
"""Of the free memory; the rest is for activations, and for what rounds a cache's size up."""


def rows_that_fit(free: int, row: int) -> int:
    """How many rows of `row` bytes are taken at once when so many bytes are free; at least one."""
    return max(1, min(MOST_ROWS, int(free * SHARE) // row))


def cache_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """The keys and values of one row of so many tokens, in bytes."""
    return 2 * config.layers * config.kv_heads * config.head_dim * itemsize * tokens


def free_memory(devices: Iterable[jax.Device]) -> int:
    """Free bytes of the fullest device, or of the machine where devices have none of their own."""
    stats = [device.memory_stats() for device in devices]
    own = [one["bytes_limit"] - one["bytes_in_use"] for one in stats if one]
    return min(own) if own else _free_on_machine()


def _free_on_machine() -> int:
    """What Linux says is available; elsewhere all that is built in."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
