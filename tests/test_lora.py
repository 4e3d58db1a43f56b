"""Adapters: what they compute is what merged weights compute, on any mesh and in PEFT's files."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from jax.sharding import PartitionSpec
from originals import said_to_round
from safetensors.numpy import load_file, save_file

from lwm_core import checkpoint, convert
from lwm_core.cache import empty_cache
from lwm_core.collectives import DATA_AXES, sum_over
from lwm_core.config import MATRICES, LoraConfig, ModelConfig
from lwm_core.errors import ConfigError, FormatError, LwmError, ModelNotFound, UsageError
from lwm_core.execution import Execution
from lwm_core.load import load_model
from lwm_core.lora import CONFIG, WEIGHTS, Merged, write_adapter
from lwm_core.mesh import make_mesh
from lwm_core.parameters import adapters, decoder, parameters
from lwm_core.source import open_source, picture_size
from lwm_core.train import read_recipe, sizes_of
from lwm_core.transformer import forward, hidden_states, read
from lwm_core.types import Tokens
from lwm_core.weight_tree import (
    Params,
    draw,
    flatten,
    init,
    nest,
    shardings,
    specs,
    split,
    to_numpy,
)
from lwm_core.weights import Held, read_stacked

BASE = ModelConfig(
    text_vocab=40, vision_vocab=24, vision_codes=16, hidden=32, intermediate=48, layers=2,
    heads=4, kv_heads=2, head_dim=8, max_length=256,
)  # fmt: skip
ALL = dataclasses.replace(BASE, lora=LoraConfig(rank=4, alpha=6.0))
SOME = dataclasses.replace(BASE, lora=LoraConfig(3, 5, ("wq", "wo", "w_up")))
MESHES = [slow("sp=1"), slow("tp=2"), "fsdp=2,tp=2", "sp=2"]


def on(spec: str, **how: Any) -> Execution:
    """A mesh of as many simulated devices as the text asks for; weights cut as for training."""
    sizes = [int(part.partition("=")[2]) for part in spec.split(",")]
    devices = jax.devices()[: math.prod(sizes)]
    return Execution(make_mesh(spec, devices), whole_weights=False, **how)


def random_params(config: ModelConfig) -> Params:
    """Weights and adapters that all matter, these as much as those."""
    rng = np.random.default_rng(0)
    return nest(
        {
            name: jnp.asarray(rng.normal(p.spread is None, 0.3, p.shape), jnp.float32)
            for name, p in parameters(config).items()
        }
    )


def merged(params: Params, config: ModelConfig) -> Params:
    """The weights `W + alpha / rank * B A`, by the formula of the paper."""
    flat, lora = flatten(params), config.lora
    assert lora is not None
    for matrix in lora.matrices:
        a, b = (flat.pop(f"layers.{matrix}_{factor}") for factor in "ab")
        update = jnp.einsum("lor,lri->loi", b, a, precision="highest")
        flat[f"layers.{matrix}"] += lora.alpha / lora.rank * update
    return nest(flat)


def some_tokens(rows: int = 2, length: int = 24) -> Tokens:
    rng = np.random.default_rng(1)
    ids = rng.integers(BASE.vocab, size=(rows, length), dtype=np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    return Tokens(ids, positions, np.ones_like(ids))


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """In parts of the largest number of each array."""

    def check(one: Any, other: Any) -> None:
        limit = tolerance * np.abs(other).max()
        np.testing.assert_allclose(np.asarray(one), other, rtol=0, atol=limit)

    jax.tree.map(check, ours, theirs)


# What they compute


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("config", [ALL, SOME], ids=["all", "some"])
def test_adapters_equal_merged_weights(config: ModelConfig, mesh: str) -> None:
    how, params, tokens = on(mesh), random_params(config), some_tokens()
    expected = forward(merged(params, config), BASE, tokens, on("sp=1"))
    without = {name: flatten(params)[name] for name in decoder(config)}
    assert not np.allclose(expected, forward(nest(without), BASE, tokens, on("sp=1")), atol=0.1)
    cut = jax.device_put(params, shardings(config, how))
    assert_close(forward(cut, config, tokens, how), expected)


def gradients(params: Params, config: ModelConfig, how: Execution) -> Params:
    """Of a sum over what the decoder puts out, each number with a weight of its own."""
    tokens = some_tokens()
    weights = np.random.default_rng(2).normal(size=(*tokens.ids.shape, config.hidden))

    def local(params: Params, tokens: Tokens, weights: jax.Array) -> tuple[Params, jax.Array]:
        def share(params: Params) -> jax.Array:
            return (hidden_states(params, config, tokens, how)[0] * weights).sum()

        loss, gradient = jax.value_and_grad(share)(params)
        return gradient, sum_over(loss, *DATA_AXES)

    cut, of_tokens = specs(config, how), how.spec("rows", "sequence")
    run = how.spread(local, (cut, of_tokens, of_tokens), (cut, PartitionSpec()))
    params = jax.device_put(params, shardings(config, how))
    return jax.jit(run)(params, tokens, weights.astype(how.dtype))[0]


@cache
def gradients_through_merged(config: ModelConfig) -> Params:
    """Those of the merged weights, taken on to the factors by automatic differentiation."""
    whole, back = jax.vjp(partial(merged, config=config), random_params(config))
    return back(gradients(whole, BASE, on("sp=1")))[0]


def check_gradients(config: ModelConfig, how: Execution) -> None:
    found = gradients(random_params(config), config, how)
    assert flatten(found).keys() == parameters(config).keys()
    # Measured: 1.1e-5 on a CPU without AVX-512, which sums in another order.
    assert_close(found, gradients_through_merged(config), 2e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_equal_those_through_merged_weights(mesh: str) -> None:
    check_gradients(ALL, on(mesh))


def test_gradients_of_adapters_of_some_matrices() -> None:
    check_gradients(SOME, on("fsdp=2,tp=2", remat="full"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_change_nothing(dtype: str) -> None:
    """Bit for bit: B is zero. A is as spread as PEFT's."""
    base, fresh = init(BASE, jax.random.key(0)), draw(adapters(ALL), jax.random.key(1))
    params = {**base, "layers": base["layers"] | fresh["layers"]}
    how = on("sp=1", dtype=jnp.dtype(dtype))
    logits = forward(params, ALL, some_tokens(), how)
    np.testing.assert_array_equal(logits, forward(base, BASE, some_tokens(), how))
    wide = draw(adapters(dataclasses.replace(ALL, hidden=3000)), jax.random.key(0))["layers"]
    assert float(wide["wq_a"].std()) == pytest.approx(1 / math.sqrt(3 * 3000), rel=0.02)


