"""Weights of the original's image tokenizer under our names.

The original numbers the layers of each block as flax made them: `encoder/DownsamplingBlock_0/
ResnetBlock_1/Conv_0/kernel` is `encoder.blocks.0.1.conv1.kernel` here. Shapes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lwm_core import vqgan
from lwm_core.config import VQConfig
from lwm_core.errors import FormatError

_ENDS = {"Conv_0": "conv_in", "Conv_1": "conv_out", "GroupNorm_0": "norm_out"}
_BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Conv_2": "shortcut",
}


def rename_lwm_vqgan(config: VQConfig, weights: dict[str, Any]) -> dict[str, np.ndarray]:
    """What `load_lwm_vqgan` returns as the tensors that `vqgan.from_tensors` takes.

    Raises FormatError when the file holds other layers or shapes than `config` says.
    """
    try:
        tensors = {our_name(path): tensor for path, tensor in _leaves(weights)}
    except (KeyError, ValueError) as error:
        raise FormatError(f"the image tokenizer has an unknown layer {error.args[0]!a}") from error
    expected = vqgan.shapes(config)
    for name in expected.keys() | tensors.keys():
        found = tensors[name].shape if name in tensors else None
        if found != expected.get(name):
            raise FormatError(
                f"the image tokenizer's {name} is {found}, expected {expected.get(name)}"
            )
    return tensors


def our_name(path: tuple[str, ...]) -> str:
    """Our dotted name of a tensor. Raises KeyError or ValueError for a layer that is not LWM's."""
    match path:
        case ("quantize", "embeddings"):
            return "codebook"
        case ("quant_conv" | "post_quant_conv", _):
            return ".".join(path)
        case (side, layer, leaf):
            return f"{side}.{_ENDS[layer]}.{leaf}"
        case (side, "MidBlock_0", block, layer, leaf):
            return f"{side}.mid.{_number(block)}.{_BLOCK[layer]}.{leaf}"
        case (side, level, "Downsample_0", "Conv_0", leaf):
            return f"{side}.downs.{_number(level)}.{leaf}"
        case (side, level, "Upsample_0", "Conv_0", leaf):
            return f"{side}.ups.{_number(level)}.{leaf}"
        case (side, level, block, layer, leaf):
            return f"{side}.blocks.{_number(level)}.{_number(block)}.{_BLOCK[layer]}.{leaf}"
    raise ValueError("/".join(path))


def original_name(name: str) -> tuple[str, ...]:
    """The inverse of `our_name`: the path of one of our tensors in the original."""
    ends, layers = ({ours: theirs for theirs, ours in table.items()} for table in (_ENDS, _BLOCK))
    match name.split("."):
        case ["codebook"]:
            return "quantize", "embeddings"
        case [("quant_conv" | "post_quant_conv") as conv, leaf]:
            return conv, leaf
        case [side, "mid", block, layer, leaf]:
            return side, "MidBlock_0", f"ResnetBlock_{block}", layers[layer], leaf
        case [side, "downs", level, leaf]:
            return side, f"DownsamplingBlock_{level}", "Downsample_0", "Conv_0", leaf
        case [side, "ups", level, leaf]:
            return side, f"UpsamplingBlock_{level}", "Upsample_0", "Conv_0", leaf
        case [side, "blocks", level, block, layer, leaf]:
            stage = "DownsamplingBlock" if side == "encoder" else "UpsamplingBlock"
            return side, f"{stage}_{level}", f"ResnetBlock_{block}", layers[layer], leaf
        case [side, layer, leaf]:
            return side, ends[layer], leaf
    raise ValueError(name)


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value
