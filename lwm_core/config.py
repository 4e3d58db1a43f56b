"""Sizes of transformers and image tokenizers, as frozen values (standard library only)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lwm_core.errors import ConfigError

LARGEST = 1e30
"""No number of a configuration is meant to be larger."""

END_MARKERS = 2
"""Vision ids after the codes: end of a frame, end of a picture or clip."""


Remat = Literal["none", "attention", "block", "full"]

REMATS: tuple[Remat, ...] = ("none", "attention", "block", "full")
"""What the forward pass of training keeps for the backward pass, from all to the least: all values
but copies of weights; the input and the attention of each block; the input of each block; that of
every sqrt(L)-th."""


Quantization = Literal["int8", "int4"]
"""Fewer bits for the weights of matrices. Those of 4 bits are stored so and computed with in 8."""

MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
"""The matrices of a layer: of its attention, then of its feed-forward."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): `alpha / rank * B A` is added to matrices of all layers.

    A is `[rank, in]` and B `[out, rank]`; they alone learn.
    """

    rank: int = 16
    alpha: float = 32.0
    matrices: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        _whole({"rank": self.rank}, "rank", file="")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < LARGEST:
            raise ConfigError(f"alpha is {self.alpha!r:.40}, expected a number above 0")
        unknown = [name for name in self.matrices if name not in MATRICES]
        if unknown or not self.matrices:
            named = repr(unknown[0]) if unknown else "empty"
            raise ConfigError(f"matrices: {named}; choose of {', '.join(MATRICES)}")

    @property
    def scale(self) -> float:
        """What each product B A is multiplied with."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA decoder over one vocabulary: text ids `0 … text_vocab-1`, then the vision ids.

    Vision code `c` is the id `text_vocab + c`; the two ids after the last code mark the end of a
    frame and the end of a picture or clip. A text-only model has `vision_vocab = 0`. With `lora`
    its parameters include adapters, which lie in files of their own (`lora.py`). Where it is
    `quantized`, matrices are integers with a scale for each row; such a model does not learn.
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
    lora: LoraConfig | None = None
    quantized: Quantization | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.vision_vocab and self.vision_vocab < self.vision_codes + END_MARKERS:
            raise ConfigError(
                f"vision_vocab {self.vision_vocab}: no room for {self.vision_codes} codes"
            )

    def misfit(self, image: VQConfig) -> str | None:
        """Why the model can't read the codes of an image tokenizer, or None if it can."""
        if not self.vision_vocab:
            return "the model has no ids for pictures"
        if (image.codes, image.grid**2) != (self.vision_codes, self.frame_codes):
            return f"the model's pictures are {self.frame_codes} of {self.vision_codes} codes"
        return None

    @property
    def vocab(self) -> int:
        """Rows of the embedding table: text and vision together."""
        return self.text_vocab + self.vision_vocab

    def to_json(self) -> dict[str, Any]:
        """The `config.json` of a model directory: a Hugging Face Llama config, `lwm` added."""
        ours = {"quantization_config": OURS[self.quantized]} if self.quantized else {}
        return {
            **ours,
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

        Raises ConfigError, naming the key, when a size is missing or no size, and when the model
        computes anything that ours does not.
        """
        quantization = values.get("quantization_config")
        quantized = next((kind for kind, ours in OURS.items() if ours == quantization), None)
        if quantization and not quantized:
            raise ConfigError(
                "config.json: quantization_config: quantized weights of Hugging Face are not read; "
                "give the model that they were made of, or a GGUF file"
            )
        for key, known in _ONLY.items():
            if values.get(key) not in (None, known):
                raise ConfigError(f"config.json: {key} is {values[key]!r}, expected {known!r}")
        hidden = _whole(values, "hidden_size")
        heads = _whole(values, "num_attention_heads")
        return cls(
            hidden=hidden,
            intermediate=_whole(values, "intermediate_size"),
            layers=_whole(values, "num_hidden_layers"),
            heads=heads,
            kv_heads=_whole(values, "num_key_value_heads", heads),
            head_dim=_whole(values, "head_dim", hidden // heads),
            max_length=_whole(values, "max_position_embeddings"),
            rope_theta=_rope_theta(values),
            norm_eps=_number(values, "rms_norm_eps", 1e-6),
            tie_embeddings=bool(values.get("tie_word_embeddings", False)),
            bos_id=_whole(values, "bos_token_id", 1, least=0),
            eos_id=_whole(values, "eos_token_id", 2, least=0),
            quantized=quantized,
            **_vocabulary(values),
        )


OURS: dict[Quantization, dict[str, Any]] = {
    "int8": {"quant_method": "lwm", "bits": 8},
    "int4": {"quant_method": "lwm", "bits": 4},
}
"""What `config.json` says of quantized weights, so that other programs refuse the model."""


_ONLY = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""What a configuration may leave out, and can't have otherwise."""

_LEAST = {"text_vocab": 1, "vision_vocab": 0, "vision_codes": 1, "frame_codes": 1}
"""The sizes of the `lwm` block and the least that each may be."""


def _whole(
    values: Mapping[str, Any],
    key: str,
    default: int | None = None,
    least: int = 1,
    file: str = "config.json: ",
) -> int:
    """A size or an id; `default` stands for one that is left out or null. Raises ConfigError."""
    value = values.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"{file}{key} is missing")
    if type(value) is not int or value < least:
        raise ConfigError(f"{file}{key} is {value!r}, expected a whole number from {least}")
    return value


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    """A number above 0. Raises ConfigError."""
    value = values.get(key, default)
    if type(value) not in (int, float) or not 0 < value < LARGEST:
        raise ConfigError(f"config.json: {key} is {value!r:.40}, expected a number above 0")
    return float(value)


