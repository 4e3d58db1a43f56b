"""The image tokenizer computes what the original computes, under other names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm_core import convolution, frame_batches, vqgan
from lwm_core.config import VQConfig
from lwm_core.errors import FormatError
from lwm_core.formats.vqgan_names import our_name, rename_lwm_vqgan
from lwm_core.formats.vqgan_pickle import load_lwm_vqgan
from lwm_core.frame_batches import (
    batches,
    decode_frames,
    encode_frames,
    make_ready_to_decode,
    to_bytes,
    to_unit,
)

SMALL = VQConfig(
    resolution=16, base_channels=8, channel_mult=(1, 2), res_blocks=1, latent_channels=4,
    codes=16, code_dim=4, groups=4,
)  # fmt: skip


def open_original(path: Path) -> vqgan.VQGAN:
    sizes = json.loads(path.with_name("config.json").read_text())
    config, weights = load_lwm_vqgan(path, resolution=sizes["resolution"])
    return vqgan.from_tensors(config, rename_lwm_vqgan(config, weights))


def assert_golden(path: Path) -> None:
    """Latents, codes and pixels of a model of the original beside the numbers in golden.npz."""
    model = open_original(path)
    with np.load(path.with_name("golden.npz")) as file:
        golden = dict(file)

    def close(ours: Any, theirs: str) -> None:
        np.testing.assert_allclose(ours, golden[theirs], atol=1e-4, rtol=0)

    frames = len(golden["codes"])
    pixels = jnp.asarray(golden["pixel_values"])
    close(model.encoder(pixels), "encoder_out")
    close(model.latents(pixels), "pre_quant")
    codes = np.asarray(vqgan.encode(model, pixels)).reshape(golden["codes"].shape)
    certain = golden["code_margins"] > 1e-3
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(codes[certain], golden["codes"][certain])
    np.testing.assert_array_equal(codes, model.nearest(jnp.asarray(golden["pre_quant"])))

    close(vqgan.decode(model, golden["codes"].reshape(frames, -1)), "recon_from_codes")
    random = golden["random_codes"].reshape(frames, -1)
    made = vqgan.decode(model, random)
    close(made, "random_codes_recon")
    vectors = model.codebook[golden["random_codes"]]
    close(model.decode_latents(vectors), "random_codes_recon_unclipped")
    scaled = (golden["random_codes_recon"] + 1) * 127.5
    uncertain = np.abs(scaled - scaled.round()) < 0.02
    assert (uncertain | (to_bytes(made) == golden["random_codes_uint8"])).all()


def test_original(reference: Path) -> None:
    assert_golden(reference / "vqgan/vqgan_params.pkl")


@pytest.fixture
def tiles_for_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions in tiles for few channels too, which usually do not have them."""
    jax.clear_caches()
    monkeypatch.setattr(convolution, "FEWEST_CHANNELS", 32)
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("tiles_for_all")
def test_original_in_tiles(reference: Path) -> None:
    path = reference / "vqgan/vqgan_params.pkl"
    model = open_original(path)
    size = model.config.resolution
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    assert "in_tiles" in str(jax.make_jaxpr(model.encode)(pixels))
    assert_golden(path)


def test_original_written_by_flax(shared: Path) -> None:
    assert_golden(shared / "reference/vqgan_frozen/vqgan_params_frozendict_jaxarrays.pkl")


def test_published_size(reference: Path) -> None:
    """Every tensor of the published tokenizer, by name and shape, without making any."""
    listed = json.loads((reference / "vqgan/full_size_param_shapes.json").read_text())
    theirs = {
        our_name(tuple(path.split("/"))): tuple(tensor["shape"])
        for path, tensor in listed["params"].items()
    }
    ours = vqgan.shapes(VQConfig())
    assert ours == theirs
    assert sum(np.prod(shape) for shape in ours.values()) == listed["total_parameters"]
    assert VQConfig().grid == 16


