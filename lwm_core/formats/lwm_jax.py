"""Weights of the original (LWM-JAX) under our names, in our orientation.

The original keeps text and vision in tables and heads of their own, stores kernels `[in, out]`, and
turns adjacent pairs of components by the rotary embedding. Here there is one table and one head,
kernels are `[out, in]`, and the two halves of a head make the pairs (Hugging Face's layout), so
tensors are joined, transposed and reordered. Layers may be stored as one stack or one by one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from einops import rearrange

from lwm_core import transformer
from lwm_core.config import END_MARKERS, ModelConfig
from lwm_core.errors import ConfigError, FormatError
from lwm_core.formats.streaming import read_streaming, streaming_keys

Tensors = dict[str, np.ndarray]

_TRAINING_STATE = ("params", "params")
_LAYERS = "transformer/h"
_STACK = f"{_LAYERS}/scan_decoder"
_NORMS = {"attention_norm": "attention_norm", "mlp_norm": "ffn_norm"}
_KERNELS = {
    "wq": "attention/wq",
    "wk": "attention/wk",
    "wv": "attention/wv",
    "wo": "attention/wo",
    "w_gate": "feed_forward/w1",
    "w_up": "feed_forward/w3",
    "w_down": "feed_forward/w2",
}


def load_lwm_jax(
    path: str | Path, *, heads: int, max_length: int, rope_theta: float, norm_eps: float = 1e-6
) -> tuple[ModelConfig, Tensors]:
    """Sizes and weights of a streaming file of the original, or of a whole training state of it.

    The weights are keyed by dotted names (`layers.wq`), in the type that the file has. Those that
    only need turning are views of the file and cost memory where they are used. The arguments are
    what no tensor's shape tells.

    Raises UsageError when there is no such file, FormatError when it holds no such model, and
    ConfigError when `heads` does not divide the width of the attention.
    """
    stored = _read(path)
    try:
        text_vocab = len(stored["transformer/wte/embedding"])
        tensors = _tables(stored) | _layers(stored)
    except (KeyError, ValueError) as error:
        raise _not_a_model(path, f"{error.args[0]} is missing or of a wrong shape") from error
    if stored:
        raise _not_a_model(path, f"it also holds {next(iter(stored))!a:.160}")

    layers, width, hidden = tensors["layers.wq"].shape
    if not width or width % (2 * heads):
        raise ConfigError(f"heads: {heads} heads do not share an attention {width} wide evenly")
    head_dim = width // heads
    if tensors["layers.wk"].shape[1] % head_dim:
        raise _not_a_model(path, f"its keys are no whole heads of {head_dim}")
    for name in ("layers.wq", "layers.wk"):
        tensors[name] = _to_halves(tensors[name], head_dim)
    vision_vocab = len(tensors["embed"]) - text_vocab
    config = ModelConfig(
        text_vocab=text_vocab,
        vision_vocab=vision_vocab,
        vision_codes=min(8192, vision_vocab - END_MARKERS) if vision_vocab else 8192,
        hidden=hidden,
        intermediate=tensors["layers.w_gate"].shape[1],
        layers=layers,
        heads=heads,
        kv_heads=tensors["layers.wk"].shape[1] // head_dim,
        head_dim=head_dim,
        max_length=max_length,
        rope_theta=rope_theta,
        norm_eps=norm_eps,
    )
    for name, parameter in transformer.parameters(config).items():
        if tensors[name].shape != parameter.shape:
            reason = f"{name} has shape {tensors[name].shape}, expected {parameter.shape}"
            raise _not_a_model(path, reason)
    return config, tensors


def _read(path: str | Path) -> Tensors:
    """Every weight under its path in the original, joined by `/`."""
    whole_state = any(keys[:2] == _TRAINING_STATE for keys in streaming_keys(path))
    entries = read_streaming(path, below=_TRAINING_STATE if whole_state else ())
    return {"/".join(keys): tensor for keys, tensor in entries}


def _not_a_model(path: str | Path, reason: str) -> FormatError:
    return FormatError(
        f"{path}: not a language model of LWM: {reason}; give the file called params of a model"
    )


def _tables(stored: Tensors) -> Tensors:
    """Embedding and head `[V, D]`, text rows before vision rows, and the last norm `[D]`."""
    norm = _take(stored, "transformer/ln_f/kernel", 1)
    embed = _take(stored, "transformer/wte/embedding", 2)
    head = _take(stored, "lm_head/kernel", 2).T
    if "transformer/vte/embedding" in stored:
        vision_embed = _take(stored, "transformer/vte/embedding", 2)
        vision_head = _take(stored, "vision_head/kernel", 2).T
        _same_shape(
            [embed[0], head[0], vision_embed[0], vision_head[0]], "transformer/vte/embedding"
        )
        embed, head = np.concatenate([embed, vision_embed]), np.concatenate([head, vision_head])
    return {"embed": embed, "head": head, "norm": norm}


def _layers(stored: Tensors) -> Tensors:
    """Norms `[L, D]` and kernels `[L, out, in]` of all layers."""
    norms = {f"layers.{name}": _stack(stored, source, 1) for name, source in _NORMS.items()}
    kernels = {
        f"layers.{name}": _stack(stored, source, 2).swapaxes(1, 2)
        for name, source in _KERNELS.items()
    }
    return norms | kernels


def _stack(stored: Tensors, source: str, axes: int) -> np.ndarray:
    """One tensor of every layer, the layers first."""
    if f"{_STACK}/{source}/kernel" in stored:
        return _take(stored, f"{_STACK}/{source}/kernel", axes + 1)
    count = sum(name.endswith(f"/{source}/kernel") for name in stored)
    names = [f"{_LAYERS}/{layer}/{source}/kernel" for layer in range(max(count, 1))]
    tensors = [_take(stored, name, axes) for name in names]
    _same_shape(tensors, names[0])
    return np.stack(tensors)


def _take(stored: Tensors, name: str, axes: int) -> np.ndarray:
    tensor = stored.pop(name)
    if tensor.ndim != axes:
        raise ValueError(name)
    return tensor


def _same_shape(tensors: list[np.ndarray], name: str) -> None:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError(name)


def _to_halves(stack: np.ndarray, head_dim: int) -> np.ndarray:
    """`[L, out, in]` with the rows of each head moved from pairs `2j, 2j+1` to `j, j + H/2`."""
    return rearrange(stack, "l (n h two) i -> l (n two h) i", h=head_dim // 2, two=2)
