"""Models for tests: opened by our readers, all weights at once, or changed in what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lwm_core import checkpoint
from lwm_core.config import ModelConfig, OriginalSizes
from lwm_core.formats.lwm_jax import LwmJaxWeights
from lwm_core.formats.streaming import StreamingFile
from lwm_core.load import LoadedModel
from lwm_core.parameters import parameters
from lwm_core.weight_tree import JOINED, Params, nest
from lwm_core.weights import read_stacked


def load_lwm_jax(
    path: Path, *, heads: int | None, max_length: int = 256, rope_theta: float = 1e4
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Sizes and weights of a streaming file, by our dotted names."""
    weights = LwmJaxWeights(StreamingFile(path), OriginalSizes(heads, max_length, rope_theta))
    return weights.config, dict(read_stacked(weights, weights.config))


def read_streaming(path: Path) -> dict[tuple[str, ...], np.ndarray]:
    """All tensors of a streaming file."""
    file = StreamingFile(path)
    return {keys: file[keys].read() for keys in file.paths}


def open_original(folder: Path) -> tuple[ModelConfig, Params]:
    """The language model in a folder of the reference."""
    sizes = OriginalSizes.from_json(json.loads((folder / "config.json").read_text()))
    weights = LwmJaxWeights(StreamingFile(folder / "streaming_params"), sizes)
    tensors = read_stacked(weights, weights.config)
    return weights.config, nest({name: jnp.asarray(tensor) for name, tensor in tensors})


def stacked(model: LoadedModel) -> Params:
    """Weights of a split model as files have them: an array for all layers, none joined."""
    table = parameters(model.config)

    def separate(layer: Params) -> Params:
        for whole, parts in JOINED.items():
            if whole in layer:
                rows = np.cumsum([table[f"layers.{part}"].shape[1] for part in parts])
                layer |= zip(parts, jnp.split(layer.pop(whole), rows[:-1]), strict=True)
        return layer

    @jax.jit
    def stack(layers: list[Params]) -> Params:
        return jax.tree.map(lambda *each: jnp.stack(each), *map(separate, layers))

    return {**model.params, "layers": stack([dict(layer) for layer in model.params["layers"]])}


def stored(directory: Path) -> dict[str, np.ndarray]:
    """All weights of a model directory, by our dotted names."""
    config = checkpoint.read_config(directory)
    return dict(read_stacked(checkpoint.DirectoryWeights(directory, config), config))


def said_to_round(model: Path, folder: Path, kind: str) -> str:
    """A copy of a model directory that says what a CPU is to round it to; returns its path."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["lwm"]["quantize"] = kind
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