def _rope_theta(values: Mapping[str, Any]) -> float:
    """The rotary base, which newer configurations keep one level down.

    Raises ConfigError when positions are scaled in a way that would be left out silently.
    """
    holder = values
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if rope is None:
            continue
        kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else rope
        if kind != "default":
            raise ConfigError(f"config.json: {key} is of type {kind!r}, expected 'default'")
        holder = rope if "rope_theta" in rope else holder
    return _number(holder, "rope_theta", 10_000.0)


def _vocabulary(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the `lwm` block; a model without one has text only. Raises ConfigError."""
    if "lwm" not in values:
        return {"text_vocab": _whole(values, "vocab_size")}
    block = values["lwm"]
    if not isinstance(block, Mapping):
        raise ConfigError(f"config.json: lwm is {block!r}, expected an object")
    if unknown := block.keys() - _LEAST.keys() - {"defaults", "quantize"}:  # these two are no sizes
        raise ConfigError(f"config.json: lwm.{min(unknown)} is unknown")
    named = {f"lwm.{key}": size for key, size in block.items()}
    return {
        key: _whole(named, f"lwm.{key}", getattr(ModelConfig, key, None), least)
        for key, least in _LEAST.items()
    }


@dataclass(frozen=True)
class OriginalSizes:
    """What the original's weight files do not say: heads (None: by `named_heads`), context, …

    The original has one size of picture and of the groups that its image tokenizer normalises;
    models of other sizes say theirs.
    """

    heads: int | None
    max_length: int
    rope_theta: float
    norm_eps: float = 1e-6
    frame_codes: int = 256
    image_groups: int = 32

    @classmethod
    def of(cls, config: ModelConfig, image_groups: int = 32) -> OriginalSizes:
        """What the weights of a model would not say in the original's format."""
        return cls(
            config.heads,
            config.max_length,
            config.rope_theta,
            config.norm_eps,
            config.frame_codes,
            image_groups,
        )

    def to_json(self) -> dict[str, Any]:
        """These values in the original's own keys."""
        return {
            "num_attention_heads": self.heads,
            "max_sequence_length": self.max_length,
            "theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "frame_codes": self.frame_codes,
            "image_groups": self.image_groups,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> OriginalSizes:
        """Read a configuration in the original's own keys, or in those of Hugging Face.

        Raises ConfigError naming the key.
        """
        length = "max_position_embeddings"
        theta = _rope_theta(values)
        return cls(
            heads=_whole(values, "num_attention_heads"),
            max_length=_whole(values, "max_sequence_length", values.get(length)),
            rope_theta=_number(values, "theta", theta),
            norm_eps=_number(values, "rms_norm_eps", 1e-6),
            frame_codes=_whole(values, "frame_codes", 256),
            image_groups=_whole(values, "image_groups", 32),
        )


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

    def __post_init__(self) -> None:
        """Raise ConfigError, naming the key, for sizes that no model can have."""
        sizes = {key: getattr(self, key) for key in _LEAST_OF_IMAGES}
        for key, least in _LEAST_OF_IMAGES.items():
            _whole(sizes, key, least=least, file="")
        if not self.channel_mult:
            raise ConfigError("channel_mult: a list of numbers above 0 is needed")
        for factor in self.channel_mult:
            _whole({"channel_mult": factor}, "channel_mult", file="")
        halvings = len(self.channel_mult) - 1
        if self.resolution % 2**halvings:
            raise ConfigError(f"resolution: {self.resolution} can't be halved {halvings} times")
        for factor in (1, *self.channel_mult):
            channels = factor * self.base_channels
            if channels % min(self.groups, channels):
                raise ConfigError(f"groups: {self.groups} do not share {channels} channels evenly")

    @property
    def grid(self) -> int:
        """Side of the square of codes that stands for one picture."""
        return self.resolution // 2 ** (len(self.channel_mult) - 1)

    def to_json(self) -> dict[str, Any]:
        """The `vqgan/config.json` of a model directory."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VQConfig:
        """Read a `vqgan/config.json`. Raises ConfigError naming a wrong or unknown key."""
        try:
            return cls(**{**values, "channel_mult": tuple(values["channel_mult"])})
        except (KeyError, TypeError, ConfigError) as error:
            raise ConfigError(f"vqgan/config.json: {error}") from error


_LEAST_OF_IMAGES = {
    "resolution": 1,
    "base_channels": 1,
    "res_blocks": 0,
    "latent_channels": 1,
    "codes": 1,
    "code_dim": 1,
    "groups": 1,
}
"""The sizes of an image tokenizer and the least that each may be."""


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


def named_heads(hidden: int, intermediate: int, layers: int) -> int | None:
    """The heads of the original's named size of this shape, or None if there is none."""
    for size in SIZES.values():
        if (size.hidden, size.intermediate, size.layers) == (hidden, intermediate, layers):
            return size.heads
    return None
