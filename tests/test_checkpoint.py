"""The model directory: what is written comes back, in others' hands too, whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from originals import stored
from safetensors.numpy import load_file

from lwm_core import checkpoint, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError, FormatError, OutputError, UsageError
from lwm_core.parameters import parameters
from lwm_core.tensor_files import TensorFiles, write_tensors
from lwm_core.tokenizer import Tokenizer
from lwm_core.weights import Held, read_stacked

CONFIG = ModelConfig(
    text_vocab=30, vision_vocab=10, vision_codes=8, frame_codes=4, hidden=12, intermediate=20,
    layers=3, heads=2, kv_heads=1, head_dim=6, max_length=64, rope_theta=5e5,
)  # fmt: skip
TENSORS = weight_tree.to_numpy(weight_tree.init(CONFIG, jax.random.key(1)))
WEIGHTS = Held(TENSORS)


@pytest.fixture
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.load(reference / "tokenizer/tokenizer.model")


def damage(directory: Path, to: Path) -> Path:
    """A copy of a model directory to spoil."""
    shutil.copytree(directory, to)
    return to


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_is_loaded(dtype: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    target = tmp_path / "deep/model"
    checkpoint.write_model(target, CONFIG, WEIGHTS, tokenizer=tokenizer, dtype=dtype)
    assert checkpoint.read_config(target) == CONFIG
    assert checkpoint.read_vqgan(target) is None
    weights = checkpoint.DirectoryWeights(target, CONFIG)
    assert weights.dtype == dtype
    counted: list[tuple[int, int]] = []
    read = dict(read_stacked(weights, CONFIG, None, lambda *count: counted.append(count)))
    assert counted[-1] == (len(TENSORS), len(TENSORS))
    assert read.keys() == TENSORS.keys()
    for name, weight in TENSORS.items():
        assert np.array_equal(read[name], weight.astype(checkpoint.numpy_dtype(dtype)))
    assert not [path for path in target.parent.iterdir() if path != target]


def test_others_can_read_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    checkpoint.write_model(tmp_path / "model", CONFIG, WEIGHTS, tokenizer=tokenizer)
    written = load_file(tmp_path / "model/model.safetensors")
    queries = written["model.layers.2.self_attn.q_proj.weight"]
    assert np.array_equal(queries, TENSORS["layers.wq"][2])
    assert len(written) == 3 + 9 * CONFIG.layers
    values = json.loads((tmp_path / "model/config.json").read_text())
    assert (values["model_type"], values["vocab_size"], values["rope_theta"]) == ("llama", 40, 5e5)


def test_reads_what_hugging_face_wrote(reference: Path) -> None:
    folder = reference / "hf/safetensors"
    config = checkpoint.read_config(folder)
    assert config.rope_theta == 1e7
    assert config.vision_vocab == 0
    for name, weight in stored(folder).items():
        assert weight.shape == parameters(config)[name].shape


def test_image_tokenizer_and_habits(tiny_model: Path) -> None:
    image = checkpoint.read_vqgan(tiny_model)
    assert image is not None
    assert image.config.grid == 8
    assert checkpoint.read_habits(tiny_model) == {"draw": {"guidance": 2.0}}


def test_large_models_go_to_several_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"t{n}": rng.normal(size=(n + 1, 50)).astype(np.float32) for n in range(6)}
    table = {name: (tensor.shape, "float32") for name, tensor in tensors.items()}
    backwards = reversed(list(tensors.items()))
    write_tensors(tmp_path, table, backwards, shard_bytes=1500)
    assert len(list(tmp_path.glob("model-0000?-of-00004.safetensors"))) == 4
    files = TensorFiles(tmp_path)
    assert all(np.array_equal(files.read(name, t.shape), t) for name, t in tensors.items())


def test_bfloat16_rounds_to_even(tmp_path: Path) -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(2**-130)], np.float32)
    write_tensors(tmp_path, {"t": ((3,), "bfloat16")}, [("t", values)])
    stored = TensorFiles(tmp_path).read("t", (3,)).astype(np.float32)
    assert stored.tolist() == [1, 1 + 2**-6, -(2**-130)]


def test_nothing_half_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Breaks(Held):
        def read(self, name: str, layer: int | None = None) -> np.ndarray:
            if name == "layers.wv":
                raise KeyboardInterrupt
            return super().read(name, layer)

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_model(tmp_path / "model", CONFIG, Breaks(TENSORS), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="did not come"):
        write_tensors(tmp_path, {"missing": ((3,), "float32")}, [])
    (tmp_path / "model.safetensors").unlink()
    assert not list(tmp_path.iterdir())


def test_existing_directories(tmp_path: Path, tokenizer: Tokenizer) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "photo.jpg").touch()
    with pytest.raises(UsageError, match="--force"):
        checkpoint.check_new(target, force=False)
    (target / "config.json").touch()  # many things have one
    with pytest.raises(UsageError, match=r"photo\.jpg, which is no part of a model"):
        checkpoint.check_new(target, force=True)
    with pytest.raises(UsageError, match="is a file"):
        checkpoint.check_new(target / "photo.jpg", force=True)
    (target / "photo.jpg").unlink()
    for _ in range(2):  # over an empty folder, then over a model
        checkpoint.write_model(target, CONFIG, WEIGHTS, tokenizer=tokenizer, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_stopped_while_one_model_replaces_another(
    moves: int, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before, between and after the two moves leaves one whole model and nothing else."""
    target = damage(tiny_model, tmp_path / "model")
    calls = itertools.count()

    def stopped(source: Path, place: Path, replace: Callable[..., None] = os.replace) -> None:
        number = next(calls)
        if number == moves == 0:
            raise KeyboardInterrupt
        replace(source, place)
        if number == moves - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with (
        pytest.raises(KeyboardInterrupt),
        checkpoint.new_directory(target, force=True) as folder,
    ):
        (folder / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    is_new = (target / "config.json").read_text() == "{}"
    assert is_new == (moves == 2)
    assert is_new or checkpoint.read_config(target) == checkpoint.read_config(tiny_model)


def test_a_place_that_can_not_be_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        checkpoint.write_model(tmp_path / "file/model", CONFIG, WEIGHTS, tokenizer=tokenizer)
    with pytest.raises(UsageError, match="float8"):
        checkpoint.write_model(
            tmp_path / "model", CONFIG, WEIGHTS, tokenizer=tokenizer, dtype="float8"
        )


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "config.json: missing"),
        ("config.json", b"{", "not readable as JSON"),
        ("config.json", b"[1]", "no JSON object"),
        ("model.safetensors", None, "model.safetensors: missing"),
        ("model.safetensors", b"", "not whole"),
        ("model.safetensors", b"\xff" * 64, "not whole"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "there are only 0 tensors"),
        ("model.safetensors.index.json", b"nothing", "not readable as JSON"),
    ],
)
def test_damaged_files(
    file: str, content: bytes | None, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    spoiled = damage(tiny_model, tmp_path / "model")
    (spoiled / file).unlink(missing_ok=True)
    if content is not None:
        (spoiled / file).write_bytes(content)
    with pytest.raises(FormatError) as caught:
        stored(spoiled)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cut_off_weights(tiny_model: Path, tmp_path: Path) -> None:
    spoiled = damage(tiny_model, tmp_path / "model")
    weights = spoiled / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError, match="not whole"):
        stored(spoiled)


def test_sizes_that_disagree(tiny_model: Path, tmp_path: Path) -> None:
    spoiled = damage(tiny_model, tmp_path / "model")
    values = json.loads((spoiled / "config.json").read_text())
    values["hidden_size"] += 1
    (spoiled / "config.json").write_text(json.dumps(values))
    with pytest.raises(FormatError, match=r"config\.json says"):
        stored(spoiled)
    del values["hidden_size"]
    (spoiled / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="hidden_size"):
        checkpoint.read_config(spoiled)
