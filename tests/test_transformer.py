"""The decoder: the original's numbers, and the equalities that caches and chunks rest on."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from originals import open_original, stored

from lwm_core.cache import empty_cache
from lwm_core.checkpoint import read_config
from lwm_core.config import SIZES, LoraConfig, ModelConfig
from lwm_core.execution import Execution
from lwm_core.mesh import make_mesh
from lwm_core.parameters import parameters
from lwm_core.transformer import forward, read, with_head_of
from lwm_core.types import KVCache, Tokens
from lwm_core.weight_tree import Params, count_parameters, flatten, init, nest, shardings, split

TINY = ModelConfig(
    text_vocab=40, vision_vocab=24, vision_codes=16, hidden=24, intermediate=40, layers=2,
    heads=6, kv_heads=2, head_dim=8, max_length=512,
)  # fmt: skip

HERE = Execution(make_mesh())


def run(params: Params, config: ModelConfig, given: Tokens, **how: object) -> jax.Array:
    """Logits of all tokens."""
    return forward(params, config, given, dataclasses.replace(HERE, **how))


@partial(jax.jit, static_argnames="config")
def read_on(
    params: Params, config: ModelConfig, given: Tokens, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """Logits behind the last token, `[B, V]`, and the cache."""
    return read(params, config, given, cache, HERE)


def tokens(ids: np.ndarray, positions: np.ndarray | None = None, segments: np.ndarray | int = 1):
    """Of ids `[B, T]`; by default one text from position 0."""
    if positions is None:
        positions = np.arange(ids.shape[1])
    arrays = np.broadcast_arrays(ids, positions, segments)
    return Tokens(*(jnp.asarray(x, jnp.int32) for x in arrays))


def spread_out(config: ModelConfig, seed: int = 0) -> Params:
    """Weights that all matter: norms and outputs too are far from where training starts."""
    rng = np.random.default_rng(seed)
    return nest(
        {
            name: jnp.asarray(rng.normal(p.spread is None, 0.3, p.shape), jnp.float32)
            for name, p in parameters(config).items()
        }
    )


# The numbers of the original


def golden(folder: Path, file: str = "golden.npz") -> dict[str, np.ndarray]:
    with np.load(folder / file) as arrays:
        return dict(arrays)


def assert_close(ours: jax.Array, theirs: np.ndarray, where: np.ndarray | None = None) -> None:
    """Within 1e-4; `where` says which tokens count, not the padded ones."""
    where = np.ones(theirs.shape[:-1], bool) if where is None else where.astype(bool)
    np.testing.assert_allclose(np.asarray(ours)[where], theirs[where], atol=1e-4, rtol=0)


def assert_text_model(folder: Path) -> None:
    config, params = open_original(folder)
    numbers = golden(folder)
    logits = run(params, config, tokens(numbers["plain.input_ids"]))
    assert_close(logits, numbers["plain.logits"])

    mask = numbers["leftpad.attention_mask"]
    padded = tokens(numbers["leftpad.input_ids"], numbers["leftpad.position_ids"], mask)
    assert_close(run(params, config, padded), numbers["leftpad.logits"], mask)

    segments = numbers["packed.segment_ids"] + 1
    packed = tokens(numbers["packed.input_ids"], numbers["packed.position_ids"], segments)
    assert_close(run(params, config, packed), numbers["packed.logits"])


def test_text_model(reference: Path) -> None:
    assert_text_model(reference / "text_a")


def test_text_model_of_another_base(shared: Path) -> None:
    """Rotary base 5e7, and layers stored one by one."""
    assert_text_model(shared / "reference/text_b")


def test_text_model_in_bfloat16(reference: Path) -> None:
    config, params = open_original(reference / "text_a")
    numbers = golden(reference / "text_a")
    params = jax.tree.map(lambda weight: weight.astype(jnp.bfloat16), params)
    logits = run(params, config, tokens(numbers["plain.input_ids"]), dtype=jnp.dtype(jnp.bfloat16))
    assert logits.dtype == jnp.float32
    error = np.abs(logits - numbers["plain_bf16.logits_as_f32"])
    assert error.max() < 0.5
    assert error.mean() < 0.04


def test_cached_generation(reference: Path) -> None:
    """A left-padded prompt, then the tokens that the original drew, one by one."""
    config, params = open_original(reference / "text_a")
    numbers = golden(reference / "text_a")
    mask, sequences = numbers["generate.attention_mask"], numbers["generate.sequences_no_eos"]
    prompt = tokens(numbers["generate.prompt_ids"], np.maximum(mask.cumsum(1) - 1, 0), mask)
    start, total = mask.shape[1], sequences.shape[1]
    logits, cache = read_on(params, config, prompt, empty_cache(config, 2, total, jnp.float32))
    assert numbers["generate.margins"].min() > 1e-3
    for step in range(total - start):
        if step < numbers["generate.step_logits"].shape[1]:
            assert_close(logits, numbers["generate.step_logits"][:, step])
        drawn = logits.argmax(-1)
        np.testing.assert_array_equal(drawn, sequences[:, start + step])
        following = tokens(np.asarray(drawn)[:, None], mask.sum(1, keepdims=True) + step)
        logits, cache = read_on(params, config, following, cache)


def test_hugging_face_model(reference: Path) -> None:
    """A model directory as the ecosystem writes it, and what PyTorch computes with it."""
    folder = reference / "hf/safetensors"
    config = read_config(folder)
    params = nest({name: jnp.asarray(weight) for name, weight in stored(folder).items()})
    numbers = golden(reference / "hf")
    assert_close(run(params, config, tokens(numbers["input_ids"])), numbers["logits"])
    sequence, prompt = numbers["greedy_sequences"], numbers["prompt_ids"].shape[1]
    logits = run(params, config, tokens(sequence))
    np.testing.assert_array_equal(logits.argmax(-1)[:, prompt - 1 : -1], sequence[:, prompt:])


def one_vocabulary(numbers: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """The original's ids and vision masks as our ids."""
    return numbers["mixed.input_ids"] + config.text_vocab * numbers["mixed.vision_masks"]