def test_float32_adapters_of_frozen_bfloat16_weights() -> None:
    """Gradients come in the format of each tensor; adapters learn in float32."""
    frozen = jax.tree.map(jnp.bfloat16, flatten(init(BASE, jax.random.key(0))))
    flat = flatten(random_params(ALL))  # small updates, for large ones make rounding matter more
    factors = {name: flat[name] * (0.1 if name.endswith("_b") else 1) for name in adapters(ALL)}
    params = nest(frozen | factors)
    how = on("fsdp=2,tp=2", dtype=jnp.dtype(jnp.bfloat16))
    found = flatten(gradients(params, ALL, how))
    assert {found[name].dtype.name for name in factors} == {"float32"}
    exact = flatten(gradients(jax.tree.map(jnp.float32, params), ALL, on("sp=1")))
    for name in factors:
        error = np.linalg.norm(np.asarray(found[name]) - exact[name])
        assert error < 0.05 * np.linalg.norm(exact[name])


def test_adapters_with_a_cache_equal_merged_weights() -> None:
    how, params, tokens = on("sp=1"), random_params(ALL), some_tokens()
    expected = forward(merged(params, ALL), BASE, tokens, how)
    read_on = jax.jit(partial(read, config=ALL, how=how))
    cache = empty_cache(ALL, len(tokens.ids), 32, how)
    for part in (slice(0, 23), slice(23, 24)):
        given = jax.tree.map(lambda x, part=part: x[:, part], tokens)
        logits, cache = read_on(params, tokens=given, cache=cache)
        assert_close(logits, expected[:, part.stop - 1])


