"""Adapters as files, and weights with them merged: the directory that the library PEFT has.

`adapter_config.json` names the model that they adapt; `adapter_model.safetensors` holds the factors
A and B of each matrix (Hu et al. 2021), layer by layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lwm_core.checkpoint import StoredWeights, new_directory
from lwm_core.config import MATRICES, LoraConfig, ModelConfig
from lwm_core.errors import ConfigError, FormatError
from lwm_core.parameters import adapters, decoder
from lwm_core.tensor_files import TensorFiles, read_json, write_json
from lwm_core.weights import Weights, layers_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_BASE = "base_model_name_or_path"
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (),
    "init_lora_weights": (True, "gaussian"),  # others change the model's own weights too
    "modules_to_save": (),
    "layers_to_transform": (),
    "layer_replication": (),
    "rank_pattern": (),
    "alpha_pattern": (),
    "lora_bias": (),
    "use_dora": (),
    "use_qalora": (),
    "use_rslora": (),
}
"""What a configuration of PEFT has empty, false or left out, or else so."""


class AdapterFiles(TensorFiles):
    """The tensors of an adapter's directory."""

    whole, index = WEIGHTS, f"{WEIGHTS}.index.json"


def open_adapter(directory: Path, config: ModelConfig) -> tuple[LoraConfig, StoredWeights]:
    """What an adapter changes in a model of these sizes, and its factors.

    They are read by the names of `adapters`. Raises FormatError, ConfigError where it
    is no adapter of such a model.
    """
    files, lora = AdapterFiles(directory), _read_config(directory / CONFIG)
    table = adapters(dataclasses.replace(config, lora=lora))
    firsts = {name: table[f"layers.{name}_a"].hf_name.format(layer=0) for name in MATRICES}
    found = tuple(name for name in MATRICES if firsts[name] in files.names)
    if not found:
        raise FormatError(f"{directory / WEIGHTS}: it adapts no matrix of a Llama's layers")
    lora = dataclasses.replace(lora, matrices=found)
    return lora, StoredWeights(directory, files, adapters(dataclasses.replace(config, lora=lora)))


def _read_config(path: Path) -> LoraConfig:
    """Rank and alpha; which matrices are adapted is seen by the tensors. Raises ConfigError."""
    values = read_json(path)
    for key, known in _ONLY.items():
        if (value := values.get(key)) and value not in known:
            raise ConfigError(f"{path}: {key} is {value!r:.80}, which is not understood")
    try:
        return LoraConfig(values.get("r"), values.get("lora_alpha"))  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class Merged:
    """The weights of a model with an adapter added, layer by layer as they are read."""

    def __init__(self, base: Weights, factors: Weights, lora: LoraConfig):
        self._base, self._factors, self._lora = base, factors, lora

    @property
    def dtype(self) -> str:
        """The number format of the model without the adapter."""
        return self._base.dtype

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter or layer of it; what is adapted is float32, to be rounded once."""
        weight = self._base.read(name, layer)
        if name.removeprefix("layers.") not in self._lora.matrices:
            return weight
        a, b = (self._factors.read(f"{name}_{factor}", layer) for factor in "ab")
        update = b.astype(np.float32) @ a.astype(np.float32)
        return weight.astype(np.float32) + np.float32(self._lora.scale) * update


def is_adapter(path: Path) -> bool:
    """Whether a path is the directory of an adapter."""
    return (path / CONFIG).is_file()


def base_of(directory: Path) -> str:
    """The name or path of the model that an adapter is for. Raises FormatError."""
    base = read_json(directory / CONFIG).get(_BASE)
    if not isinstance(base, str) or not base:
        raise FormatError(f"{directory / CONFIG}: {_BASE} is {base!r:.80}; write there which model")
    return base


def write_adapter(
    directory: Path, config: ModelConfig, factors: Weights, *, base: str, force: bool = False
) -> None:
    """Write the adapters of a model, in float32, whole or not at all.

    `config.lora` says which; `factors` may be all weights of the model. `base` is the name or path
    of the model that they were trained on. Raises UsageError when the directory exists (and not
    `force`), OutputError when it can't be written.
    """
    lora, table = config.lora, adapters(config)
    assert lora is not None  # a model without adapters is written as a model
    tensors = {
        parameter.hf_name.format(layer=layer): np.array(factors.read(name, layer), np.float32)
        for name, parameter in table.items()
        for layer in layers_of(parameter)
    }
    with new_directory(directory, force=force) as folder:
        (folder / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))
        write_json(folder / CONFIG, _peft_config(lora, config, base))


def _peft_config(lora: LoraConfig, config: ModelConfig, base: str) -> dict[str, Any]:
    """The `adapter_config.json` of PEFT, as it is used and not trained further by default."""
    table = decoder(config)
    modules = [table[f"layers.{name}"].hf_name.split(".")[-2] for name in lora.matrices]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        _BASE: base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