@pytest.mark.parametrize("case", ["mixed", "leftpad", "packed"])
def test_vision_model(reference: Path, case: str) -> None:
    config, params = open_original(reference / "vision_small")
    numbers = golden(reference / "vision_small")
    ids = one_vocabulary(numbers, config)
    mask = numbers["leftpad.attention_mask"]
    given = {
        "mixed": tokens(ids),
        "leftpad": tokens(ids, numbers["leftpad.position_ids"], mask),
        "packed": tokens(ids, None, numbers["packed.segment_ids"] + 1),
    }[case]
    logits = run(params, config, given)
    real = mask if case == "leftpad" else None
    text, vision = jnp.split(logits, [config.text_vocab], axis=-1)
    assert_close(text, numbers[f"{case}.text_logits"], real)
    assert_close(vision, numbers[f"{case}.vision_logits"], real)


def test_vision_model_of_the_published_vocabulary(reference: Path) -> None:
    config, params = open_original(reference / "vision_full")
    numbers = golden(reference / "vision_full")
    logits = run(params, config, tokens(one_vocabulary(numbers, config)))
    at = numbers["mixed.logit_positions"]
    text, vision = jnp.split(logits[:, at], [config.text_vocab], axis=-1)
    assert_close(text, numbers["mixed.text_logits"])
    assert_close(vision, numbers["mixed.vision_logits"])


def test_guided_pictures_of_the_original(reference: Path) -> None:
    """Every code that it drew greedily is our most likely one, at guidance 1 and 5."""
    config, params = open_original(reference / "vision_full")
    numbers = golden(reference / "vision_full", "generate.npz")
    mask = numbers["image.attention_mask"]
    for guidance in (1, 5):
        drawn = numbers[f"image.cfg{guidance}.tokens"]
        both = np.concatenate([drawn, drawn]) + config.text_vocab
        ids = np.concatenate([numbers["image.input_ids"], both], axis=1)
        segments = np.concatenate([mask, np.ones_like(both)], axis=1)
        positions = np.maximum(segments.cumsum(1) - 1, 0)
        logits = run(params, config, tokens(ids, positions, segments))
        asked, free = jnp.split(logits[:, mask.shape[1] - 1 : -2, config.text_vocab :], 2)
        guided = free + guidance * (asked - free)
        np.testing.assert_array_equal(guided.argmax(-1), drawn[:, :-1])


# An independent decoder


