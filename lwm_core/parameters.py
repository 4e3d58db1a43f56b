"""The table of a model's parameters: of each its shape, axes, spread, numbers and name in files.

Initialisation, abstract shapes, shardings and files all come from it. Layers are stacked,
`[L, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lwm_core.config import ModelConfig
from lwm_core.four_bits import GROUP

SCALES = "_scales"
"""What a quantized matrix is called, and this, are the scales of its rows or groups."""
LEAST = "_least"
"""And these the least values of its groups."""

ROUNDED_TO_4_BITS = ("wq", "wk", "wo", "w_gate", "w_up")
"""Matrices of a layer; the others stay in 8 bits where these are in 4."""


@dataclass(frozen=True)
class Parameter:
    """One tensor: shape, logical axis of each dimension, standard deviation (None: ones).

    Its numbers are those of the computation, if no `dtype` says otherwise.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    spread: float | None
    hf_name: str
    dtype: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether the first dimension counts layers; `hf_name` then has a `{layer}`."""
        return self.axes[0] == "layers"


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """The table of parameters by dotted name. Linear weights are `[out, in]`."""
    base = decoder(config)
    return (in_8_bits(base) if config.quantized else base) | adapters(config)


def stored(config: ModelConfig) -> dict[str, Parameter]:
    """The table of a model's files, without adapters."""
    base = decoder(config)
    return in_4_bits(base) if config.quantized == "int4" else parameters(replace(config, lora=None))


def decoder(config: ModelConfig) -> dict[str, Parameter]:
    """The table of a model without adapters."""
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


def in_8_bits(table: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The table with its matrices as int8 `[out, in]` and, as NAME_scales, float32 `[out]`.

    Row i of a matrix is its integers, -127 to 127, times scale i: its largest by 127. Embeddings
    and head are matrices like the others; norms stay as they are.
    """
    quantized = {}
    for name, parameter in table.items():
        if parameter.spread is None:
            quantized[name] = parameter
            continue
        quantized[name] = replace(parameter, dtype="int8")
        # Scales are never cut as inputs are: they are few, and travel in no other numbers.
        *outer, rows, _ = parameter.axes
        axes = (*outer, "norm" if rows == "embed" else rows)
        file = f"{parameter.hf_name}_scale"
        quantized[f"{name}{SCALES}"] = Parameter(parameter.shape[:-1], axes, None, file, "float32")
    return quantized


def in_4_bits(table: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The table with matrices of layers in 4 bits (`four_bits.pack`), as they are stored.

    NAME are the codes, NAME_scales and NAME_least what belongs to their groups. Embeddings and
    head stay in 8 bits, and so do values and the way out of the feed-forward, whose rounding costs
    the most, and matrices whose inputs are no whole groups.
    """
    quantized = in_8_bits(table)
    for name, parameter in table.items():
        inputs = parameter.shape[-1]
        if name.removeprefix("layers.") not in ROUNDED_TO_4_BITS or inputs % GROUP:
            continue
        outer = parameter.shape[:-1]
        quantized[name] = replace(parameter, shape=(*outer, inputs // 2), dtype="uint8")
        for part in (SCALES, LEAST):
            file = f"{parameter.hf_name}{part.replace('scales', 'scale')}"
            quantized[name + part] = replace(
                parameter, shape=(*outer, inputs // GROUP), hf_name=file, dtype="float16"
            )
    return quantized


def adapters(config: ModelConfig) -> dict[str, Parameter]:
    """The table of the adapters: of each matrix the factors `_a [L, r, in]` and `_b [L, out, r]`.

    They begin with a product of zero. The names of their files are those of the library PEFT.
    """
    if config.lora is None:
        return {}
    base, rank = decoder(config), config.lora.rank
    table = {}
    for matrix in config.lora.matrices:
        weight = base[f"layers.{matrix}"]
        (count, outputs, inputs), (layers, out_axis, in_axis) = weight.shape, weight.axes
        file = f"base_model.model.{weight.hf_name.removesuffix('weight')}"
        # A's spread is that of PEFT's own: uniform within 1 / sqrt(in).
        table[f"layers.{matrix}_a"] = Parameter(
            (count, rank, inputs),
            (layers, "rank", in_axis),
            (3 * inputs) ** -0.5,
            f"{file}lora_A.weight",
        )
        table[f"layers.{matrix}_b"] = Parameter(
            (count, outputs, rank), (layers, out_axis, "rank"), 0.0, f"{file}lora_B.weight"
        )
    return table
