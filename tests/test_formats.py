"""The original's weight files: what they hold comes out exactly, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.core import freeze, unfreeze
from flax.serialization import msgpack_serialize
from originals import load_lwm_jax, read_streaming
from safetensors.numpy import load_file

from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError, FormatError, UsageError
from lwm_core.formats.streaming import StreamingFile
from lwm_core.formats.vqgan_pickle import load_lwm_vqgan


def write_streaming(path: Path, items: dict[tuple[str, ...], Any]) -> Path:
    """As the original writes: flax's own msgpack of each value inside the pair."""
    pairs = [msgpack.packb([list(key), msgpack_serialize(value)]) for key, value in items.items()]
    path.write_bytes(b"".join(pairs))
    return path


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    found = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}/") if nested else {prefix + name: value}
    return found


def refused(read: Callable[[Path], object], path: Path) -> str:
    """The message of the error, which names the file in one line."""
    with pytest.raises(FormatError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {"/".join(key): tensor for key, tensor in read_streaming(path).items()}


# Streaming msgpack


@pytest.mark.parametrize("model", ["text_a", "vision_small"])
def test_streaming_equals_reference(reference: Path, shared: Path, model: str) -> None:
    tensors = read_all(reference / model / "streaming_params")
    with np.load(shared / "reference" / model / "params.npz") as expected:
        assert set(tensors) == set(expected)
        for name, tensor in tensors.items():
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, expected[name])


def test_streaming_bfloat16(reference: Path, shared: Path) -> None:
    tensors = read_all(reference / "text_a/streaming_params_bf16")
    with np.load(shared / "reference/text_a/params.npz") as expected:
        for name, tensor in tensors.items():
            assert tensor.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(tensor, expected[name].astype(ml_dtypes.bfloat16))


def test_streaming_chunked(reference: Path, shared: Path) -> None:
    whole = read_all(reference / "text_a/streaming_params")
    chunked = read_all(shared / "reference/text_a/streaming_params_chunked")
    for name, tensor in whole.items():
        np.testing.assert_array_equal(chunked[name], tensor)


def test_streaming_kinds_of_values(tmp_path: Path) -> None:
    """flax writes them; chunks are numbered past nine, so that their order is by number."""
    numbers = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    pieces = {str(n): numbers.reshape(-1)[2 * n : 2 * n + 2] for n in reversed(range(12))}
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 3, "2": 4},
        "chunks": pieces,
    }
    values = {
        "array": numbers,
        "empty": np.zeros((0, 3), np.float64),
        "no_axes": np.array(1.5),
        "scalar": np.float32(2.5),
        "integer": 7,
        "negative": -70000,
        "float": 0.25,
        "chunked": chunked,
    }
    path = write_streaming(tmp_path / "f", {(key,): value for key, value in values.items()})
    tensors = read_all(path)
    for name, value in values.items():
        expected = numbers if name == "chunked" else np.asarray(value)
        np.testing.assert_array_equal(tensors[name], expected)
        assert tensors[name].shape == expected.shape


def test_streaming_training_state(shared: Path) -> None:
    train = shared / "reference/train"
    state = train / "text_a_streaming_train_state"
    stored = read_streaming(state)
    below = {"/".join(k[2:]): t for k, t in stored.items() if k[:2] == ("params", "params")}
    norms = json.loads((train / "metrics.json").read_text())["text_text_a"]["final_tensor_norms"]
    assert set(below) == set(norms)
    for name, norm in norms.items():
        assert np.linalg.norm(below[name].astype(np.float64)) == pytest.approx(norm, rel=1e-5)
    assert len(stored) == 39
    load_lwm_jax(state, heads=4, max_length=256, rope_theta=1e4)