def numpy_logits(config: ModelConfig, params: Params, ids: np.ndarray) -> np.ndarray:
    """One row of ids `[T]` in float64, head after head; rotations as complex numbers."""
    weights = {name: np.asarray(value, np.float64) for name, value in flatten(params).items()}
    size, half = config.head_dim, config.head_dim // 2
    turns = np.exp(
        1j * np.arange(len(ids))[:, None] * config.rope_theta ** (-np.arange(half) / half)
    )

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * weight

    def turn(x: np.ndarray) -> np.ndarray:
        turned = (x[:, :half] + 1j * x[:, half:]) * turns
        return np.concatenate([turned.real, turned.imag], axis=1)

    x = weights["embed"][ids]
    for layer in range(config.layers):
        w = {name: weights[f"layers.{name}"][layer] for name in params["layers"]}
        h = norm(x, w["attention_norm"])
        heads = []
        for head in range(config.heads):
            rows = slice(head * size, (head + 1) * size)
            group = head // (config.heads // config.kv_heads)
            shared_rows = slice(group * size, (group + 1) * size)
            q, k = turn(h @ w["wq"][rows].T), turn(h @ w["wk"][shared_rows].T)
            scores = np.where(np.tri(len(ids)), q @ k.T / np.sqrt(size), -np.inf)
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            heads.append(chances @ (h @ w["wv"][shared_rows].T))
        x = x + np.concatenate(heads, axis=1) @ w["wo"].T
        h = norm(x, w["mlp_norm"])
        gate = h @ w["w_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w_up"].T)) @ w["w_down"].T
    return norm(x, weights["norm"]) @ weights.get("head", weights["embed"]).T


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_equals_an_independent_decoder(tied: bool, kv_heads: int) -> None:
    """Tied heads, and query heads that share a key head."""
    config = dataclasses.replace(TINY, kv_heads=kv_heads, tie_embeddings=tied)
    params = spread_out(config)
    assert ("head" in params) != tied
    ids = np.random.default_rng(1).integers(0, config.vocab, (2, 20))
    logits = run(params, config, tokens(ids))
    for row in range(2):
        expected = numpy_logits(config, params, ids[row])
        np.testing.assert_allclose(logits[row], expected, atol=2e-4, rtol=1e-4)


# Caches and chunks


def text_with_padding(length: int) -> Tokens:
    """Two rows, the second with seven padded slots before it."""
    ids = np.random.default_rng(2).integers(0, TINY.vocab, (2, length))
    padding = np.array([[0], [7]])
    positions = np.maximum(np.arange(length) - padding, 0)
    return tokens(ids, positions, np.arange(length) >= padding)


def in_chunks(
    params: Params, whole: Tokens, size: int, cache: KVCache, how: Execution = HERE
) -> jax.Array:
    """Logits `[B, chunks, V]` behind each piece of a text that comes piece by piece."""
    step = jax.jit(partial(read, config=TINY, how=how), donate_argnames="cache")
    params = jax.device_put(params, shardings(TINY, how))
    pieces = []
    for start in range(0, whole.ids.shape[1], size):
        chunk = jax.tree.map(lambda x, start=start: x[:, start : start + size], whole)
        logits, cache = step(params, tokens=chunk, cache=cache)
        pieces.append(logits)
    assert cache.length == whole.ids.shape[1]
    return jnp.stack(pieces, axis=1)


@pytest.mark.parametrize(
    ("length", "chunk", "slots"),
    [(24, 1, 24), (24, 8, 40), (320, 160, 344)],
    ids=["token by token", "chunks", "chunks in blocks"],
)
@pytest.mark.parametrize("mesh", ["sp=1", slow("sp=8"), "tp=2,sp=4", slow("dp=2,fsdp=2,sp=2")])
def test_cached_equals_full(length: int, chunk: int, slots: int, mesh: str) -> None:
    """Also where devices share heads, rows and slots of the cache."""
    params, whole = spread_out(TINY), text_with_padding(length)
    full = run(params, TINY, whole, attention="dense")[:, chunk - 1 :: chunk]
    size = math.prod(int(part.partition("=")[2]) for part in mesh.split(","))
    how = Execution(make_mesh(mesh, jax.devices()[:size]))
    pieces = in_chunks(params, whole, chunk, empty_cache(TINY, 2, slots, jnp.float32), how)
    real = np.asarray(whole.segments, bool)[:, chunk - 1 :: chunk]
    np.testing.assert_allclose(pieces[real], full[real], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 1 / 2), ("int8", 1 / 4 + 1 / 8)])
def test_a_smaller_cache(dtype: str, share: float) -> None:
    """Half the numbers' size, or a quarter and a scale for each run of eight."""
    params, whole = spread_out(TINY), text_with_padding(24)
    full = run(params, TINY, whole)[:, 7::8]
    cache, plain = (empty_cache(TINY, 2, 24, jnp.dtype(kind)) for kind in (dtype, "float32"))
    sizes = [
        sum(x.nbytes for x in jax.tree.leaves((one.keys, one.values))) for one in (cache, plain)
    ]
    assert sizes[0] == share * sizes[1]
    pieces = in_chunks(params, whole, 8, cache)
    assert 0 < np.abs(pieces - full).max() < 0.1 * np.abs(full).max()


