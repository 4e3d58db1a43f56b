"""Quantized weights: what is rounded, and that the model of the rounded weights is what runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import TEXT, changed
from safetensors.numpy import load_file, save_file

from lwm_core import convert, costs, four_bits, transformer, weight_tree
from lwm_core.axes import MeshSizes
from lwm_core.config import ModelConfig
from lwm_core.context import describe_context, open_context, save_context
from lwm_core.costs import Work
from lwm_core.decode import generate, read_context
from lwm_core.errors import ConfigError, FormatError, UsageError
from lwm_core.execution import Execution
from lwm_core.integers import MOST_ROWS
from lwm_core.layers import lookup, product
from lwm_core.load import load_model
from lwm_core.mesh import make_mesh
from lwm_core.sampling import Sampling
from lwm_core.source import Source, open_source, quantized
from lwm_core.tensor_files import TensorFiles
from lwm_core.train import read_recipe
from lwm_core.train.start import start_of
from lwm_core.types import Quantized, Tokens
from lwm_core.weights import read_stacked

Q4_1 = gguf.GGMLQuantizationType.Q4_1
ROUNDING = 3e-4
"""Of float32 sums in two orders: weights that differ by half a unit in their last place move these
logits by up to 1.3e-4, rounding to 8 bits by some 1e-2."""
MATRICES = ("embed", "head", "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> Source:
    return open_source(str(tiny_model))


@pytest.fixture(scope="session")
def rounded(tiny: Source) -> Source:
    return quantized(tiny, "int8")


@pytest.fixture(scope="session")
def plain(rounded: Source) -> dict[str, np.ndarray]:
    """The numbers that the rounded weights stand for, float32."""
    weights = dict(read_stacked(rounded.weights, rounded.config))
    return {
        name: weight * weights[f"{name}_scales"][..., None] if weight.dtype == np.int8 else weight
        for name, weight in weights.items()
        if not name.endswith("_scales")
    }


def logits(config: ModelConfig, weights: dict, how: Execution | None = None) -> np.ndarray:
    ids = np.arange(48, dtype=np.int32).reshape(2, 24) * 11 % config.vocab
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), ids.shape)
    tokens = Tokens(ids, positions, np.ones_like(ids))
    params = jax.tree.map(jnp.asarray, weight_tree.nest(dict(weights)))
    how = how or Execution(make_mesh("dp=1", jax.devices()[:1]))
    return np.asarray(transformer.forward(params, config, tokens, how))


# Rounding


def test_matrices_are_rounded_by_their_rows(tiny: Source, rounded: Source) -> None:
    whole = dict(read_stacked(tiny.weights, tiny.config))
    weights = dict(read_stacked(rounded.weights, rounded.config))
    integers = {name.rpartition(".")[2] for name, one in weights.items() if one.dtype == np.int8}
    assert integers == set(MATRICES)
    for name, weight in weights.items():
        if weight.dtype != np.int8:
            continue
        scales = weights[f"{name}_scales"]
        assert scales.dtype == np.float32
        assert np.abs(weight).max(axis=-1).min() == 127  # the largest of every row
        assert weight.min() >= -127
        error = np.abs(weight * scales[..., None] - whole[name])
        assert (error <= 0.501 * scales[..., None]).all()
    for name in ("norm", "layers.attention_norm"):
        assert np.array_equal(weights[name], whole[name])


def test_a_row_of_zeros_stays(tiny: Source) -> None:
    class Zeros:
        dtype = "float32"

        def read(self, name: str, layer: int | None = None) -> np.ndarray:
            return np.zeros_like(tiny.weights.read(name, layer))

    source = quantized(dataclasses.replace(tiny, weights=Zeros()), "int8")
    assert not source.weights.read("layers.wq", 0).any()
    assert not source.weights.read("layers.wq_scales", 0).any()


@pytest.fixture(scope="session")
def in_4_bits(tiny: Source) -> Source:
    return quantized(tiny, "int4")


def test_groups_in_4_bits_are_those_of_another_library() -> None:
    """GGUF's Q4_1 has the same groups and steps; codes on the border may fall otherwise."""
    weight = np.random.default_rng(0).normal(size=(96, 256)).astype(np.float32)
    weight[0, :32] = 3  # a group without reach
    theirs = gguf.dequantize(gguf.quantize(weight, Q4_1), Q4_1)
    packed = four_bits.pack(weight)
    ours = four_bits.unpack(packed)
    assert packed.codes.nbytes * 2 == weight.size
    assert packed.scales.dtype == packed.least.dtype == np.float16
    steps = np.repeat(packed.scales.astype(np.float32), 32, axis=1)
    assert (np.abs(ours - weight) <= 0.52 * steps + 2e-3).all()
    assert np.mean(np.abs(ours - theirs) < 2e-3) > 0.95
    assert np.square(ours - weight).mean() < 1.001 * np.square(theirs - weight).mean()
    assert np.array_equal(ours[0, :32], weight[0, :32])


