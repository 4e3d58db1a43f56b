"""GGUF files of llama.cpp: what went in comes out, or the error says why it does not."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import originals
import pytest
import sentencepiece
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize

from lwm_core import transformer, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.errors import FormatError, UsageError
from lwm_core.execution import Execution
from lwm_core.formats.gguf_file import StoredTensor
from lwm_core.formats.gguf_llama import GGUFModel
from lwm_core.mesh import make_mesh
from lwm_core.parameters import parameters
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokenizer_json import JsonTokenizer
from lwm_core.types import Tokens
from lwm_core.weights import read_stacked

SMALL = ModelConfig(
    text_vocab=300, hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, head_dim=16,
    max_length=128, rope_theta=5e4, norm_eps=1e-5,
)  # fmt: skip

LLAMA_CPP = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "layers.attention_norm": "blk.{}.attn_norm",
    "layers.wq": "blk.{}.attn_q",
    "layers.wk": "blk.{}.attn_k",
    "layers.wv": "blk.{}.attn_v",
    "layers.wo": "blk.{}.attn_output",
    "layers.mlp_norm": "blk.{}.ffn_norm",
    "layers.w_gate": "blk.{}.ffn_gate",
    "layers.w_up": "blk.{}.ffn_up",
    "layers.w_down": "blk.{}.ffn_down",
}

Metadata = dict[str, Any]
Weights = dict[str, np.ndarray]


def metadata_of(config: ModelConfig) -> Metadata:
    """What llama.cpp writes of a model without a tokenizer."""
    return {
        "general.architecture": "llama",
        "llama.context_length": config.max_length,
        "llama.embedding_length": config.hidden,
        "llama.block_count": config.layers,
        "llama.feed_forward_length": config.intermediate,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "tokenizer.ggml.bos_token_id": config.bos_id,
        "tokenizer.ggml.eos_token_id": config.eos_id,
    }


def spelled() -> list[str]:
    """A token for every byte, as GPT-2 spells them: the definition, written out anew."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b if b in shown else 256 + hidden.index(b)) for b in range(256)]


def byte_level() -> Metadata:
    """A small tokenizer of the kind gpt2: three special ids, all bytes, four merges."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *spelled(), "Ġt", "he", "Ġthe", "12"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * 260,
        "tokenizer.ggml.merges": ["Ġ t", "h e", "Ġt he", "1 2"],
        "tokenizer.ggml.add_bos_token": False,
    }


def sentencepiece_metadata(path: Path) -> Metadata:
    """What llama.cpp writes of a `tokenizer.model`."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(model.vocab_size())

    def kind(index: int) -> int:
        tests = {2: model.is_unknown, 3: model.is_control, 5: model.is_unused, 6: model.is_byte}
        return next((number for number, test in tests.items() if test(index)), 1)

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kind(i) for i in ids],
        "tokenizer.ggml.add_bos_token": True,
    }


def random_weights(config: ModelConfig) -> Weights:
    generator = np.random.default_rng(0)
    table = parameters(config)
    return {n: generator.normal(size=p.shape).astype(np.float32) for n, p in table.items()}