def test_order_in_memory_is_free() -> None:
    """Causality is by position: tokens in another order have the same logits."""
    params, whole = spread_out(TINY), text_with_padding(24)
    order = np.random.default_rng(3).permutation(24)
    mixed = jax.tree.map(lambda x: x[:, order], whole)
    full = run(params, TINY, whole)
    logits = run(params, TINY, mixed)
    real = np.asarray(mixed.segments, bool)
    np.testing.assert_allclose(logits[real], full[:, order][real], atol=2e-4, rtol=1e-4)


# Sizes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("7b", 6_738_415_616),
        ("13b", 13_015_864_320),
        ("30b", 32_528_943_616),
        ("65b", 65_285_660_672),
    ],
)
def test_parameter_counts_are_the_published(name: str, count: int) -> None:
    """As Hugging Face counts LLaMA's weights."""
    assert count_parameters(SIZES[name]) == count


def test_the_largest_model_has_shapes() -> None:
    config = SIZES["65b"]
    params = jax.eval_shape(partial(init, config), jax.random.key(0))
    assert {name: p.shape for name, p in flatten(params).items()} == {
        name: p.shape for name, p in parameters(config).items()
    }
    ids = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    cache = jax.eval_shape(partial(empty_cache, config, 1, config.max_length, jnp.bfloat16))
    logits, after = jax.eval_shape(
        lambda params, given, cache: read(params, config, given, cache, HERE),
        params, Tokens(ids, ids, ids), cache,
    )  # fmt: skip
    assert (logits.shape, logits.dtype) == ((1, config.vocab), jnp.float32)
    assert after.keys.shape == (80, 1, 64, 2048, 128)


def test_fresh_weights() -> None:
    """Of the spread that the table says, and another for each seed."""
    config = dataclasses.replace(TINY, hidden=96)
    params, table = flatten(init(config, jax.random.key(0))), parameters(config)
    assert list(params) == list(table)
    for name, p in table.items():
        if p.spread is None:
            np.testing.assert_array_equal(params[name], 1)
        else:
            np.testing.assert_allclose(params[name].std(), p.spread, rtol=0.1)
    other = flatten(init(config, jax.random.key(1)))
    assert not np.array_equal(params["embed"], other["embed"])


def test_nest_and_flatten_are_inverse() -> None:
    flat = {"embed": 1, "layers.wq": 2, "layers.norm.scale": 3}
    assert nest(flat) == {"embed": 1, "layers": {"wq": 2, "norm": {"scale": 3}}}
    assert flatten(nest(flat)) == flat


@pytest.mark.parametrize("mesh", ["dp=1", slow("fsdp=2"), "tp=2"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_layers_that_are_split_compute_the_same(mesh: str, lora: LoraConfig | None) -> None:
    """With matrices of one input as one, where tp does not share them out and none is adapted."""
    config = dataclasses.replace(TINY, lora=lora)
    how = Execution(make_mesh(mesh, jax.devices()[: int(mesh[-1])]))
    places = shardings(config, how)
    params = jax.device_put(init(config, jax.random.key(0)), places)
    ids = np.arange(32, dtype=np.int32).reshape(2, 16)
    tokens = Tokens(ids, np.broadcast_to(np.arange(16, dtype=np.int32), ids.shape), ids * 0 + 1)
    whole = forward(params, config, tokens, how)
    layers = split(params, how)
    assert ("wqkv" in layers["layers"][0]) == (mesh != "tp=2" and lora is None)
    np.testing.assert_allclose(
        forward(layers, config, tokens, how), whole, atol=2e-5 * np.std(whole)
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ids", [slice(0, 40), slice(40, 64)])
def test_a_head_of_some_ids_has_their_logits(ids: slice, tied: bool) -> None:
    config = dataclasses.replace(TINY, tie_embeddings=tied)
    params, given = spread_out(config), tokens(np.arange(10, 17)[None])
    cache = empty_cache(config, 1, 8, jnp.float32)
    of_all = jax.jit(partial(read, config=config, how=HERE, ids=ids))
    expected, _ = of_all(params, tokens=given, cache=cache)
    params, config = with_head_of(ids, params, config)
    found, _ = jax.jit(partial(read, config=config, how=HERE))(params, tokens=given, cache=cache)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.shape == (1, ids.stop - ids.start)
