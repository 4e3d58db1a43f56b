"""The LLaMA decoder over one vocabulary: pure functions over a tree of its parameters.

Weights of the layers are stacked `[L, ...]` and scanned; on a CPU a model that only writes has them
one by one (`weight_tree.split`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lwm_core.attention import attend
from lwm_core.cache import cache_specs, remember, reserve
from lwm_core.collectives import copy_to_tp, gather, sum_over_tp
from lwm_core.config import LoraConfig, ModelConfig
from lwm_core.execution import Execution
from lwm_core.layers import (
    Adapted,
    Weight,
    joined_swiglu,
    linear,
    lookup,
    product,
    rms_norm,
    rope_tables,
    rotate,
    swiglu,
)
from lwm_core.parameters import SCALES
from lwm_core.ring import SAVED, gathered_attention
from lwm_core.types import Array, KVCache, Places, Quantized, Tokens
from lwm_core.weight_tree import JOINED, Params, is_split, of_one_layer, specs


@partial(jax.jit, static_argnames=("config", "how"))
def forward(params: Params, config: ModelConfig, tokens: Tokens, how: Execution) -> jax.Array:
    """Logits, float32 `[B, T, V]`, of `tokens` `[B, T]`; the mesh must divide T."""

    def local(params: Params, tokens: Tokens) -> jax.Array:
        hidden, _ = hidden_states(params, config, tokens, how)
        return logits_of(params, config, hidden, how)

    cut = how.token_spec(tokens.ids.shape[0])
    weights = specs(config, how, is_split=is_split(params))
    return how.spread(local, (weights, cut), cut)(params, tokens)


def read(
    params: Params,
    config: ModelConfig,
    tokens: Tokens,
    cache: KVCache,
    how: Execution,
    ids: slice = slice(None),
) -> tuple[jax.Array, KVCache]:
    """Logits after the last of `tokens` `[B, T]` and the cache with them in it.

    The logits, float32 `[B, n]`, are those of the ids in a range. The tokens see each other and
    what is in the cache, which is split where the weights are. The devices of `sp` share the tokens
    if there are more than one; they must divide them then, and those that the cache holds already.
    """
    rows, length = tokens.ids.shape
    shared = length > 1

    def local(params: Params, tokens: Tokens, cache: KVCache) -> tuple[jax.Array, KVCache | None]:
        hidden, filled = hidden_states(params, config, tokens, how, cache, shared=shared)
        last = hidden[:, -1:]
        if shared:
            last = lax.all_gather(last, "sp", axis=1, tiled=True)[:, -1:]
        return logits_of(params, config, last, how, ids)[:, 0], filled

    cut = how.token_spec(rows, shared=shared)
    weights, cached = specs(config, how, is_split=is_split(params)), cache_specs(how, cache)
    run = how.spread(local, (weights, cut, cached), (PartitionSpec(cut[0]), cached))
    return run(params, tokens, cache)


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: Tokens,
    how: Execution,
    cache: KVCache | None = None,
    *,
    shared: bool = True,
) -> tuple[jax.Array, KVCache | None]:
    """Output of the last norm, `[B, T, D]` in `how.dtype`, and the cache with the new keys in it.

    As all functions from here on it is of one device's arrays, inside `how.spread`. The devices of
    `sp` have a part of the tokens each if they are `shared`, otherwise all have the same.
    """
    layers = params["layers"]
    cut = specs(config, how, is_split=is_split(params))
    cut_layer = cut["layers"][0] if is_split(params) else of_one_layer(cut["layers"])
    x = _embed(_whole("embed", params, cut, how), config, tokens.ids)
    rope = rope_tables(tokens.positions, config.head_dim, config.rope_theta)
    block: Callable = partial(_block, config, how, cut_layer, rope, tokens.places, shared)
    norm = _whole("norm", params, cut, how)
    begun = x.astype(how.dtype)
    if cache is None:
        x = _through_layers(block, layers, begun, how)
        return rms_norm(x, norm, config.norm_eps), None
    reserved = reserve(cache, tokens.places, shared=shared)
    x, filled = _through_cached_layers(block, layers, begun, reserved)
    more = tokens.ids.shape[1] * (how.ways if shared else 1)
    return rms_norm(x, norm, config.norm_eps), filled._replace(length=cache.length + more)


def logits_of(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    how: Execution,
    ids: slice = slice(None),
) -> jax.Array:
    """Logits of the ids in a static range, float32 `[..., n]`; text and vision are such ranges."""
    head = head_of(params, config, how)
    if how.mesh.shape["tp"] == 1 or len(jax.tree.leaves(head)[0]) == config.vocab:
        return product(hidden, jax.tree.map(itemgetter(ids), head))
    logits = lax.all_gather(product(hidden, head), "tp", axis=hidden.ndim - 1, tiled=True)
    return logits[..., ids]


def with_head_of(ids: slice, params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """A model whose head has only the rows of the ids in a range; no `tp` may share it out.

    XLA's CPU backend would take them out of the table anew for every token of a loop.
    """
    table = "embed" if config.tie_embeddings else "head"
    parts = [kind for kind in ("", SCALES) if table + kind in params]
    rows = {f"head{kind}": params[table + kind][ids] for kind in parts}
    return {**params, **rows}, replace(config, tie_embeddings=False)


def head_of(params: Params, config: ModelConfig, how: Execution) -> Weight:
    """What makes logits of the hidden states: `[V, D]`, or this device's part of the vocabulary."""
    name = "embed" if config.tie_embeddings else "head"
    return _whole(name, params, specs(config, how), how)


def _whole(
    name: str, params: Params, cut: Mapping[str, PartitionSpec], how: Execution
) -> jax.Array | Quantized:
    """One weight as the computation needs it, whole but for what is cut over `tp`."""
    weight = gather(params[name], cut[name], how.dtype)
    scales = params.get(name + SCALES)
    return weight if scales is None else Quantized(weight, scales)