def test_streaming_costs_no_memory(tmp_path: Path) -> None:
    path = write_streaming(tmp_path / "f", {("big",): np.zeros(16_000_000, np.float32)})
    tracemalloc.start()
    array = StreamingFile(path)["big",]
    part = array.read().reshape(4, -1)[2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.shape == (4_000_000,)
    assert peak < 1_000_000


def array(shape: Any = (2,), dtype: Any = "float32", data: Any = bytes(8), code: int = 1) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb([shape, dtype, data])))


def pair(document: bytes) -> bytes:
    return msgpack.packb([["a"], document])


def chunks(shape: Any, pieces: Any) -> bytes:
    return msgpack.packb({"__msgpack_chunked_array__": True, "shape": shape, "chunks": pieces})


EXTENSION = msgpack.ExtType(1, msgpack.packb([[1], "float32", bytes(4)]))
HOSTILE = {
    "empty": b"",
    "text": b"These are no weights at all.",
    "zeros": bytes(1000),
    "unused code": b"\xc1",
    "not a pair": msgpack.packb({"a": 1}),
    "three values": msgpack.packb([["a"], array(), 1]),
    "path of numbers": msgpack.packb([[1], array()]),
    "path is no UTF-8": b"\x92\x91\xa1\xff" + msgpack.packb(array()),
    "value is text": msgpack.packb([["a"], "text"]),
    "huge binary": b"\x92\x91\xa1a\xc6\xff\xff\xff\xff",
    "huge path": b"\x92\xdd\xff\xff\xff\xff",
    "huge path of nothing": b"\x92\xdd\xff\xff\xff\xff" + b"\xc0" * 200_000,
    "nested endlessly": b"\x91" * 100_000,
    "nested maps": b"\x81\xa1a" * 100_000,
    "map with map as key": b"\x81\x81\x81\x81",
    "complex extension": pair(array(code=2)),
    "bytes after the tensor": pair(array() + b"\x00"),
    "true": pair(msgpack.packb(True)),
    "unknown type": pair(array(dtype="object")),
    "type is a number": pair(array(dtype=1)),
    "too few bytes": pair(array(shape=[3])),
    "odd bytes": pair(array(shape=[1], data=bytes(5))),
    "negative size": pair(array(shape=[-1, -2])),
    "absurd size": pair(array(shape=[0, 2**62, 2**62], data=b"")),
    "size is text": pair(array(shape=["2"])),
    "40 axes": pair(array(shape=[1] * 40, data=bytes(4))),
    "chunk missing": pair(chunks({"0": 1}, {"1": EXTENSION})),
    "chunk is a number": pair(chunks({"0": 1}, {"0": 1})),
    "no chunks": pair(chunks({"0": 0}, {})),
    "chunks do not fill": pair(chunks({"0": 5}, {"0": EXTENSION})),
    "shape is a list": pair(chunks([1], {"0": EXTENSION})),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_streaming_hostile(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(HOSTILE[name])
    refused(read_all, path)
    refused(lambda path: load_lwm_jax(path, heads=1, max_length=8, rope_theta=1e4), path)


def test_streaming_truncated_anywhere(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32)
    path = write_streaming(tmp_path / "f", {("a", "b"): numbers, ("c",): numbers})
    content = path.read_bytes()
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        if size == len(content) // 2 + 1:  # the first pair and nothing else
            assert list(read_all(path)) == ["a/b"]
        else:
            refused(read_all, path)


def test_streaming_damaged_anywhere(reference: Path, tmp_path: Path) -> None:
    content = (reference / "vision_small/streaming_params").read_bytes()[:200_000]
    draw = random.Random(0)
    path = tmp_path / "f"
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 5)):
            damaged[int(len(damaged) * draw.random() ** 8)] = draw.randrange(256)
        path.write_bytes(damaged)
        refused(read_all, path)


