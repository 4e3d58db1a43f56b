"""What an image tokenizer is trained by: its loss, written out in NumPy, and what comes of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import IMAGE

from lwm_core import vqgan
from lwm_core.config import VQConfig
from lwm_core.train import image, read_recipe
from lwm_core.train.drawing import Drawings, drawing_step
from lwm_core.train.image import ImageState, Pictures, image_loss, image_step, initial_state
from lwm_core.train.image_job import ImageJob
from lwm_core.train.optimizer import OptimizerConfig, make_optimizer

SMALL = VQConfig(
    resolution=16, base_channels=8, channel_mult=(1, 2), res_blocks=1, latent_channels=4,
    codes=16, code_dim=4, groups=1,
)  # fmt: skip


def pictures(count: int) -> Pictures:
    """White squares (name 2) on black in the left half of a picture of 16 x 16, or in its right."""
    pixels = np.full((count, 16, 16, 3), -1, np.float32)
    names = np.zeros((count, 8, 8), np.int32)
    for index in range(count):
        left = 2 + 8 * (index % 2)
        pixels[index, 4:8, left : left + 4] = 1
        names[index, 2:4, left // 2 : left // 2 + 2] = 2
    return Pictures(pixels, pixels, names)


def cross_entropy(logits: np.ndarray, names: np.ndarray) -> np.ndarray:
    chosen = np.take_along_axis(logits, names[..., None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - chosen


@pytest.mark.parametrize("free", [False, True])
def test_loss_is_its_six_terms(free: bool) -> None:
    """Free pictures reach decoder and reader as they are."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = initial_state(SMALL, optimizer, optimizer, seed=3)
    batch = pictures(3)._replace(wanted=np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)))
    bypass = jnp.full(3, free)
    loss, (metrics, latents, codes) = image_loss(SMALL, state.params, batch, bypass)

    model = vqgan.VQGAN(SMALL, state.params["model"])
    np.testing.assert_array_equal(codes, np.ravel(vqgan.encode(model, batch.pixels)))
    quantized = np.asarray(model.codebook)[codes]
    read = np.asarray(latents) if free else quantized
    wrong = np.asarray(model.decode_latents(read.reshape(3, 8, 8, 4))) - batch.wanted
    steep = [
        sum(abs(np.diff(x, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))
        for x in (wrong, batch.wanted)
    ]
    entropy = cross_entropy(read @ np.asarray(state.params["reader"]), batch.names.ravel())
    shaped = batch.names.ravel() > 0
    naming = (entropy[shaped].mean() + entropy[~shaped].mean()) / 2
    expected = (
        abs(wrong).mean()
        + image.SQUARED * (wrong**2).mean()
        + image.COMMITMENT * ((np.asarray(latents) - quantized) ** 2).mean()
        + image.EDGES * steep[0].mean()
        + image.OUTLINES * (steep[0] / (steep[1] + image.FEWEST_EDGES)).mean()
        + image.NAMING * naming
    )
    assert float(metrics["error"]) == pytest.approx(abs(wrong).mean(), rel=1e-4)
    assert float(metrics["naming"]) == pytest.approx(naming, rel=1e-4)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_codes_come_to_name_shapes() -> None:
    """A linear reader of the codes alone ends up knowing where the square is."""
    optimizer = make_optimizer(OptimizerConfig(rate=3e-3, end_rate=3e-3, warmup=5), 80)
    state = initial_state(SMALL, optimizer, optimizer, seed=3)
    step = jax.jit(lambda state, batch: image_step(SMALL, optimizer, 0, 20, state, batch))
    batch = pictures(4)
    first = None
    for _ in range(80):
        state, metrics = step(state, batch)
        first = first or float(metrics["error"])
    assert float(metrics["error"]) < 0.5 * first
    model = vqgan.VQGAN(SMALL, state.params["model"])
    codes = np.asarray(vqgan.encode(model, batch.pixels))
    read = np.asarray(model.codebook)[codes] @ np.asarray(state.params["reader"])
    right = read.argmax(-1) == batch.names.reshape(4, 64)
    assert right.mean() > 0.95
    assert right[batch.names.reshape(4, 64) > 0].mean() > 0.9


def test_a_drawing_step_teaches_the_decoder_alone() -> None:
    """It draws from the codes of other patches, where these stand in for its own."""
    optimizer = make_optimizer(OptimizerConfig(rate=3e-3, end_rate=3e-3, warmup=5), 60)
    before = initial_state(SMALL, optimizer, optimizer, seed=3)
    pixels = pictures(2).pixels
    swapped = np.arange(128).reshape(2, 64)[::-1]  # each picture is drawn from the other's codes
    step = jax.jit(lambda state, batch: drawing_step(SMALL, optimizer, state, batch))
    state, errors = before, []
    for _ in range(60):
        state, metrics = step(state, Drawings(pixels, swapped))
        errors.append(float(metrics["error"]))
    assert int(state.step) == 60
    assert errors[-1] < 0.4 * errors[0]
    model = vqgan.VQGAN(SMALL, state.params["model"])
    drawn = vqgan.decode(model, vqgan.encode(model, pixels)[::-1])
    assert float(abs(drawn - pixels).mean()) < 0.4 * errors[0]
    learned = {
        name
        for name, weights in state.params["model"].items()
        if not jax.tree.all(jax.tree.map(np.array_equal, weights, before.params["model"][name]))
    }
    assert learned == {"decoder", "post_quant_conv"}


def test_a_step_that_is_skipped_changes_nothing() -> None:
    """Neither weights nor moments, nor the codebook and the averages behind it."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = initial_state(SMALL, optimizer, optimizer, seed=3)
    batch, patches = pictures(2), np.arange(128).reshape(2, 64)
    lost = np.full_like(batch.pixels, np.nan)
    learn = jax.jit(lambda state, batch: image_step(SMALL, optimizer, 0, 5, state, batch))
    draw = jax.jit(lambda state, batch: drawing_step(SMALL, optimizer, state, batch))
    for step, good, bad in (
        (learn, batch, batch._replace(wanted=lost)),  # its latents are well
        (draw, Drawings(batch.pixels, patches), Drawings(lost, patches)),
    ):
        state, metrics = step(state, good)
        assert not metrics["skipped"]
        after, metrics = step(state, bad)
        assert metrics["skipped"]
        assert int(after.step) == int(state.step) + 1
        jax.tree.map(np.testing.assert_array_equal, learned(after), learned(state))


def learned(state: ImageState) -> tuple[Any, ...]:
    moments = state.moments.moments, state.drawing_moments.moments
    return state.params, *moments, state.counts, state.sums


def test_the_last_steps_are_of_drawing() -> None:
    """Of clips to make, in which what looks alike gets one code."""
    recipe = {**IMAGE, "steps": 5, "batch": 6, "drawing_steps": 2}
    job = ImageJob(read_recipe(recipe), jax.devices()[0])
    batches = [job.batch(index) for index in range(5)]
    assert [type(batch) for batch in batches] == [Pictures] * 3 + [Drawings] * 2
    for batch in batches[3:]:
        assert batch.pixels.shape == (6, 16, 16, 3)
        patches = batch.pixels.reshape(6, 8, 2, 8, 2, 3).swapaxes(2, 3).reshape(6 * 64, -1)
        codes_of = np.ravel(batch.stand_ins)
        np.testing.assert_array_equal(patches[codes_of], patches)
        assert len(np.unique(codes_of)) < 6 * 64
    state = job.initial_state()
    for batch in batches:
        state, metrics = job.step(state, batch)
        assert np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 5
