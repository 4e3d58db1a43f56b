"""Conversion: models of any format become a directory, or files, that compute the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from flax.serialization import msgpack_serialize
from originals import load_lwm_jax, read_streaming, stacked, stored
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer

from lwm_core import checkpoint, convert, registry, vqgan, weight_tree
from lwm_core.config import ModelConfig, OriginalSizes
from lwm_core.errors import FormatError, LwmError, ModelNotFound, OutputError, UsageError
from lwm_core.formats import lwm_jax_writer
from lwm_core.formats.hf_tokenizer import fast_tokenizer
from lwm_core.formats.lwm_jax_writer import write_streaming
from lwm_core.formats.streaming import StreamingFile
from lwm_core.formats.vqgan_names import rename_lwm_vqgan
from lwm_core.formats.vqgan_pickle import load_lwm_vqgan
from lwm_core.load import load_model
from lwm_core.parameters import parameters
from lwm_core.source import open_image, open_source, picture_size
from lwm_core.tokenizer import Tokenizer
from lwm_core.types import Progress
from lwm_core.weights import Held, read_stacked

THEIRS = {"num_attention_heads": 2, "max_sequence_length": 1024, "theta": 5e7}


def run(source: str | Path, target: Path, *, like: str | None = None, **options: object) -> None:
    convert.convert(open_source(str(source), like=like), target, **options)  # type: ignore[arg-type]


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
    """A model directory of two heads, the reference's rotary base, context and frames."""
    shutil.copytree(tiny_model, tmp_path / "relative")
    config = tmp_path / "relative/config.json"
    text = config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2')
    text = text.replace('"rope_theta": 10000.0', '"rope_theta": 50000000.0')
    config.write_text(text.replace('"frame_codes": 64', '"frame_codes": 256'))
    return str(tmp_path / "relative")


