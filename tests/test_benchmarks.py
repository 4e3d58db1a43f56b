"""What the benchmarks compute beside the clock: a ring in parts, a line through times, plots."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm_core import vqgan
from lwm_core.kernels import dense
from lwm_core.media import read_media

LENGTH = 2048


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("ring", monkeypatch)


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("long", monkeypatch)


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("vision", monkeypatch)


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module(f"benchmarks.{name}")


def test_a_prompt_is_read_beyond_what_the_model_knows(
    long: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, each with its time; the cache is that of two numbers a layer and component."""
    reading = long.read(5000)
    assert len(reading.seconds) == 3
    assert min(reading.seconds) > 0
    assert reading.cache == 2 * 6 * 256 * 4 * 5000 < reading.peak


@pytest.mark.parametrize("order", ["one device", "zigzag", "plain"])
def test_all_that_is_timed_is_attention(ring: ModuleType, order: str) -> None:
    """Values and gradients of the devices together are those of dense attention."""
    tokens = ring.random_tokens(LENGTH)
    parts = ring.shared_out(tokens)[order]
    order_of = np.concatenate([part.places.positions[0] for part in parts])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return dense.attend(q, k, v, tokens.places, tokens.places).out

    out, back = jax.vjp(jax.jit(attend), *tokens[:3])
    seconds, ends = ring.go_around(parts)
    ours = zip(*((out, dq, dk, dv) for out, dq, (dk, dv) in ends), strict=True)
    for one, truth in zip(ours, (out, *back(tokens.d_out)), strict=True):
        np.testing.assert_allclose(jnp.concatenate(one, 2), truth[:, :, order_of], atol=2e-5)
    assert (seconds > 0).all()


def test_zigzag_shares_the_pairs_out_evenly(ring: ModuleType) -> None:
    """Causal, 16 blocks a side: the pairs are a triangle; plain order is nearly twice uneven."""
    shares = ring.shared_out(ring.random_tokens(LENGTH))
    zigzag, plain = (ring.block_pairs(shares[order]) for order in ("zigzag", "plain"))
    assert zigzag.sum() == plain.sum() == 16 * 17 / 2
    assert ring.busiest(zigzag) == 1
    assert ring.busiest(plain) == pytest.approx(15.5 / 8.5)


def test_the_plain_image_tokenizer_is_the_same(vision: ModuleType) -> None:
    """Codes and pixels beside which ours are timed; of random weights none is zero."""
    config, random = vision.TINY, np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in vqgan.shapes(config).items()
    }
    model = vqgan.from_tensors(config, tensors)
    pixels = random.uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    codes = vision.plain_encode(config, tensors, pixels)
    np.testing.assert_array_equal(vqgan.encode(model, pixels), codes)
    drawn = vision.plain_decode(config, tensors, codes)
    np.testing.assert_allclose(vqgan.decode(model, codes), drawn, atol=1e-4)


def test_the_film_that_is_timed_can_be_sought_in(vision: ModuleType, tmp_path: Path) -> None:
    """It repeats its beginning, and is as long as was asked."""
    vision.render(tmp_path / "film.mp4", 4, part=2)
    clip = read_media(tmp_path / "film.mp4", frames=3)
    np.testing.assert_allclose(clip.times, [0, 59 / 30, 119 / 30])
    np.testing.assert_array_equal(clip.frames[1], clip.frames[2])


def test_a_line_through_the_times_of_chunks(long: ModuleType) -> None:
    """The first chunk compiles and is no point of it; a slow one shows."""
    middles = (np.arange(16) + 0.5) * 512
    seconds = 512 * (2e-4 + 3e-8 * middles)
    seconds[0] = 9
    reading = long.Reading(tokens=8192, cache=1, peak=1, flops=1, seconds=seconds.tolist())
    line = long.Line.through(reading)
    assert (line.start, line.slope) == pytest.approx((2e-4, 3e-8))
    assert (line.r2, line.worst) == pytest.approx((1, 1))
    reading.seconds[8] *= 2
    assert long.Line.through(reading).worst > 1.5


def test_a_plot_has_its_points_where_they_are(long: ModuleType) -> None:
    """Two dots at (1, 1) and (2, 2): the second is above, right, and twice as far from zero."""
    points = [long.Curve("", [value], [value], dots=True) for value in (1, 2)]
    pixels = np.asarray(long.plot("", "", "", points))
    colours = [(0x00, 0x22, 0x4E), (0xC0, 0x39, 0x2B)]
    first, second = (np.argwhere((pixels == colour).all(-1)).mean(0) for colour in colours)
    zero = 2 * first - second
    assert second[0] < first[0]
    assert second[1] > first[1]
    np.testing.assert_allclose(zero, [520 - 70, 90], atol=1)