def _embed(table: jax.Array | Quantized, config: ModelConfig, ids: Array) -> jax.Array:
    """Rows of the table `[V, D]`, or of this device's part of it: `[B, T, D]`."""
    count = len(jax.tree.leaves(table)[0])
    if count == config.vocab:
        return lookup(table, ids)
    ids = ids - lax.axis_index("tp") * count
    inside = (ids >= 0) & (ids < count)
    rows = lookup(table, jnp.where(inside, ids, 0))
    return sum_over_tp(jnp.where(inside[..., None], rows, 0))


def _through_cached_layers(
    block: Callable, layers: Params | list[Params], x: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """`x` through all layers, each of which adds to its part of the cache."""
    if isinstance(layers, list):
        one = jax.jit(block)  # traced once for all of them
        parts = []
        for layer, keys, values in zip(layers, cache.keys, cache.values, strict=True):
            x, part = one(layer, x, cache._replace(keys=keys, values=values))
            parts.append(part)
        keys, values = [part.keys for part in parts], [part.values for part in parts]
        return x, cache._replace(keys=keys, values=values)

    def step(carry: tuple, layer: tuple) -> tuple[tuple, None]:
        index, weights = layer
        return block(weights, *carry, index), None

    stacks = jnp.arange(len(layers["attention_norm"])), layers
    return lax.scan(step, (x, cache), stacks)[0]


def _through_layers(
    block: Callable, layers: Params | list[Params], x: jax.Array, how: Execution
) -> jax.Array:
    """`x` through all layers, of which the backward pass keeps what `how.remat` says.

    It is a loop on a CPU too: unrolled, XLA would see there what is made again, and keep it all.
    Layers that are split do not learn.
    """
    if isinstance(layers, list):
        for layer in layers:
            x, _ = block(layer, x)
        return x

    def step(x: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        return block(layer, x)[0], None

    if how.remat == "none":
        return lax.scan(step, x, layers)[0]
    keep_attention = jax.checkpoint_policies.save_only_these_names(SAVED)
    rematerialised = partial(jax.checkpoint, prevent_cse=False)
    step = rematerialised(step, policy=keep_attention if how.remat == "attention" else None)
    if how.remat != "full":
        return lax.scan(step, x, layers)[0]
    count = jax.tree.leaves(layers)[0].shape[0]
    groups = min(
        (n for n in range(1, count + 1) if count % n == 0), key=lambda n: abs(n * n - count)
    )
    grouped = jax.tree.map(lambda w: w.reshape(groups, -1, *w.shape[1:]), layers)

    def several(x: jax.Array, layers: Params) -> tuple[jax.Array, None]:
        return lax.scan(step, x, layers)

    return lax.scan(rematerialised(several), x, grouped)[0]


def _block(
    config: ModelConfig,
    how: Execution,
    cut: dict[str, PartitionSpec],
    rope: tuple[jax.Array, jax.Array],
    places: Places,
    shared: bool,
    layer: Params,
    x: jax.Array,
    cache: KVCache | None = None,
    index: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """One decoder block on `x [B, T, D]`: attention and feed-forward, each added to its input.

    The cache is that of all layers, of which this one has an index, or without one this layer's.
    """
    layer = {name: _whole(name, layer, cut, how) for name in layer if not name.endswith(SCALES)}
    layer |= _adapted(layer, cut, config.lora)
    with jax.named_scope("attention"):
        h = copy_to_tp(rms_norm(x, layer["attention_norm"], config.norm_eps))

        q, k, v = (
            part.reshape(*x.shape[:2], -1, config.head_dim).swapaxes(1, 2)
            for part in _queries_keys_values(config, layer, h)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is None:
            out = attend(q, k, v, places, places, how).out
        else:
            cache, keys, values = remember(cache, index, k, v, shared=shared)
            if shared:
                out = attend(q, keys, values, places, cache.places, how, cached=True).out
            else:
                out = gathered_attention(q, keys, values, places, cache.places).out
        x = x + sum_over_tp(linear(out.swapaxes(1, 2).reshape(*x.shape[:2], -1), layer["wo"]))
    with jax.named_scope("feed_forward"):
        h = copy_to_tp(rms_norm(x, layer["mlp_norm"], config.norm_eps))
        if "w_gate_up" in layer:
            out = joined_swiglu(h, layer["w_gate_up"], layer["w_down"])
        else:
            out = swiglu(h, layer["w_gate"], layer["w_up"], layer["w_down"])
        return x + sum_over_tp(out), cache


def _queries_keys_values(
    config: ModelConfig, layer: dict[str, Weight], h: jax.Array
) -> Sequence[jax.Array]:
    """Of all heads of a device, `[B, T, heads x H]`."""
    if "wqkv" not in layer:
        return [linear(h, layer[name]) for name in JOINED["wqkv"]]
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return jnp.split(linear(h, layer["wqkv"]), (queries, queries + keys), axis=-1)


def _adapted(
    layer: Params, cut: dict[str, PartitionSpec], lora: LoraConfig | None
) -> dict[str, Weight]:
    """The matrices of a layer that have adapters, together with them."""
    if lora is None:
        return {}

    def factor(name: str) -> jax.Array:
        # The devices of tp have parts of one factor. The other they all use, each for its part.
        is_cut = any("tp" in (axes or ()) for axes in cut[name])
        return layer[name] if is_cut else copy_to_tp(layer[name])

    return {
        matrix: Adapted(layer[matrix], factor(f"{matrix}_a"), lora.scale * factor(f"{matrix}_b"))
        for matrix in lora.matrices
    }
