"""How a computation runs: on which devices, in which numbers, what is kept and what made again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lwm_core.config import Remat

RULES: dict[str, tuple[str, ...]] = {
    "vocab": ("tp",),
    "heads": ("tp",),
    "kv_heads": ("tp",),
    "mlp": ("tp",),
    "embed": ("fsdp", "sp"),
    "norm": (),
    "rank": (),
    "layers": (),
    "rows": ("dp", "fsdp"),
    "sequence": ("sp",),
}
"""The mesh axes over which each logical axis is cut."""


FLOAT32 = jnp.dtype(jnp.float32)


@dataclass(frozen=True)
class Execution:
    """How a model runs on a mesh of the axes dp, fsdp, tp and sp.

    `dtype` is that of the computation, `attention` the way to try first, `remat` what the backward
    pass makes again. With `whole_weights` the devices of `sp` have all weights, which are read for
    each token when text is written; without, each has a part and they are gathered, layer by layer.
    """

    mesh: Mesh
    dtype: jnp.dtype = FLOAT32
    attention: str = "auto"
    remat: Remat = "attention"
    whole_weights: bool = True

    @property
    def platform(self) -> str:
        """What the devices are: `cpu`, `gpu`, `tpu`; they need not be of this machine."""
        return self.mesh.devices.flat[0].platform

    @property
    def splits_layers(self) -> bool:
        """Whether what only writes has layers with arrays of their own (`weight_tree.split`)."""
        return self.platform == "cpu"

    @property
    def ways(self) -> int:
        """The devices that share a sequence."""
        return self.mesh.shape["sp"]

    def spec(self, *axes: str | None, shape: tuple[int, ...] = ()) -> PartitionSpec:
        """How an array with these logical axes is cut.

        Given its shape, a dimension that the mesh does not divide stays whole.
        """
        cuts: list[tuple[str, ...] | None] = []
        for dimension, axis in enumerate(axes):
            cut = RULES[axis] if axis else ()
            if axis == "embed" and self.whole_weights:
                cut = ("fsdp",)
            ways = math.prod(self.mesh.shape[name] for name in cut)
            cuts.append(None if shape and shape[dimension] % ways else cut or None)
        return PartitionSpec(*cuts)

    def token_spec(self, rows: int, *, shared: bool = True) -> PartitionSpec:
        """How arrays `[B, T]` of so many rows are cut; all devices of `sp` have tokens not shared.

        Rows that the mesh does not divide are given to all; tokens must be divided.
        """
        cut, *_ = self.spec("rows", shape=(rows,))
        return PartitionSpec(cut, "sp" if shared else None)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """Where an array that is cut so lies."""
        return NamedSharding(self.mesh, spec)

    def spread(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """A function of one device's arrays as a function of the arrays of all.

        Gradients are taken inside: the collectives of `collectives.py` know theirs.
        """
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
