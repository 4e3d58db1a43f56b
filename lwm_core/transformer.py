"""The LLaMA decoder over one vocabulary: one table of parameters, pure functions over it.

`parameters(config)` says of every tensor its shape, logical axes, initial spread and Hugging Face
name; initialisation, abstract shapes, shardings and files all come from it. Weights of the layers
are stacked `[L, ...]` and scanned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lwm_core.attention import Places, attend
from lwm_core.config import ModelConfig
from lwm_core.layers import linear, lookup, product, rms_norm, rope_tables, rotate, swiglu
from lwm_core.types import KVCache, Tokens

Params = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One tensor: shape, logical axis of each dimension, standard deviation (None: ones)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    spread: float | None
    hf_name: str

    @property
    def stacked(self) -> bool:
        """Whether the first dimension counts layers; `hf_name` then has a `{layer}`."""
        return self.axes[0] == "layers"


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """The table of parameters by dotted name. Linear weights are `[out, in]`."""
    count, hidden, inner = config.layers, config.hidden, config.intermediate
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    # Every product of a normalised input begins with a spread of one, in models of any width.
    spread = hidden**-0.5
    # Outputs into the residual stream start smaller, so that depth does not grow it (GPT-2).
    spread_out = spread / math.sqrt(2 * count)

    def layer(
        name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float | None
    ) -> Parameter:
        return Parameter((count, *shape), ("layers", *axes), std, f"model.layers.{{layer}}.{name}")

    table = {
        "embed": Parameter(
            (config.vocab, hidden), ("vocab", "embed"), spread, "model.embed_tokens.weight"
        ),
        "layers.attention_norm": layer("input_layernorm.weight", (hidden,), ("norm",), None),
        "layers.wq": layer(
            "self_attn.q_proj.weight", (queries, hidden), ("heads", "embed"), spread
        ),
        "layers.wk": layer(
            "self_attn.k_proj.weight", (keys, hidden), ("kv_heads", "embed"), spread
        ),
        "layers.wv": layer(
            "self_attn.v_proj.weight", (keys, hidden), ("kv_heads", "embed"), spread
        ),
        "layers.wo": layer(
            "self_attn.o_proj.weight", (hidden, queries), ("embed", "heads"), spread_out
        ),
        "layers.mlp_norm": layer("post_attention_layernorm.weight", (hidden,), ("norm",), None),
        "layers.w_gate": layer("mlp.gate_proj.weight", (inner, hidden), ("mlp", "embed"), spread),
        "layers.w_up": layer("mlp.up_proj.weight", (inner, hidden), ("mlp", "embed"), spread),
        "layers.w_down": layer(
            "mlp.down_proj.weight", (hidden, inner), ("embed", "mlp"), spread_out
        ),
        "norm": Parameter((hidden,), ("norm",), None, "model.norm.weight"),
    }
    if not config.tie_embeddings:
        table["head"] = Parameter(
            (config.vocab, hidden), ("vocab", "embed"), spread, "lm_head.weight"
        )
    return table


def nest(flat: dict[str, Any]) -> Params:
    """Dotted names to the nested tree that the model takes."""
    tree: Params = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        branch = tree
        for key in outer:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return tree


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """The inverse of `nest`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 weights: normal with each tensor's spread, norms at one."""
    table = parameters(config)
    keys = jax.random.split(key, len(table))
    return nest(
        {
            name: jnp.ones(p.shape)
            if p.spread is None
            else p.spread * jax.random.normal(one, p.shape)
            for (name, p), one in zip(table.items(), keys, strict=True)
        }
    )


def count_parameters(config: ModelConfig) -> int:
    """Numbers in all tensors together."""
    return sum(math.prod(p.shape) for p in parameters(config).values())


def empty_cache(
    config: ModelConfig, batch: int, slots: int, dtype: jnp.dtype = jnp.float32
) -> KVCache:
    """A cache for `slots` tokens in each of `batch` rows."""
    shape = (config.layers, batch, config.kv_heads, slots, config.head_dim)
    places = jnp.zeros((batch, slots), jnp.int32)
    zeros = jnp.zeros(shape, dtype)
    return KVCache(zeros, jnp.zeros_like(zeros), places, jnp.zeros_like(places), jnp.int32(0))


