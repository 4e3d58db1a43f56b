"""How much memory devices have free."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lwm_core.axes import MeshSizes

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh


def mesh_sizes(mesh: Mesh) -> MeshSizes:
    """How many devices lie along each axis."""
    return MeshSizes(**mesh.shape)


def free_memory(devices: Iterable[jax.Device]) -> int:
    """Free bytes of the fullest device; those that have none of their own share the machine's."""
    stats = [device.memory_stats() for device in devices]
    own = [one["bytes_limit"] - one["bytes_in_use"] for one in stats if one]
    return min(own) if own else _free_on_machine() // len(stats)


def _free_on_machine() -> int:
    """What Linux says is available; elsewhere all that is built in."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