def test_what_4_bits_can_hold_is_kept() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (8, 64))
    codes[:, ::32], codes[:, 1::32] = 0, 15
    scales = np.repeat(2.0 ** rng.integers(-6, 3, (8, 2)), 32, axis=1)
    weight = (codes - 7) * scales
    assert np.array_equal(four_bits.unpack(four_bits.pack(weight)), weight)


def test_layers_have_4_bits_and_the_tables_8(tiny: Source, in_4_bits: Source) -> None:
    """What the model computes with are the rows, in 8 bits, of the matrices that 4 bits make."""
    whole = dict(read_stacked(tiny.weights, tiny.config))
    weights = dict(read_stacked(in_4_bits.weights, in_4_bits.config))
    coarse = np.stack([four_bits.unpack(four_bits.pack(one)) for one in whole["layers.wq"]])
    found = weights["layers.wq"] * weights["layers.wq_scales"][..., None]
    assert np.abs(found - coarse).max() <= 0.51 * weights["layers.wq_scales"].max()
    eight = dict(read_stacked(quantized(tiny, "int8").weights, in_4_bits.config))
    for name in ("embed", "head", "layers.wv", "layers.w_down"):
        assert np.array_equal(weights[name], eight[name])
    assert not np.array_equal(weights["layers.w_up"], eight["layers.w_up"])


# Products


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS, MOST_ROWS + 1, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products(rows: int, dtype: str) -> None:
    rng = np.random.default_rng(rows)
    values = rng.integers(-127, 128, (300, 1000), dtype=np.int8)
    scales = rng.uniform(0.1, 2, 300).astype(np.float32)
    # Some activations of language models are hundreds of times the others.
    x = rng.normal(size=(rows, 1000)) * np.where(rng.random(1000) < 0.01, 100, 1)
    x = jnp.asarray(x, dtype)
    expected = np.asarray(x, np.float64) @ (values * scales[:, None].astype(np.float64)).T
    found = jax.jit(product)(x, Quantized(values, scales))
    assert found.dtype == jnp.float32
    error = np.abs(found - expected).max(axis=-1) / expected.std(axis=-1)
    assert error.max() < (3e-3 if dtype == "float32" else 5e-3)


def test_zeros_and_rows_of_a_table() -> None:
    values = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    table = Quantized(jnp.asarray(values), jnp.arange(4.0))
    assert not np.asarray(product(jnp.zeros((1, 3)), table)).any()
    assert np.array_equal(lookup(table, np.array([[3, 1]])), [[3 * values[3], values[1]]])


# Models


def test_the_model_is_that_of_the_rounded_weights(
    tiny: Source, rounded: Source, plain: dict[str, np.ndarray]
) -> None:
    expected = logits(tiny.config, plain)
    found = logits(rounded.config, dict(read_stacked(rounded.weights, rounded.config)))
    assert np.abs(found - expected).max() < ROUNDING * expected.std()


