"""In which numbers a model runs if nothing is said: weights, computation, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from lwm_core.config import ModelConfig, Quantization
from lwm_core.costs import CacheDtype, Dtype
from lwm_core.errors import ConfigError
from lwm_core.hardware import multiplies_bfloat16


def rounding_of(values: Mapping[str, Any]) -> Quantization | None:
    """What a configuration says that a CPU is to round plain weights to. Raises ConfigError."""
    kind = values.get("lwm", {}).get("quantize")
    if kind not in (None, *get_args(Quantization)):
        known = ", ".join(get_args(Quantization))
        raise ConfigError(f"config.json: lwm.quantize is {kind!r:.40}; choose one of {known}")
    return kind


def usual_rounding(
    config: ModelConfig, said: Quantization | None, platform: str, dtype: str | None
) -> Quantization | None:
    """What plain weights are rounded to: on a CPU what the model says, unless a dtype is given."""
    return said if platform == "cpu" and dtype is None and not config.quantized else None


def usual_dtype(config: ModelConfig, platform: str) -> Dtype:
    """What is computed in: bfloat16, or float32 on a CPU.

    With weights that are rounded anyway it is bfloat16 there too, which holds their integers
    exactly, if the processor multiplies it: two cores of Zen 4 read prompts 1.7 times as fast, and
    SmolLM2's perplexity on a novel rose by 0.03 %. Two of Zen 3, which lack it, are slower in it.
    """
    if platform != "cpu":
        return "bfloat16"
    return "bfloat16" if config.quantized and multiplies_bfloat16() else "float32"


def usual_cache(config: ModelConfig, dtype: Dtype) -> CacheDtype:
    """What keys and values are kept in: int8 where weights are rounded, or as all else."""
    return "int8" if config.quantized else dtype
