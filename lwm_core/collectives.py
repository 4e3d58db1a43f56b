"""What one device needs of others, with gradients: weights, sums, and its share of a loss.

Every device differentiates its own part of the loss. So a gradient that belongs to several devices
is summed exactly where the forward pass made copies (Shoeybi et al. 2019, Megatron's f and g).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

DATA_AXES = ("dp", "fsdp", "sp")
"""Mesh axes over which tokens are cut: each has gradients of its own for the same weights."""


def sum_over(x: jax.Array, *axes: str) -> jax.Array:
    """The sum over all devices of some mesh axes; without a gradient of its own."""
    several = tuple(axis for axis in axes if lax.axis_size(axis) > 1)
    return lax.psum(x, several) if several else x


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(weight: jax.Array, spec: PartitionSpec, dtype: jnp.dtype) -> jax.Array:
    """A weight as the computation needs it: whole, but for what is cut over `tp`.

    It travels in `dtype` and comes out in its own, so that its gradient is summed in that; integers
    travel as they are. The dimension that is cut goes first on the way: TPUs have no collectives
    over another, unless the parts fill whole tiles, and would sum up whole arrays instead.
    """
    whole = weight
    travelling = dtype if jnp.issubdtype(weight.dtype, jnp.floating) else weight.dtype
    for dimension, axes in _data_axes(spec):
        part = jnp.moveaxis(whole.astype(travelling), dimension, 0)
        gathered = lax.all_gather(part, axes, tiled=True)
        whole = jnp.moveaxis(gathered, 0, dimension).astype(weight.dtype)
    return whole


def _gather_forward(
    weight: jax.Array, spec: PartitionSpec, dtype: jnp.dtype
) -> tuple[jax.Array, None]:
    return gather(weight, spec, dtype), None


def _gather_backward(
    spec: PartitionSpec, dtype: jnp.dtype, _: None, cotangent: jax.Array
) -> tuple[jax.Array]:
    """The sum over all tokens, of which each device keeps its part of the weight."""
    cut = _data_axes(spec)
    for dimension, axes in cut:
        moved = jnp.moveaxis(cotangent, dimension, 0)
        moved = with_layout_constraint(moved, Layout(major_to_minor=tuple(range(moved.ndim))))
        part = lax.psum_scatter(moved, axes, tiled=True)
        cotangent = jnp.moveaxis(part, 0, dimension)
    rest = [axis for axis in DATA_AXES if all(axis not in axes for _, axes in cut)]
    return (sum_over(cotangent, *rest),)


gather.defvjp(_gather_forward, _gather_backward)


def _data_axes(spec: PartitionSpec) -> list[tuple[int, tuple[str, ...]]]:
    """The dimensions that are cut over data axes of more than one device, with these axes."""
    cuts = []
    for dimension, axes in enumerate(spec):
        names = (axes,) if isinstance(axes, str) else axes or ()
        over = tuple(a for a in names if a in DATA_AXES and lax.axis_size(a) > 1)
        if over:
            cuts.append((dimension, over))
    return cuts


@jax.custom_vjp
def copy_to_tp(x: jax.Array) -> jax.Array:
    """`x`, from here on used by all devices of `tp`, each with its part of the weights."""
    return x


copy_to_tp.defvjp(lambda x: (x, None), lambda _, cotangent: (sum_over(cotangent, "tp"),))


@jax.custom_vjp
def sum_over_tp(x: jax.Array) -> jax.Array:
    """The sum of what the devices of `tp` have computed, each with its part of the weights."""
    return sum_over(x, "tp")


sum_over_tp.defvjp(lambda x: (sum_over(x, "tp"), None), lambda _, cotangent: (cotangent,))