def test_streaming_in_parts(tmp_path: Path) -> None:
    """One index of the first axis at a time, wherever the chunks end; memory can be given back."""
    numbers = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    flat = numbers.reshape(-1)
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 5, "1": 4, "2": 3},
        "chunks": {str(n): flat[7 * n : 7 * n + 7] for n in range(9)},
    }
    file = StreamingFile(write_streaming(tmp_path / "f", {("a",): numbers, ("b",): chunked}))
    for keys in file.paths:
        whole = file[keys].read()
        for index in range(5):
            np.testing.assert_array_equal(file[keys].read(index), numbers[index])
            file.release()
        np.testing.assert_array_equal(whole, numbers)


@pytest.mark.parametrize("read", [read_all, load_lwm_vqgan])
def test_no_such_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            read(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "pipe")


# Language models of the original


@pytest.fixture
def llama(reference: Path) -> dict[str, Any]:
    """What config.json of a Llama of Hugging Face says."""
    return json.loads((reference / "hf/safetensors/config.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"factor": 8.0}},
        {"rope_scaling": "linear"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 0}},
        {"rope_theta": "1e6"},
        {"rms_norm_eps": None},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"num_hidden_layers": 3.0},
        {"hidden_size": "64"},
        {"intermediate_size": None},
        {"vocab_size": True},
        {"bos_token_id": "1"},
        {"eos_token_id": [2, 3]},
        {"lwm": None},
        {"lwm": {}},
        {"lwm": {"text_vocab": 512, "vision_vocab": "34"}},
        {"lwm": {"text_vocab": 512, "words": 1}},
    ],
    ids=str,
)
def test_configurations_that_we_would_misread(
    changes: dict[str, Any], llama: dict[str, Any]
) -> None:
    """One line, and it names the key."""
    with pytest.raises(ConfigError, match=r"^config\.json: ") as caught:
        ModelConfig.from_json(llama | changes)
    assert "\n" not in str(caught.value)
    assert next(iter(changes)) in str(caught.value)


def test_configurations_that_mean_the_same(llama: dict[str, Any]) -> None:
    """Newer versions of transformers write the rotary base one level down; null is left out."""
    plain = ModelConfig.from_json(llama)
    del llama["rope_theta"]
    rope = {"rope_type": "default", "rope_theta": 1e7}
    for changes in (
        {"rope_parameters": rope},
        {"rope_theta": 1e7, "rope_scaling": {"type": "default"}, "num_key_value_heads": None},
        {"rope_scaling": rope, "head_dim": 16, "eos_token_id": None},
    ):
        assert ModelConfig.from_json(llama | changes) == plain


def hugging_face(reference: Path) -> dict[str, np.ndarray]:
    shards = (reference / "hf/safetensors").glob("*.safetensors")
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def test_lwm_jax_equals_hugging_face(reference: Path) -> None:
    """The same weights in both layouts: orientation, names and rotary order agree exactly."""
    theirs = ModelConfig.from_json(
        json.loads((reference / "hf/safetensors/config.json").read_text())
    )
    config, tensors = load_lwm_jax(
        reference / "hf/lwm_streaming_params_scanned",
        heads=theirs.heads,
        max_length=theirs.max_length,
        rope_theta=theirs.rope_theta,
    )
    assert config == theirs
    expected = hugging_face(reference)
    names = {
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "w_gate": "mlp.gate_proj",
        "w_up": "mlp.up_proj",
        "w_down": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }
    assert len(tensors) == len(names) + 3
    for ours, name in names.items():
        for layer, tensor in enumerate(tensors[f"layers.{ours}"]):
            np.testing.assert_array_equal(tensor, expected[f"model.layers.{layer}.{name}.weight"])
    np.testing.assert_array_equal(tensors["embed"], expected["model.embed_tokens.weight"])
    np.testing.assert_array_equal(tensors["norm"], expected["model.norm.weight"])
    np.testing.assert_array_equal(tensors["head"], expected["lm_head.weight"])