def test_the_originals_vision_model(
    published: Path, relative: str, reference: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    seen: list[Progress] = []
    run(published, target, like=relative, on_progress=seen.append)
    expected, tensors = load_lwm_jax(published / "params", heads=2, max_length=1024, rope_theta=5e7)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (size, size, "bytes")
    assert checkpoint.read_config(target) == expected
    weights = stored(target)
    assert weights.keys() == tensors.keys()
    assert all(np.array_equal(weights[name], tensor) for name, tensor in tensors.items())

    image = checkpoint.read_vqgan(target)
    assert image is not None
    assert image.config.grid**2 == expected.frame_codes
    original = rename_lwm_vqgan(*load_lwm_vqgan(published / "vqgan"))
    ours = vqgan.to_tensors(image)
    assert all(np.array_equal(ours[name], tensor) for name, tensor in original.items())
    tokenizer = (target / "tokenizer.model").read_bytes()
    assert tokenizer == (reference / "tokenizer/tokenizer.model").read_bytes()


def test_the_original_in_place(published: Path, reference: Path) -> None:
    """Loaded where it lies it is what the file holds, however it is named."""
    (published / "config.json").write_text(json.dumps(THEIRS))
    image = open_source(str(published)).image
    assert picture_size(str(published)) == image.config.resolution
    assert vqgan.fingerprint(open_image(str(published))) == vqgan.fingerprint(image)
    assert image.config.grid == 16
    with pytest.raises(FormatError, match="image tokenizer is another model's"):
        load_model(str(published))  # the reference's has fewer codes than its language model
    (published / "vqgan").unlink()
    shutil.copy(reference / "text_a/streaming_params", published / "params")
    model = load_model(str(published))
    _, tensors = load_lwm_jax(published / "params", heads=2)
    np.testing.assert_array_equal(model.params["embed"], tensors["embed"])
    found = stacked(model)["layers"]["wq"]
    np.testing.assert_array_equal(found, tensors["layers.wq"])
    assert (model.config.heads, model.config.rope_theta) == (2, 5e7)
    assert load_model(str(published / "params")).config == model.config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_is_exact(
    dtype: str, published: Path, reference: Path, tmp_path: Path
) -> None:
    """The original's files, a model directory, the original's files: byte by byte the same."""
    if dtype == "bfloat16":
        (published / "vqgan").unlink()
        shutil.copy(reference / "text_a/streaming_params_bf16", published / "params")
    (published / "config.json").write_text(json.dumps(THEIRS))
    run(published, tmp_path / "ours")
    assert (
        checkpoint.DirectoryWeights(
            tmp_path / "ours", checkpoint.read_config(tmp_path / "ours")
        ).dtype
        == dtype
    )
    run(tmp_path / "ours", tmp_path / "theirs", to="lwm-jax")
    assert (tmp_path / "theirs/params").read_bytes() == (published / "params").read_bytes()
    if dtype == "float32":
        again = load_lwm_vqgan(tmp_path / "theirs/vqgan")
        image = load_lwm_vqgan(published / "vqgan")
        ours, before = (rename_lwm_vqgan(*one) for one in (again, image))
        assert ours.keys() == before.keys()
        assert all(np.array_equal(ours[name], before[name]) for name in ours)
    assert open_source(str(tmp_path / "theirs")).config == open_source(str(published)).config


def test_models_with_other_sizes_come_back(tiny_model: Path, tmp_path: Path) -> None:
    """Grouped heads and small pictures too, through every format."""
    run(tiny_model, tmp_path / "jax", to="lwm-jax")
    run(tmp_path / "jax", tmp_path / "hf", to="hf")
    run(tmp_path / "hf", tmp_path / "back")
    assert checkpoint.read_config(tmp_path / "back") == checkpoint.read_config(tiny_model)
    before, after = stored(tiny_model), stored(tmp_path / "back")
    assert all(np.array_equal(after[name], tensor) for name, tensor in before.items())
    images = [vqgan.to_tensors(checkpoint.read_vqgan(f)) for f in (tiny_model, tmp_path / "back")]
    assert all(np.array_equal(images[0][name], images[1][name]) for name in images[0])


def test_large_arrays_are_written_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks end anywhere, as in flax, which writes the same bytes."""
    config = ModelConfig(
        text_vocab=11, hidden=8, intermediate=12, layers=3, heads=2, kv_heads=2, head_dim=4,
        max_length=8,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = {name: p.shape for name, p in parameters(config).items()}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    sizes: list[int] = []
    for name, limit in (("whole", 1 << 30), ("chunked", 300)):
        dtype = np.dtype(ml_dtypes.bfloat16)
        write_streaming(
            tmp_path / name, config, Held(tensors), dtype, sizes.append, chunk_bytes=limit
        )
    assert sum(sizes) == 2 * 2 * sum(tensor.size for tensor in tensors.values())
    whole, chunked = (read_streaming(tmp_path / name) for name in ("whole", "chunked"))
    assert whole.keys() == chunked.keys()
    for keys, tensor in whole.items():
        np.testing.assert_array_equal(chunked[keys], tensor)
        assert msgpack_serialize(tensor) in (tmp_path / "whole").read_bytes()
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 300)
    for tensor in whole.values():
        assert msgpack_serialize(tensor) in (tmp_path / "chunked").read_bytes()


def test_a_file_of_a_text_model(published: Path, relative: str, tmp_path: Path) -> None:
    """Only what a text model needs is asked for."""
    (published / "vqgan").unlink()
    source = Path(__file__).parent / "reference/text_a/streaming_params_bf16"
    shutil.copy(source, published / "params")
    run(published / "params", tmp_path / "out", like=relative)
    config = checkpoint.read_config(tmp_path / "out")
    assert config.vision_vocab == 0
    assert checkpoint.DirectoryWeights(tmp_path / "out", config).dtype == "bfloat16"


def test_files_and_folders_hide_no_model(
    published: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known name is that model, as a source and for `like`, whatever lies in the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "embedded_path", lambda: tiny_model)
    (tmp_path / "nano").touch()
    run("nano", tmp_path / "copy")
    assert checkpoint.read_config(tmp_path / "copy") == checkpoint.read_config(tiny_model)
    (tmp_path / "chat-1m").mkdir()
    with pytest.raises(UsageError, match="32 heads"):
        run(published, tmp_path / "out", like="chat-1m")
    with pytest.raises(FormatError, match=r"config\.json: missing"):
        run(published, tmp_path / "out", like="./chat-1m")


def test_model_directories(tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(tiny_model, target)
    for file in sorted(path for path in tiny_model.rglob("*") if path.is_file()):
        assert (target / file.relative_to(tiny_model)).read_bytes() == file.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        run(tiny_model, target)
    run(target, target, dtype="bfloat16", force=True)
    config = checkpoint.read_config(target)
    assert checkpoint.DirectoryWeights(target, config).dtype == "bfloat16"
    assert checkpoint.read_habits(target) == checkpoint.read_habits(tiny_model)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_llama_of_hugging_face(
    layout: str, reference: Path, shared: Path, tmp_path: Path
) -> None:
    run(shared / "reference/hf" / layout, tmp_path / "out")
    theirs, ours = stored(reference / "hf/safetensors"), stored(tmp_path / "out")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_plain_llama_takes_what_is_missing_from_the_card(reference: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reference / "hf/safetensors", tmp_path / "LWM-Text-256K")
    values = json.loads((folder / "config.json").read_text())
    for key in [key for key in values if key.startswith("rope") or key.startswith("max_pos")]:
        del values[key]
    (folder / "config.json").write_text(json.dumps(values))
    source = open_source(str(folder))
    assert (source.config.rope_theta, source.config.max_length) == (1e7, 256 * 1024)
    assert len(source.assumed) == 2
    assert "as LWM-Text-256K has" in source.assumed[0]


def test_the_plan_writes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    plan = convert.plan(open_source(str(tiny_model)), tmp_path / "out", dtype="bfloat16")
    run(tiny_model, tmp_path / "done", dtype="bfloat16")
    assert not (tmp_path / "out").exists()
    written = (tmp_path / "done/model.safetensors").stat().st_size
    assert plan.bytes < written < plan.bytes + 8192


def test_no_room_on_the_disk(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"needs .* GB and the disk has 0\.0 GB left"):
        run(tiny_model, tmp_path / "deep/out")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("to", ["lwm", "hf", "lwm-jax"])
def test_logits_are_compared(
    to: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion that computes otherwise leaves what was there before, also onto itself."""
    target = shutil.copytree(tiny_model, tmp_path / "model")
    run(target, target, to=to, dtype="bfloat16", force=True, verify=True)
    before = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
    source = open_source(str(target))
    tensors = dict(read_stacked(source.weights, source.config))
    tensors["layers.wo"] = -tensors["layers.wo"]
    opened = convert.open_source
    held = lambda name: dataclasses.replace(opened(name), weights=Held(tensors))  # noqa: E731
    monkeypatch.setattr(convert, "open_source", held)
    with pytest.raises(OutputError, match="logits differ"):
        convert.convert(source, target, to=to, force=True, verify=True)
    assert {file: file.read_bytes() for file in target.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, "says 1000000000 layers"),
        ({"intermediate_size": 10**12}, "has shape"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"rms_norm_eps": 10**400}, "expected a number above 0"),
    ],
)
def test_hostile_sizes(
    changes: dict[str, object], words: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(LwmError, match=words):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("model.norm.weight", np.zeros(32, np.int8), "stored as int8"),
        ("model.layers.0.self_attn.q_proj.bias", np.zeros(32, np.float32), "also holds"),
    ],
)
def test_tensors_of_other_models(
    name: str, tensor: np.ndarray, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensor}, folder / "model.safetensors")
    with pytest.raises(FormatError, match=words):
        open_source(str(folder))


