"""Which rows of a batch a process makes: those that its devices hold, where no other holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from lwm_core.execution import Execution
from lwm_core.types import Batch


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` equal parts of a batch's rows."""

    index: int = 0
    count: int = 1

    def of(self, batch: Batch) -> Batch:
        """This part of a whole batch."""
        rows = len(batch.inputs) // self.count
        return jax.tree.map(lambda x: x[self.index * rows : (self.index + 1) * rows], batch)

    def put(self, rows: np.ndarray, place: NamedSharding) -> jax.Array:
        """This part, `[rows, ...]`, with those of all other processes as one array."""
        first = self.index * len(rows)
        shape = len(rows) * self.count, *rows.shape[1:]

        def part(index: Any) -> np.ndarray:
            low, high, _ = index[0].indices(shape[0])
            return rows[(slice(low - first, high - first), *index[1:])]

        return jax.make_array_from_callback(shape, place, part)


def shard_of(how: Execution) -> Shard:
    """The part of this process: all rows, unless processes hold different parts of equal size."""
    ways = how.mesh.shape["dp"] * how.mesh.shape["fsdp"]
    # The axes dp and fsdp come first: so many devices share each row.
    rows = how.mesh.devices.reshape(ways, -1)
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(one)) for one in held.values()})
    mine = tuple(sorted(held[jax.process_index()]))
    even = [tuple(range(i, i + len(mine))) for i in range(0, ways, len(mine))]
    return Shard(parts.index(mine), len(parts)) if parts == even else Shard()