# Files


@pytest.fixture
def adapted(tiny_model: Path, tmp_path: Path) -> tuple[Path, ModelConfig, Params]:
    """The directory of an adapter for the tiny model; sizes and weights with it unmerged."""
    opened = open_source(str(tiny_model))
    config = dataclasses.replace(opened.config, lora=LoraConfig(4, 6.0, MATRICES[1:]))
    rng = np.random.default_rng(3)
    factors = {
        name: rng.normal(0, 0.3, p.shape).astype(np.float32) for name, p in adapters(config).items()
    }
    base = dict(read_stacked(opened.weights, opened.config))
    folder = tmp_path / "adapter"
    write_adapter(folder, config, Held(base | factors), base=str(tiny_model))
    return folder, config, nest(jax.tree.map(jnp.asarray, base | factors))


def test_an_adapter_opened_is_the_merged_model(
    adapted: tuple[Path, ModelConfig, Params], tiny_model: Path
) -> None:
    folder, config, params = adapted
    model = load_model(str(folder))
    assert_close(model.params, split(merged(params, config), model.how), 1e-6)
    assert model.config == checkpoint.read_config(tiny_model)
    assert model.vqgan is not None
    assert model.defaults == {"draw": {"guidance": 2.0}}
    assert picture_size(str(folder)) == picture_size(str(tiny_model))


def test_a_base_that_asks_to_be_rounded(
    adapted: tuple[Path, ModelConfig, Params], tiny_model: Path, tmp_path: Path
) -> None:
    """What it says is of its own weights: with an adapter they stay plain."""
    base, folder = said_to_round(tiny_model, tmp_path / "base", "int8"), adapted[0]
    named = json.loads((folder / CONFIG).read_text()) | {"base_model_name_or_path": base}
    (folder / CONFIG).write_text(json.dumps(named))
    assert load_model(base).config.quantized == "int8"
    assert load_model(str(folder)).config.quantized is None


@pytest.mark.parametrize("to", ["lwm", "hf"])
def test_converted_it_computes_what_adapters_compute(
    to: Any, adapted: tuple[Path, ModelConfig, Params], tmp_path: Path
) -> None:
    folder, config, params = adapted
    convert.convert(open_source(str(folder)), tmp_path / "out", to=to, verify=True)
    ids = some_tokens().ids
    found = convert.logits(open_source(str(tmp_path / "out")), ids)
    assert_close(found, forward(params, config, some_tokens(), on("sp=1")))


def test_merged_weights_are_rounded_once() -> None:
    """Of a stored format that is coarse the update is not lost to a rounding in between."""
    lora = LoraConfig(1, 1.0, ("wq",))
    base = Held({"layers.wq": np.full((1, 1, 1), 256, jnp.bfloat16)})
    factors = Held({f"layers.wq_{x}": np.full((1, 1, 1), 0.5, np.float32) for x in "ab"})
    weights = Merged(base, factors, lora)
    assert weights.dtype == "bfloat16"
    np.testing.assert_array_equal(weights.read("layers.wq", 0), [[256.25]])