def in_pairs(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows `[heads * H, in]` as llama.cpp has them: what it turns together lies side by side."""
    out = np.empty_like(rows)
    for head in range(0, len(rows), head_dim):
        for j in range(head_dim // 2):
            out[head + 2 * j] = rows[head + j]
            out[head + 2 * j + 1] = rows[head + j + head_dim // 2]
    return out


def stored(config: ModelConfig, weights: Weights) -> Weights:
    """Weights by llama.cpp's names, in its order."""
    tensors = {}
    for name, weight in weights.items():
        for layer, part in enumerate(weight if name.startswith("layers.") else [weight]):
            if name in ("layers.wq", "layers.wk"):
                part = in_pairs(part, config.head_dim)
            tensors[f"{LLAMA_CPP[name].format(layer)}.weight"] = part
    return tensors


def write(
    path: Path,
    metadata: Metadata,
    tensors: Weights,
    kind: Kind = Kind.F32,
    others: dict[str, Kind] | None = None,
) -> Path:
    """A GGUF file by llama.cpp's own package; its matrices are of a kind, or one of `others`."""
    writer = GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif key != "general.architecture":
            writer.add_string(key, value)
    for name, tensor in tensors.items():
        used = (others or {}).get(name, kind) if tensor.ndim > 1 else Kind.F32
        writer.add_tensor(name, quantize(tensor, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small(tmp_path: Path, kind: Kind = Kind.F32, **changes: Any) -> Path:
    """A small random model; `changes` are metadata with `__` for a dot, None to leave them out."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    metadata = metadata_of(SMALL) | byte_level() | named
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return write(tmp_path / "small.gguf", metadata, stored(SMALL, random_weights(SMALL)), kind)


def whole(ids: np.ndarray) -> Tokens:
    """Rows without padding."""
    return Tokens(ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape), np.ones_like(ids))


def refused(read: Callable[[], object], path: Path) -> str:
    """The message of the error, which names the file in one line."""
    with pytest.raises(FormatError) as caught:
        read()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Weights and sizes


def test_plain_numbers_and_sizes_come_out_as_they_went_in(tmp_path: Path) -> None:
    model = GGUFModel(small(tmp_path))
    assert model.config == SMALL
    assert model.dtype == "float32"
    tensors = dict(read_stacked(model, model.config))
    for name, weight in random_weights(SMALL).items():
        np.testing.assert_array_equal(tensors[name], weight)
        if name.startswith("layers."):
            np.testing.assert_array_equal(model.read(name, layer=1), weight[1])
    assert tensors.keys() == parameters(SMALL).keys()


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, "float16"), (Kind.BF16, "bfloat16")])
def test_short_plain_numbers_stay_as_they_are(tmp_path: Path, kind: Kind, dtype: str) -> None:
    model = GGUFModel(small(tmp_path, kind))
    assert model.dtype == dtype
    number = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    for name, weight in random_weights(SMALL).items():
        layer = 1 if name.startswith("layers.") else None
        read, weight = model.read(name, layer), weight if layer is None else weight[layer]
        assert read.dtype == (np.float32 if "norm" in name else number)
        np.testing.assert_array_equal(read, weight.astype(read.dtype))


@pytest.mark.parametrize(
    ("kind", "error"),
    [(Kind.Q8_0, 0.02), (Kind.Q5_0, 0.25), (Kind.Q5_1, 0.13), (Kind.Q4_0, 0.5), (Kind.Q4_1, 0.25)],
)
def test_quantized_numbers_are_float32(tmp_path: Path, kind: Kind, error: float) -> None:
    model = GGUFModel(small(tmp_path, kind))
    assert model.dtype == "float32"
    for name, weight in random_weights(SMALL).items():
        layer = 1 if name.startswith("layers.") else None
        read, weight = model.read(name, layer), weight if layer is None else weight[layer]
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, weight, atol=error)
    embed = random_weights(SMALL)["embed"]
    np.testing.assert_array_equal(model.read("embed"), dequantize(quantize(embed, kind), kind))


def test_q6_k_is_what_llama_cpp_makes_of_it() -> None:
    """Loops after ggml's `dequantize_row_q6_K`, one number after another."""
    block = np.random.default_rng(0).integers(0, 256, 210, np.uint8)
    block[208:] = np.array([0.5], np.float16).view(np.uint8)
    low, high = block[:128].astype(int), block[128:192].astype(int)
    scales = block[192:208].view(np.int8).astype(int)
    expected = np.zeros(256)
    for half in range(2):
        for column in range(32):
            bits = high[32 * half + column]
            for quarter in range(4):
                nibble = low[64 * half + column + 32 * (quarter % 2)] >> (4 * (quarter // 2)) & 15
                number = (nibble | (bits >> 2 * quarter & 3) << 4) - 32
                scale = scales[8 * half + column // 16 + 2 * quarter]
                expected[128 * half + 32 * quarter + column] = 0.5 * scale * number
    tensor = StoredTensor(Kind.Q6_K, (1, 256), block)
    np.testing.assert_array_equal(tensor.numbers(), expected[None])


def test_a_mixture_of_kinds_is_float32(tmp_path: Path) -> None:
    tensors = stored(SMALL, random_weights(SMALL))
    others = {"blk.0.attn_v.weight": Kind.F16}
    path = write(tmp_path / "mixed.gguf", metadata_of(SMALL), tensors, others=others)
    model = GGUFModel(path)
    assert model.dtype == "float32"
    assert model.read("layers.wv", layer=0).dtype == np.float16
    expected = random_weights(SMALL)["layers.wv"]
    together = dict(read_stacked(model, model.config))["layers.wv"]
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, expected, atol=2e-3)


def test_tied_without_an_output(tmp_path: Path) -> None:
    tensors = stored(SMALL, random_weights(SMALL))
    del tensors["output.weight"]
    model = GGUFModel(write(tmp_path / "tied.gguf", metadata_of(SMALL), tensors))
    assert model.config.tie_embeddings
    assert "head" not in dict(read_stacked(model, model.config))


def test_what_may_be_left_out(tmp_path: Path) -> None:
    keys = ("rope__dimension_count", "rope__freq_base")
    path = small(tmp_path, **{f"llama__{key}": None for key in keys})
    config = GGUFModel(path).config
    assert (config.head_dim, config.rope_theta) == (16, 10_000.0)


def test_logits_equal_hugging_face(tmp_path: Path, reference: Path) -> None:
    folder = reference / "hf/safetensors"
    config = ModelConfig.from_json(json.loads((folder / "config.json").read_text()))
    weights = originals.stored(folder)
    path = write(tmp_path / "hf.gguf", metadata_of(config), stored(config, weights))
    model = GGUFModel(path)
    assert model.config == config
    params = weight_tree.nest({n: jnp.asarray(w) for n, w in read_stacked(model, model.config)})
    with np.load(reference / "hf/golden.npz") as golden:
        ids, expected = golden["input_ids"], golden["logits"]
    logits = transformer.forward(params, model.config, whole(ids), Execution(make_mesh()))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


# Tokenizers


def test_byte_level_tokenizer(tmp_path: Path) -> None:
    tokenizer = GGUFModel(small(tmp_path)).tokenizer
    assert isinstance(tokenizer, JsonTokenizer)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (263, 1, 2)
    tokens = byte_level()["tokenizer.ggml.tokens"]
    ids = tokenizer.encode("the the 12<|im_end|>")
    # One digit after another, although 1 and 2 would merge; no id in front.
    assert [tokens[i] for i in ids] == ["t", "he", "Ġthe", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(ids) == "the the 12"


def test_byte_level_tokenizer_that_begins_with_a_mark_and_merges_digits(tmp_path: Path) -> None:
    path = small(tmp_path, tokenizer__ggml__pre="gpt-2", tokenizer__ggml__add_bos_token=True)
    tokenizer = GGUFModel(path).tokenizer
    assert tokenizer.encode("12") == [1, 262]
    assert tokenizer.encode("12", bos=False) == [262]


def test_sentencepiece_tokenizer(tmp_path: Path, reference: Path) -> None:
    original = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    path = small_sentencepiece(tmp_path, reference)
    tokenizer = GGUFModel(path).tokenizer
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.pieces == original.pieces
    assert (tokenizer.bos_id, tokenizer.eos_id) == (original.bos_id, original.eos_id)
    golden = json.loads((reference / "tokenizer/tokenizer_golden.json").read_text("utf-8"))
    for case in golden["cases"]:
        assert tokenizer.encode(case["text"]) == case["auto"]["ids"]
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    assert Tokenizer.load(folder / "tokenizer.model").pieces == original.pieces


def small_sentencepiece(tmp_path: Path, reference: Path, **changes: Any) -> Path:
    """A small model with the tokenizer of the reference, of one layer and no head."""
    metadata = metadata_of(WIDE) | sentencepiece_metadata(reference / "tokenizer/tokenizer.model")
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    weights = stored(WIDE, random_weights(WIDE))
    return write(tmp_path / "llama.gguf", metadata, weights)


WIDE = ModelConfig(
    text_vocab=512, hidden=8, intermediate=4, layers=1, heads=2, kv_heads=1, head_dim=4,
    max_length=16, tie_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "t5"}, "kind 't5'"),
        ({"model": None}, "kind None"),
        ({"pre": "llama-bpe"}, "'llama-bpe'"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": ["a"] * 263}, "twice"),
        ({"merges": ["Ġ nowhere"]}, "nowhere"),
        ({"merges": ["alone"]}, "not a byte-level"),
        ({"token_type": [1] * 5}, "list of 263 numbers"),
        ({"token_type": [9] * 263}, "unknown kind 9"),
        ({"eos_token_id": 299}, "no such token"),
        ({"add_bos_token": 1}, "expected true or false"),
    ],
)
def test_refuses_other_byte_level_tokenizers(
    tmp_path: Path, changes: Metadata, reason: str
) -> None:
    path = small(tmp_path, **{f"tokenizer__ggml__{key}": v for key, v in changes.items()})
    model = GGUFModel(path)
    assert reason in refused(lambda: model.tokenizer, path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"add_bos_token": False}, "without <s>"),
        ({"add_space_prefix": False}, "without <s> or a space"),
        ({"scores": [0.5]}, "list of 512 numbers"),
        ({"token_type": [1] * 512}, "byte fallback"),
    ],
)
def test_refuses_other_sentencepiece_tokenizers(
    tmp_path: Path, reference: Path, changes: Metadata, reason: str
) -> None:
    named = {f"tokenizer__ggml__{key}": value for key, value in changes.items()}
    path = small_sentencepiece(tmp_path, reference, **named)
    model = GGUFModel(path)
    assert reason in refused(lambda: model.tokenizer, path)


def test_refuses_more_tokens_than_rows(tmp_path: Path) -> None:
    more = byte_level()["tokenizer.ggml.tokens"] + [f"<{n}>" for n in range(100)]
    path = small(
        tmp_path, tokenizer__ggml__tokens=more, tokenizer__ggml__token_type=[1] * len(more)
    )
    model = GGUFModel(path)
    assert "363 ids, the model 300" in refused(lambda: model.tokenizer, path)


# What is refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general__architecture": "qwen2"}, "architecture is 'qwen2'"),
        ({"llama__rope__scaling__type": "linear"}, "scaling.type is 'linear'"),
        ({"llama__rope__scale_linear": 4.0}, "scale_linear is 4.0"),
        ({"llama__expert_count": 8}, "expert_count is 8"),
        ({"llama__rope__dimension_count": 8}, "dimension_count is 8, expected 16"),
        ({"llama__attention__head_count": 3}, "expected"),
        ({"llama__attention__head_count": 0}, "whole number from 1"),
        ({"llama__attention__head_count_kv": [2, 2]}, "whole number from 1"),
        ({"llama__attention__key_length": 15}, "expected 15"),
        ({"llama__block_count": 2**31}, "21 tensors"),
        ({"llama__block_count": 1}, "also holds 'blk.1.attn_k.weight'"),
        ({"llama__feed_forward_length": None}, "feed_forward_length is missing"),
        ({"llama__feed_forward_length": 95}, "expected (95, 64)"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "number above 0"),
        ({"llama__rope__freq_base": "high"}, "number above 0"),
        ({"tokenizer__ggml__eos_token_id": None}, "eos_token_id is missing"),
    ],
)
def test_refuses_what_it_would_compute_otherwise(
    tmp_path: Path, changes: Metadata, reason: str
) -> None:
    path = small(tmp_path, **changes)
    assert reason in refused(lambda: GGUFModel(path), path)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("rope_freqs.weight", np.ones(8, np.float32), "rope_freqs"),
        ("blk.0.attn_q.bias", np.ones(64, np.float32), "attn_q.bias"),
        ("token_embd.weight", None, "token_embd.weight is missing"),
        ("blk.1.ffn_up.weight", None, "20 tensors"),
        ("output_norm.weight", np.ones(32, np.float32), "(32,), expected (64,)"),
    ],
)
def test_refuses_other_tensors(
    tmp_path: Path, name: str, tensor: np.ndarray | None, reason: str
) -> None:
    tensors: dict[str, Any] = stored(SMALL, random_weights(SMALL)) | {name: tensor}
    kept = {key: value for key, value in tensors.items() if value is not None}
    path = write(tmp_path / "other.gguf", metadata_of(SMALL), kept)
    assert reason in refused(lambda: GGUFModel(path), path)


