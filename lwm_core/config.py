"""Sizes of transformers and image tokenizers, as frozen values (standard library only)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lwm_core.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA decoder over one vocabulary: text ids `0 … text_vocab-1`, then the vision ids.

    Vision code `c` is the id `text_vocab + c`; the two ids after the last code mark the end of a
    frame and the end of a picture or clip. A text-only model has `vision_vocab = 0`.
    """

    text_vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_length: int
    vision_vocab: int = 0
    vision_codes: int = 8192
    frame_codes: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.vision_vocab and self.vision_vocab < self.vision_codes + 2:
            raise ConfigError(
                f"vision_vocab {self.vision_vocab}: no room for {self.vision_codes} codes"
            )

    @property
    def vocab(self) -> int:
        """Rows of the embedding table: text and vision together."""
        return self.text_vocab + self.vision_vocab

    def to_json(self) -> dict[str, Any]:
        """The `config.json` of a model directory: a Hugging Face Llama config, `lwm` added."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_length,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
            "lwm": {
                "text_vocab": self.text_vocab,
                "vision_vocab": self.vision_vocab,
                "vision_codes": self.vision_codes,
                "frame_codes": self.frame_codes,
            },
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read a `config.json`; a plain Hugging Face Llama has no `lwm` block and is text-only.

        Raises ConfigError when a size is missing or the model is not a Llama.
        """
        if values.get("model_type", "llama") != "llama":
            raise ConfigError(
                f"config.json: model_type is {values['model_type']!r}, expected 'llama'"
            )
        try:
            heads = values["num_attention_heads"]
            hidden = values["hidden_size"]
            vocabulary = dict(values.get("lwm", {"text_vocab": values["vocab_size"]}))
            vocabulary.pop("defaults", None)  # habits of sampling, no size
            return cls(
                hidden=hidden,
                intermediate=values["intermediate_size"],
                layers=values["num_hidden_layers"],
                heads=heads,
                kv_heads=values.get("num_key_value_heads") or heads,
                head_dim=values.get("head_dim") or hidden // heads,
                max_length=values["max_position_embeddings"],
                rope_theta=float(values.get("rope_theta", 10_000.0)),
                norm_eps=float(values.get("rms_norm_eps", 1e-6)),
                tie_embeddings=bool(values.get("tie_word_embeddings", False)),
                bos_id=values.get("bos_token_id", 1),
                eos_id=values.get("eos_token_id", 2),
                **vocabulary,
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"config.json: {error.args[0]} is missing or unknown") from error


@dataclass(frozen=True)
class VQConfig:
    """An image tokenizer of the LWM architecture; the defaults are the published size."""

    resolution: int = 256
    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 4, 6)
    res_blocks: int = 2
    latent_channels: int = 64
    codes: int = 8192
    code_dim: int = 64
    groups: int = 32

    @property
    def grid(self) -> int:
        """Side of the square of codes that stands for one picture."""
        return self.resolution // 2 ** (len(self.channel_mult) - 1)

    def to_json(self) -> dict[str, Any]:
        """The `vqgan/config.json` of a model directory."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VQConfig:
        """Read a `vqgan/config.json`. Raises ConfigError naming an unknown key."""
        try:
            return cls(**{**values, "channel_mult": tuple(values["channel_mult"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"vqgan/config.json: {error}") from error


def _llama(hidden: int, intermediate: int, layers: int, heads: int, length: int) -> ModelConfig:
    eps = 1e-5 if hidden == 8192 else 1e-6
    return ModelConfig(
        32000, hidden, intermediate, layers, heads, heads, hidden // heads, length, norm_eps=eps
    )


SIZES: dict[str, ModelConfig] = {
    "debug": _llama(256, 256, 2, 2, 2048),
    "200m": _llama(1024, 2048, 14, 8, 2048),
    "1b": _llama(2048, 5504, 22, 16, 2048),
    "3b": _llama(3200, 8640, 26, 32, 2048),
    "7b": _llama(4096, 11008, 32, 32, 4096),
    "13b": _llama(5120, 13824, 40, 40, 2048),
    "30b": _llama(6656, 17920, 60, 52, 2048),
    "65b": _llama(8192, 22016, 80, 64, 2048),
}
"""The original's named sizes, text-only."""