@pytest.mark.parametrize("model", ["text_a", "text_b", "vision_small", "vision_full", "hf"])
def test_lwm_jax_infers_sizes(shared: Path, model: str) -> None:
    reference = shared / "reference"
    file = "lwm_streaming_params_scanned" if model == "hf" else "streaming_params"
    written = "lwm_config.json" if model == "hf" else "config.json"
    sizes = json.loads((reference / model / written).read_text())
    config, tensors = load_lwm_jax(
        reference / model / file,
        heads=sizes["num_attention_heads"],
        max_length=256,
        rope_theta=sizes.get("theta", 1e4),
    )
    assert config.text_vocab == sizes["vocab_size"]
    assert config.vision_vocab == sizes.get("vision_vocab_size", 0)
    assert config.hidden == config.heads * config.head_dim == sizes["hidden_size"]
    assert config.kv_heads == config.heads
    assert config.intermediate == sizes["intermediate_size"]
    assert config.layers == sizes["num_hidden_layers"]
    assert tensors["embed"].shape == tensors["head"].shape == (config.vocab, config.hidden)
    assert tensors["layers.w_down"].shape == (config.layers, config.hidden, config.intermediate)
    assert tensors["layers.mlp_norm"].shape == (config.layers, config.hidden)


def test_lwm_jax_joins_text_and_vision(reference: Path, shared: Path) -> None:
    config, tensors = load_lwm_jax(
        reference / "vision_small/streaming_params", heads=4, max_length=256, rope_theta=5e7
    )
    with np.load(shared / "reference/vision_small/params.npz") as stored:
        text, vision = tensors["embed"][: config.text_vocab], tensors["embed"][config.text_vocab :]
        np.testing.assert_array_equal(text, stored["transformer/wte/embedding"])
        np.testing.assert_array_equal(vision, stored["transformer/vte/embedding"])
        text, vision = tensors["head"][: config.text_vocab], tensors["head"][config.text_vocab :]
        np.testing.assert_array_equal(text, stored["lm_head/kernel"].T)
        np.testing.assert_array_equal(vision, stored["vision_head/kernel"].T)
    assert (config.vision_codes, config.frame_codes) == (94, 256)


def test_lwm_jax_unscanned_and_training_state_are_the_same(reference: Path, tmp_path: Path) -> None:
    scanned = reference / "text_a/streaming_params"
    one_by_one: dict[tuple[str, ...], Any] = {("step",): 3, ("opt_state", "count"): np.int32(3)}
    for keys, tensor in read_streaming(scanned).items():
        if "scan_decoder" in keys:
            for layer, part in enumerate(tensor):
                one_by_one["params", "params", "transformer", "h", str(layer), *keys[3:]] = part
        else:
            one_by_one["params", "params", *keys] = tensor
    path = write_streaming(tmp_path / "state", one_by_one)
    expected = load_lwm_jax(scanned, heads=4, max_length=8, rope_theta=1e4)
    config, tensors = load_lwm_jax(path, heads=4, max_length=8, rope_theta=1e4)
    assert config == expected[0]
    for name, tensor in expected[1].items():
        np.testing.assert_array_equal(tensors[name], tensor)


def test_lwm_jax_with_layers_second(reference: Path, tmp_path: Path) -> None:
    """The original can scan over the second axis; the norms show it."""
    scanned = reference / "text_a/streaming_params"
    turned = {
        keys: tensor.swapaxes(0, 1) if "scan_decoder" in keys else tensor
        for keys, tensor in read_streaming(scanned).items()
    }
    path = write_streaming(tmp_path / "f", turned)
    expected = load_lwm_jax(scanned, heads=4)
    config, tensors = load_lwm_jax(path, heads=4)
    assert config == expected[0]
    for name, tensor in expected[1].items():
        np.testing.assert_array_equal(tensors[name], tensor)