def test_refuses_an_unknown_kind_of_numbers(tmp_path: Path) -> None:
    path = small(tmp_path, Kind.MXFP4)
    message = refused(lambda: GGUFModel(path), path)
    assert "'token_embd.weight' is stored as MXFP4" in message
    assert "Q8_0" in message


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(UsageError, match="no such file"):
            GGUFModel(path)


def use(path: Path) -> None:
    """Everything that a file can give."""
    model = GGUFModel(path)
    assert model.dtype
    assert model.chat_template is None or model.chat_template
    for _ in read_stacked(model, model.config):
        pass
    assert model.tokenizer.encode("the <|im_end|> 12")


def test_every_cut_file_is_refused(tmp_path: Path) -> None:
    whole = small(tmp_path).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 12_000, 331), len(whole) - 64]:
        path.write_bytes(whole[:size])
        refused(lambda: use(path), path)


HEAD = b"GGUF" + (3).to_bytes(4, "little")


def n(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


HOSTILE = {
    "empty": b"",
    "something else": b"\x89PNG\r\n\x1a\n" * 50,
    "version": b"GGUF" + n(1, 4) + bytes(100),
    "big-endian": b"GGUF" + (3).to_bytes(4, "big") + bytes(100),
    "count of values": HEAD + n(0) + n(2**63) + bytes(100),
    "count of tensors": HEAD + n(2**63) + n(0) + bytes(100),
    "length of a name": HEAD + n(0) + n(1) + n(2**63) + bytes(100),
    "length of numbers": HEAD + n(0) + n(1) + n(1) + b"a" + n(9, 4) + n(0, 4) + n(2**62),
    "length of texts": HEAD + n(0) + n(1) + n(1) + b"a" + n(9, 4) + n(8, 4) + n(2**62),
    "lists in lists": HEAD + n(0) + n(1) + n(1) + b"a" + (n(9, 4) + n(9, 4)) * 9999,
    "kind of value": HEAD + n(0) + n(1) + n(1) + b"a" + n(99, 4) + bytes(100),
    "no text": HEAD + n(0) + n(1) + n(1) + b"\xff" + n(0, 4) + bytes(100),
    "twice": HEAD + n(0) + n(2) + (n(1) + b"a" + n(0, 4) + b"0") * 2,
    "axes": HEAD + n(1) + n(0) + n(1) + b"a" + n(2**31, 4) + bytes(100),
    "shape": HEAD + n(1) + n(0) + n(1) + b"a" + n(2, 4) + n(2**63) * 2 + bytes(100),
    "no numbers": HEAD + n(1) + n(0) + n(1) + b"a" + n(1, 4) + n(0) + bytes(100),
    "kind of numbers": HEAD + n(1) + n(0) + n(1) + b"a" + n(1, 4) + n(1) + n(999, 4) + bytes(100),
    "offset": HEAD + n(1) + n(0) + n(1) + b"a" + n(1, 4) + n(1) + n(0, 4) + n(2**63) + bytes(100),
    "alignment": HEAD + n(0) + n(1) + n(17) + b"general.alignment" + n(4, 4) + n(0, 4) + bytes(100),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_cost_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    refused(lambda: use(path), path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama"])
def test_changed_bytes_give_a_model_or_a_reason(
    tmp_path: Path, reference: Path, tokenizer: str
) -> None:
    if tokenizer == "gpt2":
        whole = small(tmp_path).read_bytes()
    else:
        whole = small_sentencepiece(tmp_path, reference).read_bytes()
    end = whole.index(b"output_norm.weight") + 3000
    noise = random.Random(0)
    path = tmp_path / "changed.gguf"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(noise.choice([1, 1, 2, 20])):
            at = noise.randrange(min(end, len(data) - 8))
            change = noise.choice([noise.randbytes(1), noise.randbytes(4), b"\xff" * 8, bytes(8)])
            data[at : at + len(change)] = change
        path.write_bytes(data)
        try:
            use(path)
            outcomes["read"] += 1
        except FormatError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


# A model as it is published


def test_a_published_model(smollm: GGUFModel) -> None:
    assert smollm.config == ModelConfig(
        text_vocab=49152, hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3,
        head_dim=64, max_length=8192, rope_theta=100_000.0, norm_eps=1e-5, tie_embeddings=True,
    )  # fmt: skip
    assert smollm.dtype == "float32"
    assert smollm.read("layers.wk", layer=29).shape == (192, 576)
    assert "<|im_start|>" in (smollm.chat_template or "")


@pytest.mark.slow
def test_a_published_model_says_what_everybody_knows(smollm: GGUFModel) -> None:
    tensors = read_stacked(smollm, smollm.config)
    params = weight_tree.nest({name: jnp.asarray(w) for name, w in tensors})
    ids = smollm.tokenizer.encode("The capital of France is")
    here = Execution(make_mesh())
    logits = transformer.forward(params, smollm.config, whole(np.array([ids])), here)
    assert smollm.tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"