def test_force_spares_what_is_no_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "mine")
    (folder / "vqgan/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds vqgan, which is no part of a model"):
        run(tiny_model, folder, force=True)
    assert (folder / "vqgan/thesis.txt").read_text() == "mine"
    shutil.rmtree(folder / "vqgan")
    (folder / "params").mkdir()
    with pytest.raises(UsageError, match="holds params"):
        run(tiny_model, folder, force=True)


def test_a_disk_that_gives_back_other_bytes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checkpoint.TensorFiles.read
    source = open_source(str(tiny_model))

    def forgets(self: checkpoint.TensorFiles, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = read(self, name, shape).copy()
        if name == "model.norm.weight" and self._files[name].parent != tiny_model:
            tensor[3] += 1
        return tensor

    monkeypatch.setattr(checkpoint.TensorFiles, "read", forgets)
    with pytest.raises(OutputError, match=r"model\.norm\.weight reads otherwise"):
        convert.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stream_that_the_disk_changed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(path: Path) -> StreamingFile:
        whole = bytearray(path.read_bytes())
        whole[-5] ^= 1
        path.write_bytes(whole)
        return StreamingFile(path)

    monkeypatch.setattr(lwm_jax_writer, "StreamingFile", changed)
    with pytest.raises(OutputError, match="vision_head/kernel reads otherwise"):
        run(tiny_model, tmp_path / "out", to="lwm-jax")
    assert not (tmp_path / "out").exists()


def test_fast_tokenizer_gives_the_same_ids(reference: Path, tmp_path: Path) -> None:
    """`tokenizers`, which transformers and vLLM use, on everything that the reference holds."""
    tokenizer = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    config = ModelConfig(
        text_vocab=520, vision_vocab=34, vision_codes=32, hidden=8, intermediate=8, layers=1,
        heads=1, kv_heads=1, head_dim=8, max_length=64,
    )  # fmt: skip
    fast: FastTokenizer = fast_tokenizer(tokenizer, config)
    cases = json.loads((reference / "tokenizer/tokenizer_golden.json").read_text())["cases"]
    for case in cases:
        assert fast.encode(case["text"]).ids == tokenizer.encode(case["text"])
    assert fast.get_vocab_size() == config.vocab
    assert fast.token_to_id("<|vision_0|>") == 520
    assert fast.token_to_id("<|end_of_vision|>") == 520 + 33
    assert fast.encode("a <|vision_7|><|end_of_frame|>").ids[-2:] == [527, 552]
    assert fast.decode(tokenizer.encode("Hello, wörld.")) == "Hello, wörld."


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (None, UsageError, "--like chat-1m"),
        ("params", FormatError, "no weights are there"),
        ("vqgan", FormatError, "vqgan: missing"),
        ("tokenizer.model", FormatError, "tokenizer"),
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
        run(published, tmp_path / "out", like=relative if spoil not in (None, "params") else None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_cut_off_and_unknown_sources(published: Path, relative: str, tmp_path: Path) -> None:
    whole = (published / "params").read_bytes()
    (published / "params").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="params"):
        run(published, tmp_path / "out", like=relative)
    with pytest.raises(ModelNotFound, match="nano"):
        run("nanno", tmp_path / "out")
    (published / "params").write_bytes(whole)
    with pytest.raises(ModelNotFound, match="chat-1m"):
        run(published, tmp_path / "out", like="chat-1n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published", "relative"]


def test_the_cards_name_is_enough(published: Path, tmp_path: Path) -> None:
    """What a folder is called says which card has its sizes; here they don't fit the weights."""
    named = published.rename(tmp_path / "LWM-Chat-32K")
    with pytest.raises(UsageError, match="32 heads"):
        run(named, tmp_path / "out")


def test_heads_by_the_shape(tmp_path: Path) -> None:
    """The original's own sizes are known by their shapes; of others the heads must be named."""
    config = ModelConfig(
        text_vocab=40, hidden=256, intermediate=256, layers=2, heads=2, kv_heads=2, head_dim=128,
        max_length=2048,
    )  # fmt: skip
    held = Held(weight_tree.to_numpy(weight_tree.init(config, jax.random.key(0))))
    write_streaming(tmp_path / "params", config, held, np.dtype(np.float32))
    found, _ = load_lwm_jax(tmp_path / "params", heads=None, max_length=2048)
    assert found == config
    assert OriginalSizes.of(found).heads == 2


def test_nano_through_the_original_format(tmp_path: Path) -> None:
    """Its pictures and its image tokenizer have other sizes than the original's."""
    run("nano", tmp_path / "jax", to="lwm-jax")
    run(tmp_path / "jax", tmp_path / "back")
    for file in ("vqgan/model.safetensors", "tokenizer.model"):
        before = registry.embedded_path() / file
        assert (tmp_path / "back" / file).read_bytes() == before.read_bytes()
    ours, after = stored(registry.embedded_path()), stored(tmp_path / "back")
    ours["head"] = ours["embed"]  # the original does not tie them
    assert ours.keys() == after.keys()
    assert all(np.array_equal(after[name], tensor) for name, tensor in ours.items())
    assert checkpoint.read_image_config(tmp_path / "back/vqgan") == checkpoint.read_image_config(
        registry.embedded_path() / "vqgan"
    )


def test_a_clone_of_a_repository_is_the_model(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its bare name too where the model is not in the cache, and from inside."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "LWM-Text-1M-Jax"
    folder.mkdir()
    shutil.copy(reference / "tokenizer/tokenizer.model", folder)
    shutil.copy(reference / "text_a/streaming_params", folder / "params")
    for name in (folder.name, f"./{folder.name}", str(folder / "params")):
        assert open_source(name).config.rope_theta == 5e7
    monkeypatch.chdir(folder)
    for name in (".", "params"):
        assert open_source(name).config.rope_theta == 5e7


def test_vision_models_have_one_rotary_base(published: Path, tmp_path: Path) -> None:
    """It is taken where nothing else says it; the heads of this shape are not known."""
    with pytest.raises(UsageError, match="no shape tells how many"):
        open_source(str(published))
    shutil.copy(Path(__file__).parent / "reference/text_a/streaming_params", published / "params")
    with pytest.raises(UsageError, match="does not say its rotary base"):
        open_source(str(published))
    theirs = {"num_attention_heads": 4, "max_position_embeddings": 99, "rope_theta": 3e4}
    (published / "config.json").write_text(json.dumps(theirs))
    config = open_source(str(published)).config
    assert (config.heads, config.max_length, config.rope_theta) == (4, 99, 3e4)
    (published / "config.json").write_text(json.dumps(theirs | {"frame_codes": "x"}))
    with pytest.raises(UsageError, match="frame_codes is 'x'"):
        open_source(str(published))


def test_one_of_several_gguf_files_is_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="holds 2 GGUF files: name one"):
        open_source(str(tmp_path))


def test_what_is_no_model(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a whole LWM streaming file"):
        open_source(str(reference / "tokenizer/tokenizer.model"))
