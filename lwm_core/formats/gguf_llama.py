"""A Llama in a GGUF file under our names, in our orientation, one tensor at a time.

llama.cpp keeps linear weights `[out, in]` as we do. It turns adjacent pairs of components by the
rotary embedding, and its converter reorders the rows of queries and keys for that; here the two
halves of a head make the pairs (Hugging Face's layout), so the rows go back.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError
from lwm_core.formats.gguf_file import GGUFFile, StoredTensor
from lwm_core.formats.gguf_tokenizer import read_special_ids, read_tokenizer
from lwm_core.formats.lwm_jax import to_halves
from lwm_core.parameters import parameters
from lwm_core.vocabulary import AnyTokenizer
from lwm_core.weights import layers_of

_NAMES = {
    "embed": "token_embd.weight",
    "layers.attention_norm": "blk.{layer}.attn_norm.weight",
    "layers.wq": "blk.{layer}.attn_q.weight",
    "layers.wk": "blk.{layer}.attn_k.weight",
    "layers.wv": "blk.{layer}.attn_v.weight",
    "layers.wo": "blk.{layer}.attn_output.weight",
    "layers.mlp_norm": "blk.{layer}.ffn_norm.weight",
    "layers.w_gate": "blk.{layer}.ffn_gate.weight",
    "layers.w_up": "blk.{layer}.ffn_up.weight",
    "layers.w_down": "blk.{layer}.ffn_down.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}
"""What llama.cpp calls our parameters."""

_ROTATED = ("layers.wq", "layers.wk")

_ONLY: dict[str, tuple[object, ...]] = {
    "general.architecture": ("llama",),
    "llama.rope.scaling.type": (None, "none"),
    "llama.rope.scale_linear": (None, 1.0),
    "llama.expert_count": (None, 0),
}
"""What the metadata may say; None is a key that is not there."""


class GGUFModel:
    """A Llama in an open file: its sizes, tokenizer and chat template, and its weights by name."""

    def __init__(self, path: str | Path) -> None:
        """Open a file and compare all tensors with the sizes; no weight is read.

        Raises UsageError when there is no such file, FormatError when it is damaged or holds
        anything but a Llama that we compute in every detail.
        """
        self._file = GGUFFile(path)
        self.config = _config(self._file)
        self._table = parameters(self.config)
        self._check_tensors()

    @property
    def dtype(self) -> str:
        """The number format that loses nothing: that of the matrices if all have the same.

        Quantized numbers are float32, and so is a mixture. Norms do not count: llama.cpp keeps
        them in float32 whatever they were.
        """
        tensors = self._file.tensors.values()
        found = {tensor.dtype.name for tensor in tensors if len(tensor.shape) > 1}
        return found.pop() if len(found) == 1 else "float32"

    @property
    def chat_template(self) -> str | None:
        """The template of conversations, in the language Jinja. Raises FormatError."""
        return self._file.text("tokenizer.chat_template")

    @cached_property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer. Raises FormatError for a kind that we don't have, or a damaged one."""
        tokenizer = read_tokenizer(self._file)
        if tokenizer.vocab_size > self.config.text_vocab:
            raise self._file.wrong(
                f"its tokenizer has {tokenizer.vocab_size} ids, the model {self.config.text_vocab}"
            )
        return tokenizer

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter, or one layer of a stacked one, by its dotted name.

        Plain numbers come as they are stored (float32, float16, bfloat16), quantized ones as
        float32.
        """
        self._file.release()
        numbers = self._file.tensors[_NAMES[name].format(layer=layer)].numbers()
        return to_halves(numbers, self.config.head_dim) if name in _ROTATED else numbers

    def _check_tensors(self) -> None:
        """Raise FormatError unless the file has exactly the tensors of the table."""
        # Compared first, so that a hostile number of layers is never counted to.
        count = sum(self.config.layers if p.stacked else 1 for p in self._table.values())
        tensors = self._file.tensors
        if count > len(tensors):
            raise self._file.wrong(
                f"it has {len(tensors)} tensors, {self.config.layers} layers need {count}"
            )
        expected: set[str] = set()
        for name, parameter in self._table.items():
            shape = parameter.shape[1:] if parameter.stacked else parameter.shape
            for layer in layers_of(parameter):
                stored = _NAMES[name].format(layer=layer)
                self._check(stored, tensors.get(stored), shape)
                expected.add(stored)
        if others := tensors.keys() - expected:
            raise self._file.wrong(f"it also holds {min(others)!a:.80}, which no plain Llama has")

    def _check(self, name: str, tensor: StoredTensor | None, shape: tuple[int, ...]) -> None:
        if tensor is None:
            raise self._file.wrong(f"{name} is missing")
        if tensor.shape != shape:
            raise self._file.wrong(f"{name} has shape {tensor.shape}, expected {shape}")


def _config(file: GGUFFile) -> ModelConfig:
    """The sizes of the model. Raises FormatError."""
    for key, allowed in _ONLY.items():
        found = file.metadata.get(key)
        if not any(type(found) is type(one) and found == one for one in allowed):
            raise file.wrong(f"{key} is {found!a:.80}, expected {allowed[-1]!r}")
    if "rope_freqs.weight" in file.tensors:
        raise file.wrong("its rotary frequencies are scaled (rope_freqs.weight)")
    embed = file.tensors.get(_NAMES["embed"])
    if embed is None:
        raise file.wrong(f"{_NAMES['embed']} is missing")
    heads = file.whole("llama.attention.head_count")
    hidden = file.whole("llama.embedding_length")
    head_dim = file.whole("llama.attention.key_length", hidden // heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if file.whole(key, head_dim) != head_dim:
            raise file.wrong(f"{key} is {file.whole(key)}, expected {head_dim}")
    if head_dim % 2:
        raise file.wrong(f"a head has {head_dim} components, expected an even number")
    bos_id, eos_id = read_special_ids(file)
    try:
        return ModelConfig(
            text_vocab=embed.shape[0],
            hidden=hidden,
            intermediate=file.whole("llama.feed_forward_length"),
            layers=file.whole("llama.block_count"),
            heads=heads,
            kv_heads=file.whole("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            max_length=file.whole("llama.context_length"),
            rope_theta=file.number("llama.rope.freq_base", 10_000.0),
            norm_eps=file.number("llama.attention.layer_norm_rms_epsilon"),
            tie_embeddings=_NAMES["head"] not in file.tensors,
            bos_id=eos_id if bos_id is None else bos_id,
            eos_id=eos_id,
        )
    except ConfigError as error:
        raise file.wrong(str(error)) from error