@pytest.mark.parametrize("mesh", ["tp=2", "fsdp=2,tp=2", "fsdp=4,sp=2"])
def test_on_many_devices(rounded: Source, plain: dict[str, np.ndarray], mesh: str) -> None:
    count = math.prod(int(axis[-1]) for axis in mesh.split(","))
    how = Execution(make_mesh(mesh, jax.devices()[:count]))
    weights = dict(read_stacked(rounded.weights, rounded.config))
    params = weight_tree.nest(weights)
    params = jax.tree.map(jax.device_put, params, weight_tree.shardings(rounded.config, how))
    expected = logits(dataclasses.replace(rounded.config, quantized=None), plain)
    found = logits(rounded.config, weight_tree.flatten(params), how)
    assert np.abs(found - expected).max() < 2e-4 * expected.std()


@pytest.mark.parametrize("cache", ["float32", None])
def test_written_token_by_token(
    tiny_model: Path, rounded: Source, plain: dict[str, np.ndarray], cache: str | None
) -> None:
    """What is likeliest after all that was written, as one pass over the plain weights has it."""
    model = load_model(str(tiny_model), mesh="dp=8", dtype="float32", quantize="int8", cache=cache)
    assert isinstance(model.params["layers"], list)
    prompt = [5, 17, 400, 33]
    greedy = Sampling(temperature=0)
    parts = generate(model, [prompt], modality="text", sampling=greedy, max_tokens=12, stops=False)
    written = np.concatenate(list(parts), axis=1)[0].tolist()
    ids = np.asarray([prompt + written], np.int32)
    tokens = Tokens(ids, np.arange(ids.size, dtype=np.int32)[None], np.ones_like(ids))
    params = jax.tree.map(jnp.asarray, weight_tree.nest(plain))
    config = dataclasses.replace(rounded.config, quantized=None)
    expected = transformer.forward(params, config, tokens, model.how)[0, :, : config.text_vocab]
    for place, token in enumerate(written, start=len(prompt) - 1):
        row = np.asarray(expected[place])
        assert row[token] >= row.max() - (1e-3 if cache else 0.02) * row.std()


# Files


def test_4_bits_stored_and_read_again(in_4_bits: Source, tmp_path: Path) -> None:
    done = convert.convert(in_4_bits, tmp_path / "small", verify=True)
    assert done.dtype == "int4"
    stored = TensorFiles(tmp_path / "small")
    packed = stored.read("model.layers.1.self_attn.q_proj.weight", (32, 16))
    assert packed.dtype == np.uint8
    made = open_source(str(tmp_path / "small"))
    before, after = (dict(read_stacked(one.weights, one.config)) for one in (in_4_bits, made))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    again = convert.convert(made, tmp_path / "again")
    assert again.bytes == done.bytes
    names = ("small", "again")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in names]
    assert files[0] == files[1]
    with pytest.raises(UsageError, match="is in int4: give the model that it was made of"):
        quantized(made, "int8")


def test_stored_and_read_again(
    tiny_model: Path, rounded: Source, plain: dict[str, np.ndarray], tmp_path: Path
) -> None:
    target = tmp_path / "small"
    done = convert.convert(rounded, target, dtype="float32", verify=True)
    assert done.dtype == "int8"
    size = (target / "model.safetensors").stat().st_size
    assert done.bytes < size < 0.4 * (tiny_model / "model.safetensors").stat().st_size
    made = open_source(str(target))
    assert made.config == rounded.config
    assert quantized(made, "int8") is made
    found = logits(made.config, dict(read_stacked(made.weights, made.config)))
    expected = logits(dataclasses.replace(made.config, quantized=None), plain)
    assert np.abs(found - expected).max() < ROUNDING * expected.std()


