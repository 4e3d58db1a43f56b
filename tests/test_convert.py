"""Conversion: the original's weights become a directory that computes the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lwm_core import checkpoint, registry, vqgan
from lwm_core.convert import convert
from lwm_core.errors import FormatError, ModelNotFound, UsageError
from lwm_core.formats.lwm_jax import load_lwm_jax
from lwm_core.formats.vqgan_names import rename_lwm_vqgan
from lwm_core.formats.vqgan_pickle import load_lwm_vqgan
from lwm_core.types import Progress


@pytest.fixture
def published(reference: Path, tmp_path: Path) -> Path:
    """A vision model as the original published its own: three files side by side."""
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copy(reference / "vision_full/streaming_params", folder / "params")
    shutil.copy(reference / "vqgan/vqgan_params.pkl", folder / "vqgan")
    shutil.copy(reference / "tokenizer/tokenizer.model", folder)
    return folder


@pytest.fixture
def relative(tiny_model: Path, tmp_path: Path) -> str:
    """A model directory of two heads, the reference's rotary base and context."""
    shutil.copytree(tiny_model, tmp_path / "relative")
    config = tmp_path / "relative/config.json"
    text = config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2')
    text = text.replace('"rope_theta": 10000.0', '"rope_theta": 50000000.0')
    config.write_text(text)
    return str(tmp_path / "relative")


def test_the_originals_vision_model(
    published: Path, relative: str, reference: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    seen: list[Progress] = []
    convert(str(published), target, like=relative, on_progress=seen.append)
    assert seen[-1].done == seen[-1].total
    expected, tensors = load_lwm_jax(published / "params", heads=2, max_length=1024, rope_theta=5e7)
    config = checkpoint.read_config(target)
    assert config == expected
    weights = dict(checkpoint.read_weights(target, config))
    assert weights.keys() == tensors.keys()
    assert all(np.array_equal(weights[name], tensor) for name, tensor in tensors.items())

    image = checkpoint.read_vqgan(target)
    assert image is not None
    assert image.config.grid**2 == config.frame_codes
    original = rename_lwm_vqgan(*load_lwm_vqgan(published / "vqgan"))
    ours = vqgan.to_tensors(image)
    assert all(np.array_equal(ours[name], tensor) for name, tensor in original.items())
    tokenizer = (target / "tokenizer.model").read_bytes()
    assert tokenizer == (reference / "tokenizer/tokenizer.model").read_bytes()


def test_a_file_of_a_text_model(published: Path, relative: str, tmp_path: Path) -> None:
    """Only what a text model needs is asked for."""
    (published / "vqgan").unlink()
    source = Path(__file__).parent / "reference/text_a/streaming_params_bf16"
    shutil.copy(source, published / "params")
    convert(str(published / "params"), tmp_path / "out", like=relative)
    config = checkpoint.read_config(tmp_path / "out")
    assert config.vision_vocab == 0
    assert checkpoint.stored_dtype(tmp_path / "out", config) == "bfloat16"


def test_files_and_folders_hide_no_model(
    published: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known name is that model, as a source and for `like`, whatever lies in the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "embedded_path", lambda: tiny_model)
    (tmp_path / "nano").touch()
    convert("nano", tmp_path / "copy")
    assert checkpoint.read_config(tmp_path / "copy") == checkpoint.read_config(tiny_model)
    (tmp_path / "chat-1m").mkdir()
    with pytest.raises(UsageError, match="32 heads"):
        convert(str(published), tmp_path / "out", like="chat-1m")
    with pytest.raises(FormatError, match=r"config\.json: missing"):
        convert(str(published), tmp_path / "out", like="./chat-1m")


def test_model_directories(tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    convert(str(tiny_model), target)
    for file in sorted(path for path in tiny_model.rglob("*") if path.is_file()):
        assert (target / file.relative_to(tiny_model)).read_bytes() == file.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        convert(str(tiny_model), target)
    convert(str(target), target, dtype="bfloat16", force=True)
    assert checkpoint.stored_dtype(target, checkpoint.read_config(target)) == "bfloat16"
    assert checkpoint.read_habits(target) == checkpoint.read_habits(tiny_model)


def test_a_llama_of_hugging_face(reference: Path, tmp_path: Path) -> None:
    convert(str(reference / "hf/safetensors"), tmp_path / "out")
    config = checkpoint.read_config(tmp_path / "out")
    theirs = dict(checkpoint.read_weights(reference / "hf/safetensors", config))
    ours = dict(checkpoint.read_weights(tmp_path / "out", config))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (None, UsageError, "--like"),
        ("params", FormatError, "neither config.json nor params"),
        ("vqgan", FormatError, "vqgan: missing"),
        ("tokenizer.model", FormatError, "tokenizer.model: missing"),
    ],
)
def test_what_is_missing(
    spoil: str | None,
    error: type[Exception],
    words: str,
    published: Path,
    relative: str,
    tmp_path: Path,
) -> None:
    if spoil:
        (published / spoil).unlink()
    with pytest.raises(error, match=words) as caught:
        convert(str(published), tmp_path / "out", like=relative if spoil else None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_cut_off_and_unknown_sources(published: Path, relative: str, tmp_path: Path) -> None:
    whole = (published / "params").read_bytes()
    (published / "params").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="params"):
        convert(str(published), tmp_path / "out", like=relative)
    with pytest.raises(ModelNotFound, match="nano"):
        convert("nanno", tmp_path / "out")
    with pytest.raises(ModelNotFound, match="chat-1m"):
        convert(str(published), tmp_path / "out", like="chat-1n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published", "relative"]


def test_the_cards_name_is_enough(published: Path, tmp_path: Path) -> None:
    """What a folder is called says which card has its sizes; here they don't fit the weights."""
    named = published.rename(tmp_path / "LWM-Chat-32K")
    with pytest.raises(UsageError, match="32 heads"):
        convert(str(named), tmp_path / "out")
