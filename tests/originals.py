"""Models of the original, opened by our readers."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp

from lwm_core.config import ModelConfig
from lwm_core.formats.lwm_jax import load_lwm_jax
from lwm_core.transformer import Params, nest


def open_original(folder: Path) -> tuple[ModelConfig, Params]:
    """The language model in a folder of the reference."""
    sizes = json.loads((folder / "config.json").read_text())
    config, tensors = load_lwm_jax(
        folder / "streaming_params",
        heads=sizes["num_attention_heads"],
        max_length=sizes["max_sequence_length"],
        rope_theta=sizes["theta"],
    )
    return config, nest({name: jnp.asarray(tensor) for name, tensor in tensors.items()})