def test_damaged(rounded: Source, tmp_path: Path) -> None:
    convert.convert(rounded, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    values = json.loads(config.read_text())
    others = {"quant_method": "gptq", "bits": 4}
    config.write_text(json.dumps(values | {"quantization_config": others}))
    with pytest.raises(ConfigError, match="quantization_config"):
        open_source(str(tmp_path / "model"))
    del values["quantization_config"]
    config.write_text(json.dumps(values))
    with pytest.raises(FormatError, match="stored as int8"):
        open_source(str(tmp_path / "model"))


def test_whole_weights_are_not_taken_for_rounded_ones(tiny: Source, tmp_path: Path) -> None:
    convert.convert(tiny, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    ours = {"quantization_config": {"quant_method": "lwm", "bits": 8}}
    config.write_text(json.dumps(json.loads(config.read_text()) | ours))
    with pytest.raises(FormatError, match=r"embed_tokens.weight"):
        open_source(str(tmp_path / "model"))


# Refusals


def test_other_formats_do_not_have_it(rounded: Source, tmp_path: Path) -> None:
    for to in ("hf", "lwm-jax"):
        with pytest.raises(UsageError, match=f"--to {to} holds no int8"):
            convert.plan(rounded, tmp_path / "model", to=to)


def test_an_unknown_kind(tiny: Source) -> None:
    with pytest.raises(UsageError, match="quantize 'int3' is unknown; choose one of int8, int4"):
        quantized(tiny, "int3")


def test_it_does_not_learn(rounded: Source, tmp_path: Path) -> None:
    convert.convert(rounded, tmp_path / "model")
    recipe = changed(changed(TEXT, "model", None), "start_from", str(tmp_path / "model"))
    with pytest.raises(ConfigError, match="is quantized and can't learn"):
        start_of(read_recipe(recipe), tmp_path, begins=True)


# Costs


@pytest.mark.parametrize("mesh", ["dp=1", "tp=2", "fsdp=2"])
def test_bytes_of_the_weights(rounded: Source, mesh: str) -> None:
    """A plan counts one byte for each number; norms and scales have more, but are few."""
    config = dataclasses.replace(rounded.config, hidden=512, intermediate=1024, head_dim=128)
    how = Execution(make_mesh(mesh, jax.devices()[: int(mesh[-1])]))
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(weight_tree.abstract_params(config, how))
    )
    work = Work(config, "decode", 64)
    counted = costs.memory(work, MeshSizes(**how.mesh.shape)).parameters
    assert counted == pytest.approx(held, rel=0.02)
    plain = Work(dataclasses.replace(config, quantized=None), "decode", 64)
    assert costs.memory(plain, MeshSizes(**how.mesh.shape)).parameters == 2 * counted


# Contexts


def test_a_context_belongs_to_its_kind_of_weights(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    rounded, whole = (
        load_model(str(tiny_model), mesh="dp=8", quantize=kind, cache="float32")
        for kind in ("int8", None)
    )
    save_context(path, rounded, read_context(rounded, [5, 6, 7, 8]))
    assert describe_context(path)["quantize"] == "int8"
    assert open_context(path, rounded).ids == [5, 6, 7, 8]
    with pytest.raises(UsageError, match="was read with --quantize int8, not as"):
        open_context(path, whole)
    save_context(path, whole, read_context(whole, [5, 6, 7, 8]))
    with pytest.raises(UsageError, match="was read with --dtype float32, not as"):
        open_context(path, rounded)


@pytest.mark.parametrize("part", ["scale", "least"])
def test_scales_that_are_not_finite(in_4_bits: Source, tmp_path: Path, part: str) -> None:
    """One line, and no warnings of arithmetic."""
    convert.convert(in_4_bits, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    tensors[f"model.layers.0.self_attn.q_proj.weight_{part}"][3] = np.inf
    save_file(tensors, path)
    made = open_source(str(tmp_path / "model"))
    with pytest.raises(FormatError, match=r"layers.wq_\w+ holds numbers that are not finite"):
        dict(read_stacked(made.weights, made.config))


def test_weights_that_are_not_finite(tiny: Source) -> None:
    class Endless:
        dtype = "float32"

        def read(self, name: str, layer: int | None = None) -> np.ndarray:
            weight = np.array(tiny.weights.read(name, layer))
            weight.ravel()[-1] = np.nan if name == "layers.wo" else 1
            return weight

    for kind in ("int8", "int4"):
        source = quantized(dataclasses.replace(tiny, weights=Endless()), kind)
        with pytest.raises(FormatError, match=r"layers.wo holds numbers that are not finite"):
            dict(read_stacked(source.weights, source.config))