def forward(
    params: Params,
    config: ModelConfig,
    tokens: Tokens,
    cache: KVCache | None = None,
    *,
    dtype: jnp.dtype = jnp.float32,
    attention: str = "auto",
) -> tuple[jax.Array, KVCache | None]:
    """Logits, float32 `[B, T, V]`, of `tokens` `[B, T]` that see each other and the cache."""
    hidden, cache = hidden_states(params, config, tokens, cache, dtype=dtype, attention=attention)
    return logits_of(params, hidden), cache


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: Tokens,
    cache: KVCache | None = None,
    *,
    dtype: jnp.dtype = jnp.float32,
    attention: str = "auto",
) -> tuple[jax.Array, KVCache | None]:
    """Output of the last norm, `[B, T, D]` in `dtype`, and the cache with the new keys in it."""
    x = lookup(params["embed"], tokens.ids).astype(dtype)
    rope = rope_tables(tokens.positions, config.head_dim, config.rope_theta)
    places = Places(tokens.positions, tokens.segments)
    block: Callable = partial(_block, config, rope, places, attention)
    # XLA's CPU backend copies the stacked weights in every step of a loop; unrolled it does not.
    unroll = config.layers if jax.default_backend() == "cpu" else 1
    if cache is None:
        x, _ = jax.lax.scan(
            lambda x, layer: (block(layer, x)[0], None), x, params["layers"], unroll=unroll
        )
        return rms_norm(x, params["norm"], config.norm_eps), None

    def step(carry: tuple, layer: tuple) -> tuple[tuple, None]:
        index, weights = layer
        return block(weights, *carry, index), None

    layers = (jnp.arange(config.layers), params["layers"])
    (x, filled), _ = jax.lax.scan(step, (x, _reserve(cache, places)), layers, unroll=unroll)
    filled = filled.replace(length=cache.length + tokens.ids.shape[1])
    return rms_norm(x, params["norm"], config.norm_eps), filled


def logits_of(params: Params, hidden: jax.Array, ids: slice = slice(None)) -> jax.Array:
    """Logits of the ids in a static range, float32 `[..., n]`; text and vision are such ranges."""
    head = params["head" if "head" in params else "embed"][ids]
    return product(hidden, head)


def _reserve(cache: KVCache, places: Places) -> KVCache:
    """The cache with the places of the coming tokens entered, its keys still to be written."""
    at = (0, cache.length)
    return cache.replace(
        positions=jax.lax.dynamic_update_slice(cache.positions, places.positions, at),
        segments=jax.lax.dynamic_update_slice(cache.segments, places.segments, at),
    )


def _block(
    config: ModelConfig,
    rope: tuple[jax.Array, jax.Array],
    places: Places,
    attention: str,
    layer: Params,
    x: jax.Array,
    cache: KVCache | None = None,
    index: jax.Array | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """One decoder block on `x [B, T, D]`: attention and feed-forward, each added to its input."""
    batch, length, _ = x.shape
    with jax.named_scope("attention"):
        h = rms_norm(x, layer["attention_norm"], config.norm_eps)
        heads = (batch, length, -1, config.head_dim)
        q = rotate(linear(h, layer["wq"]).reshape(heads), *rope)
        k = rotate(linear(h, layer["wk"]).reshape(heads), *rope)
        v = linear(h, layer["wv"]).reshape(heads)
        k_places = places
        if cache is not None and index is not None:
            cache, k, v = _remember(cache, index, k, v)
            k_places = Places(cache.positions, cache.segments)
        out = attend(q, k, v, places, k_places, attention).out
        x = x + linear(out.reshape(batch, length, -1), layer["wo"])
    with jax.named_scope("feed_forward"):
        h = rms_norm(x, layer["mlp_norm"], config.norm_eps)
        return x + swiglu(h, layer["w_gate"], layer["w_up"], layer["w_down"]), cache


def _remember(
    cache: KVCache, index: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[KVCache, jax.Array, jax.Array]:
    """Write one layer's keys and values `[B, T, K, H]`; returns the layer's `[B, S, K, H]`."""
    at = (index, 0, 0, cache.length, 0)
    keys, values = (
        jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype).swapaxes(1, 2)[None], at)
        for whole, part in ((cache.keys, k), (cache.values, v))
    )
    cache = cache.replace(keys=keys, values=values)
    k, v = (whole[index].astype(k.dtype).swapaxes(1, 2) for whole in (keys, values))
    return cache, k, v


def to_numpy(params: Params) -> dict[str, np.ndarray]:
    """All weights on the host, by dotted name."""
    return {name: np.asarray(value) for name, value in flatten(params).items()}
