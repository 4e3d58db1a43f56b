"""The cache of keys and values: what a model has read, ready to be attended to.

Arrays are `[L, B, K, S, H]`, or of single layers where these are not scanned (`split`). The devices
of `sp` share the slots: each fills up its own part, with its part of the tokens where they are
shared out, and in turn where a single token comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from lwm_core.config import ModelConfig
from lwm_core.execution import Execution
from lwm_core.quantize import quantize
from lwm_core.types import Array, KVCache, Numbers, Places, Quantized


def cache_specs(how: Execution, cache: KVCache) -> KVCache:
    """How a cache is cut: rows as the mesh divides them, heads over tp, slots over sp."""
    cut, *_ = how.spec("rows", shape=cache.positions.shape[:1])
    places = PartitionSpec(cut, "sp")
    layer = PartitionSpec(cut, "tp", "sp")
    split = isinstance(cache.keys, list)
    heads = [layer] * len(cache.keys) if split else PartitionSpec(None, *layer)
    return KVCache(heads, heads, places, places, PartitionSpec())  # type: ignore[arg-type]


def empty_cache(
    config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype, *, split: bool = False
) -> KVCache:
    """A cache for `slots` tokens in each of `rows`; in int8 with a scale for each key and value.

    It is `split` for a model whose layers are.
    """
    shape = (rows, config.kv_heads, slots, config.head_dim)

    def numbers(*layers: int) -> Numbers:
        zeros = jnp.zeros((*layers, *shape), dtype)
        if zeros.dtype != jnp.int8:
            return zeros
        return Quantized(zeros, jnp.zeros(zeros.shape[:-1], jnp.float32))

    keys, values = (
        [numbers() for _ in range(config.layers)] if split else numbers(config.layers)
        for _ in range(2)
    )
    positions, segments = (jnp.zeros((rows, slots), jnp.int32) for _ in range(2))
    return KVCache(keys, values, positions, segments, jnp.int32(0))


def abstract_cache(
    config: ModelConfig, how: Execution, rows: int, slots: int, dtype: jnp.dtype
) -> KVCache:
    """Shapes, dtypes and places of a cache, without making it."""

    def placed(spec: PartitionSpec, part: Array | Quantized) -> Array | Quantized:
        place = how.sharding(spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), part
        )

    shapes = jax.eval_shape(lambda: empty_cache(config, rows, slots, dtype))
    return jax.tree.map(placed, cache_specs(how, shapes), shapes)


def each_layer(numbers: Numbers | list[Numbers]) -> Iterator[Numbers]:
    """The keys or the values of one layer after another, `[B, K, S, H]`."""
    if isinstance(numbers, list):
        yield from numbers
        return
    for layer in range(len(jax.tree.leaves(numbers)[0])):
        yield jax.tree.map(itemgetter(layer), numbers)


def reserve(cache: KVCache, places: Places, *, shared: bool) -> KVCache:
    """The cache with the places of the coming tokens entered, its keys still to be written."""
    positions, segments = (
        _enter(whole, part, (0,), cache.length, shared)
        for whole, part in zip(cache.places, places, strict=True)
    )
    return cache._replace(positions=positions, segments=segments)


def remember(
    cache: KVCache, layer: jax.Array | None, k: jax.Array, v: jax.Array, *, shared: bool
) -> tuple[KVCache, Numbers, Numbers]:
    """Write a layer's keys and values `[B, K, T, H]`; returns all of the layer, `[B, K, S, H]`.

    The cache is that of all layers, or without a layer's number of this one alone.
    """
    leading = () if layer is None else (layer,)

    def enter(old: jax.Array, new: jax.Array) -> jax.Array:
        part = new.reshape((1,) * len(leading) + new.shape)
        return _enter(old, part, (*leading, 0, 0), cache.length, shared)

    def write(whole: Any, part: jax.Array) -> tuple[Numbers, Numbers]:
        new = quantize(part) if isinstance(whole, Quantized) else part.astype(whole.dtype)
        whole = jax.tree.map(enter, whole, new)
        return whole, jax.tree.map(itemgetter(leading), whole)

    (keys, all_keys), (values, all_values) = write(cache.keys, k), write(cache.values, v)
    return cache._replace(keys=keys, values=values), all_keys, all_values


def _enter(
    whole: Array,
    part: Array,
    leading: tuple,
    length: jax.Array,
    shared: bool,
) -> jax.Array:
    """`whole` with a part in its slots from where this device's part is filled up to."""
    ways = lax.axis_size("sp")
    behind = whole.ndim - len(leading) - 1
    at = (*leading, length // ways, *(0,) * behind)
    if not shared and ways > 1:
        mine = lax.axis_index("sp") == length % ways
        part = jnp.where(mine, part, lax.dynamic_slice(whole, at, part.shape))
    filled = lax.dynamic_update_slice(whole, part, at)
    # Else XLA may lay out the whole cache anew, to suit the writing of one token.
    return with_layout_constraint(filled, Layout(major_to_minor=tuple(range(filled.ndim))))