def test_lwm_jax_refuses_other_models(reference: Path, tmp_path: Path) -> None:
    stored = read_streaming(reference / "text_a/streaming_params")
    embedding = ("transformer", "wte", "embedding")
    norm = ("transformer", "h", "scan_decoder", "ffn_norm", "kernel")
    broken = {
        "kernel is missing": {key: value for key, value in stored.items() if key != norm},
        "wte/embedding has": {**stored, embedding: np.zeros(3, np.float32)},
        "also holds 'extra'": {**stored, ("extra",): np.zeros(3, np.float32)},
        "vision_head/kernel is": {**stored, ("transformer", "vte", "embedding"): np.zeros((9, 64))},
    }
    for reason, items in broken.items():
        path = write_streaming(tmp_path / "f", items)
        message = refused(
            lambda path: load_lwm_jax(path, heads=4, max_length=8, rope_theta=1e4), path
        )
        assert reason in message
    with pytest.raises(ConfigError, match="5 heads"):
        load_lwm_jax(reference / "text_a/streaming_params", heads=5, max_length=8, rope_theta=1e4)


# Image tokenizers of the original


@pytest.mark.parametrize(
    ("model", "file"),
    [("vqgan", "vqgan_params.pkl"), ("vqgan_frozen", "vqgan_params_frozendict_jaxarrays.pkl")],
)
def test_vqgan_infers_sizes(shared: Path, model: str, file: str) -> None:
    reference = shared / "reference"
    sizes = json.loads((reference / model / "config.json").read_text())
    config, weights = load_lwm_vqgan(reference / model / file, resolution=sizes["resolution"])
    assert config.resolution == sizes["resolution"]
    assert config.base_channels == sizes["hidden_channels"]
    assert config.channel_mult == tuple(sizes["channel_mult"])
    assert config.res_blocks == sizes["num_res_blocks"]
    assert config.latent_channels == sizes["z_channels"]
    assert (config.codes, config.code_dim) == weights["quantize"]["embeddings"].shape
    assert (config.codes, config.code_dim) == (
        sizes["num_embeddings"],
        sizes["quantized_embed_dim"],
    )


def test_vqgan_equals_reference(reference: Path, shared: Path) -> None:
    tensors = flat(load_lwm_vqgan(reference / "vqgan/vqgan_params.pkl", resolution=32)[1])
    with np.load(shared / "reference/vqgan/params.npz") as expected:
        assert set(tensors) == set(expected)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, expected[name])


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tree: tree,
        lambda tree: {"params": tree},
        lambda tree: freeze(tree),
        lambda tree: to_jax(tree),
        lambda tree: {**tree, "quant_conv": {"kernel": np.ones((2, 3)).T.astype(">f4")}},
        lambda tree: {**tree, "quant_conv": {"kernel": np.ones((2, 3), ml_dtypes.bfloat16)}},
    ],
    ids=["dict", "params", "frozen", "jax", "big endian by columns", "bfloat16"],
)
def test_vqgan_written_in_any_way(
    reference: Path, tmp_path: Path, protocol: int, wrap: Callable[[Any], Any]
) -> None:
    """What Python's own pickle module writes, and reads, comes out equal."""
    _, tree = load_lwm_vqgan(reference / "vqgan/vqgan_params.pkl")
    path = tmp_path / "f"
    path.write_bytes(pickle.dumps(wrap(tree), protocol=protocol))
    trusted = unfreeze(pickle.loads(path.read_bytes()))
    expected = flat(trusted.get("params", trusted))
    tensors = flat(load_lwm_vqgan(path)[1])
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, np.asarray(expected[name]))