def test_other_layers_are_refused(reference: Path) -> None:
    config, weights = load_lwm_vqgan(reference / "vqgan/vqgan_params.pkl", resolution=32)
    without = {name: part for name, part in weights.items() if name != "quant_conv"}
    attention = {**weights, "encoder": {**weights["encoder"], "AttnBlock_0": {"bias": np.ones(3)}}}
    larger = {**weights, "quantize": {"embeddings": np.ones((64, 17), np.float32)}}
    deeper = {**weights, "quantize": {"embeddings": {"a": {"b": {"c": {"d": np.ones(2)}}}}}}
    for broken, reason in [
        (without, "quant_conv.*None, expected"),
        (attention, "AttnBlock_0"),
        (larger, r"codebook is \(64, 17\), expected \(64, 16\)"),
        (deeper, "quantize/embeddings"),
    ]:
        with pytest.raises(FormatError, match=reason):
            rename_lwm_vqgan(config, broken)


def test_weights_go_out_and_come_back() -> None:
    model = vqgan.create(SMALL, seed=3)
    tensors = vqgan.to_tensors(model)
    assert {name: tensor.shape for name, tensor in tensors.items()} == vqgan.shapes(SMALL)
    again = vqgan.to_tensors(vqgan.from_tensors(SMALL, tensors))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_codes_beyond_the_codebook_count_as_the_last() -> None:
    model = vqgan.create(SMALL)
    beyond, last = (np.full((1, SMALL.grid**2), code, np.int32) for code in (99, SMALL.codes - 1))
    np.testing.assert_array_equal(vqgan.decode(model, beyond), vqgan.decode(model, last))


def test_made_ready_it_is_not_compiled_again(caplog: pytest.LogCaptureFixture) -> None:
    model = vqgan.create(SMALL)

    def compiles(frames: int) -> bool:
        """Whether the first drawing of so many frames does."""
        caplog.clear()
        with jax.log_compiles():
            vqgan.decode(model, np.zeros((frames, SMALL.grid**2), np.int32))
        return any("jit(decode)" in message for message in caplog.messages)

    make_ready_to_decode(model, 9)
    assert not compiles(8)
    assert not compiles(1)
    assert compiles(4)


@pytest.mark.parametrize(
    ("platform", "resolution", "frames", "expected"),
    [
        ("cpu", 256, 1, [1]),
        ("cpu", 256, 3, [4]),
        ("cpu", 256, 9, [4, 4, 1]),
        ("cpu", 256, 7, [4, 4]),
        ("cpu", 192, 9, [4, 4, 1]),
        ("cpu", 64, 14, [8, 8]),
        ("cpu", 64, 10, [8, 2]),
        ("cpu", 1024, 2, [1, 1]),
        ("gpu", 1024, 9, [8, 1]),
    ],
)
def test_batches_are_of_few_sizes(
    platform: str,
    resolution: int,
    frames: int,
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert batches(VQConfig(resolution=resolution), frames) == expected


@pytest.mark.parametrize("count", [1, 4, 7, 9])
def test_frames_in_batches_are_those_of_each_alone(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_batches, "AT_ONCE", 4)
    model, random = vqgan.create(SMALL), np.random.default_rng(0)
    frames = random.integers(0, 256, (count, 16, 16, 3), np.uint8)
    codes = encode_frames(model, frames)
    alone = [vqgan.encode(model, to_unit(frame[None])) for frame in frames]
    np.testing.assert_array_equal(codes, np.concatenate(alone))
    drawn = decode_frames(model, codes)
    alone = [to_bytes(vqgan.decode(model, code[None])) for code in codes]
    np.testing.assert_array_equal(drawn, np.concatenate(alone))


def test_bytes() -> None:
    """Truncated, not rounded, as the original does; pixels that came from bytes return to them."""
    values = np.array([-1.0, -0.99, 0.0, 0.999, 1.0], np.float32)
    np.testing.assert_array_equal(to_bytes(values), [0, 1, 127, 254, 255])
    every = np.arange(256, dtype=np.uint8)
    assert np.abs(to_bytes(to_unit(every)).astype(int) - every).max() <= 1