def test_what_is_written(adapted: tuple[Path, ModelConfig, Params], tiny_model: Path) -> None:
    """PEFT's names, A `[r, in]` and B `[out, r]`, and what it needs to know."""
    folder, _, params = adapted
    tensors = load_file(folder / WEIGHTS)
    assert len(tensors) == 2 * 2 * 6
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
    np.testing.assert_array_equal(tensors[name.format("A")], params["layers"]["w_down_a"][1])
    np.testing.assert_array_equal(tensors[name.format("B")], params["layers"]["w_down_b"][1])
    assert tensors[name.format("A")].shape == (4, 48)
    values = json.loads((folder / CONFIG).read_text())
    assert values["base_model_name_or_path"] == str(tiny_model)
    projections = {"k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(values["target_modules"]) == projections
    assert (values["r"], values["lora_alpha"], values["peft_type"]) == (4, 6.0, "LORA")


def test_an_adapter_replaces_an_adapter(adapted: tuple[Path, ModelConfig, Params]) -> None:
    folder, config, params = adapted
    weights = Held(to_numpy(params))
    with pytest.raises(UsageError, match="exists"):
        write_adapter(folder, config, weights, base="nano")
    write_adapter(folder, config, weights, base="nano", force=True)
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == "nano"


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("peft_type", "IA3", ConfigError, "peft_type is 'IA3'"),
        ("use_dora", True, ConfigError, "use_dora is True"),
        ("rank_pattern", {"q_proj": 2}, ConfigError, "rank_pattern"),
        ("r", None, ConfigError, "adapter_config.json: rank is"),
        ("lora_alpha", "16", ConfigError, "alpha is '16'"),
        ("r", 5, FormatError, r"lora_A.weight has shape \(4, 32\)"),
        ("base_model_name_or_path", None, FormatError, "write there which model"),
        ("base_model_name_or_path", "./gone", ModelNotFound, r"adapter_config.json names .*gone"),
    ],
)
def test_what_is_refused(
    adapted: tuple[Path, ModelConfig, Params],
    key: str,
    value: Any,
    error: type[LwmError],
    message: str,
) -> None:
    path = adapted[0] / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(error, match=message):
        open_source(str(adapted[0]))


def test_tensors_that_are_refused(adapted: tuple[Path, ModelConfig, Params]) -> None:
    folder = adapted[0]
    tensors = load_file(folder / WEIGHTS)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    for kept, message in (
        ({key: tensor for key, tensor in tensors.items() if key != name}, "lora_B.* is missing"),
        (tensors | {"base_model.model.lm_head.lora_A.weight": tensors[name]}, "lm_head"),
        ({"base_model.model.lm_head.lora_A.weight": tensors[name]}, "adapts no matrix"),
    ):
        save_file(kept, folder / WEIGHTS)
        with pytest.raises(FormatError, match=message):
            open_source(str(folder))


def test_an_adapter_of_itself_is_refused(adapted: tuple[Path, ModelConfig, Params]) -> None:
    path = adapted[0] / CONFIG
    values = json.loads(path.read_text()) | {"base_model_name_or_path": str(adapted[0])}
    path.write_text(json.dumps(values))
    with pytest.raises(FormatError, match="merge it first"):
        open_source(str(adapted[0]))


def test_adapters_of_an_adapter_are_refused(
    adapted: tuple[Path, ModelConfig, Params],
) -> None:
    recipe = {
        "kind": "language",
        "start_from": str(adapted[0]),
        "lora": {},
        "optimizer": {},
        "stages": [{"steps": 1, "length": 8, "rows": 1, "mix": {"prose": 1.0}}],
    }
    with pytest.raises(ConfigError, match="is an adapter itself; merge it first"):
        sizes_of(read_recipe(recipe))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"matrices": ("wq", "q_proj")}, "matrices: 'q_proj'; choose of wq"),
        ({"matrices": ()}, "matrices: empty"),
    ],
)
def test_sizes_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**values)


# Against PEFT itself


@pytest.mark.filterwarnings("ignore")
def test_peft_computes_the_same(
    adapted: tuple[Path, ModelConfig, Params], tiny_model: Path, tmp_path: Path
) -> None:
    """Our adapter in PEFT, and PEFT's own in ours, chosen matrices and `alpha` included."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ids = some_tokens().ids

    def open_base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    def theirs(model: Any) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(ids).long()).logits.numpy()

    model = peft.PeftModel.from_pretrained(open_base(), adapted[0])
    assert_close(convert.logits(open_source(str(adapted[0])), ids), theirs(model), 1e-4)

    torch.manual_seed(0)
    wanted = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(open_base(), wanted)
    model.save_pretrained(tmp_path / "theirs")
    assert_close(convert.logits(open_source(str(tmp_path / "theirs")), ids), theirs(model), 1e-4)