def to_jax(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: to_jax(v) if isinstance(v, dict) else jnp.asarray(v) for k, v in tree.items()}


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_never_runs_anything(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    for function, arguments in {
        os.system: (f"touch {proof}",),
        exec: (f"open({str(proof)!r}, 'w')",),
        open: (str(proof), "w"),
        getattr: ("text", "upper"),
        np.save: (str(proof), np.zeros(3)),
    }.items():
        path = tmp_path / "f"
        path.write_bytes(pickle.dumps({"encoder": Call(function, *arguments)}, protocol=protocol))
        message = refused(load_lwm_vqgan, path)
        assert "asks for" in message
        assert function.__name__ in message
    assert not list(tmp_path.glob("proof*"))


def laughs(levels: int) -> bytes:
    """A dict of two references to a dict of two references, and so on."""
    operations = b"\x80\x04}\x94"
    for level in range(levels):
        operations += b"}\x94(\x8c\x01ah" + bytes([level]) + b"\x8c\x01bh" + bytes([level]) + b"u"
    return operations + b"."


def own(value: Any) -> bytes:
    return pickle.dumps(value, protocol=4)


def contains_itself() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    tree["encoder"] = tree
    return tree


def lying_array(shape: bytes) -> bytes:
    return own({"a": np.zeros((3,), np.float32)}).replace(b"K\x03\x85", shape)


DEEP_TUPLE = b")" + b"\x85" * 500_000  # to ask for its hash kills the process
HOSTILE_PICKLES = {
    "empty": b"",
    "text": b"These are no weights at all.",
    "stop": b".",
    "nothing on the stack": b"\x80\x04u.",
    "no mark": b"\x80\x04}u.",
    "unknown memory": b"\x80\x04h\x09.",
    "huge memory": b"\x80\x04Nr\xff\xff\xff\xff.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"xx.",
    "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"xx.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",
    "huge integer": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "marks": b"(" * 100_000 + b".",
    "nested lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "nested tuples": DEEP_TUPLE + b".",
    "name is a deep tuple": b"\x80\x04\x8c\x01a" + DEEP_TUPLE + b"\x93.",
    "type is a deep tuple": b"\x80\x04cnumpy\ndtype\n" + DEEP_TUPLE + b"\x85R.",
    "dict of deep tuples": b"\x80\x04ccollections\nOrderedDict\n](" + DEEP_TUPLE + b"Nta\x85R.",
    "contains itself": own(contains_itself()),
    "laughs": laughs(200),
    "extension": b"\x80\x04\x82\x01.",
    "instance": b"(ios\nsystem\n.",
    "persistent": b"\x80\x04\x8c\x01aQ.",
    "new object": b"\x80\x04\x8c\x02os\x8c\x06system\x93)\x81.",
    "name draws on the terminal": b"\x80\x04\x8c\x02os\x8c\x04a\n\x1b[\x93.",
    "name is a number": b"\x80\x04K\x01K\x02\x93.",
    "calls a dict": b"\x80\x04})R.",
    "calls a type": b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93)R.",
    "state of a dict": b"\x80\x04}}b.",
    "objects": own({"a": np.array([{}], dtype=object)}),
    "array of text": own({"a": np.array(["text"])}),
    "set": own({"encoder": {1, 2}}),
    "number": own(3),
    "list": own([1, 2]),
    "other weights": own({"linear": np.zeros(3)}),
    "encoder is an array": own({"encoder": np.zeros(3)}),
    "keys are tuples": own({(1, 2): np.zeros(3)}),
    "shape lies": lying_array(b"K\x04\x85"),
    "shape is negative": lying_array(b"J\xff\xff\xff\xff\x85"),
    "shape is no tuple": lying_array(b"K\x03]"),
    "array without state": b"\x80\x04}\x8c\x01acnumpy.core.multiarray\n_reconstruct\n)Rs.",
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_pickle_hostile(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(HOSTILE_PICKLES[name])
    refused(load_lwm_vqgan, path)


def test_pickle_damaged_anywhere(shared: Path, tmp_path: Path) -> None:
    """Damage in numbers goes unseen; damage anywhere else is refused, and nothing else happens."""
    file = shared / "reference/vqgan_frozen/vqgan_params_frozendict_jaxarrays.pkl"
    content = file.read_bytes()
    draw = random.Random(0)
    path = tmp_path / "f"
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            damaged[int(len(damaged) * draw.random() ** 8)] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        try:
            outcomes.add(type(load_lwm_vqgan(path)))
        except FormatError as error:
            outcomes.add(type(error))
    assert FormatError in outcomes
