"""What the benchmarks compute beside the clock: a ring in parts, lines through figures, plots."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import long, peers, quality, ring, startup, table, vision
from lwm_core import bench, vqgan
from lwm_core.kernels import dense
from lwm_core.media import read_media
from lwm_core.tokenizer import Tokenizer

LENGTH = 2048


def test_a_prompt_is_read_beyond_what_the_model_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, each with its time; the cache is that of two numbers a layer and component."""
    reading = long.read(5000)
    assert len(reading.seconds) == 3
    assert min(reading.seconds) > 0
    assert reading.cache == 2 * 6 * 256 * 4 * 5000 < reading.peak


@pytest.mark.parametrize("order", ["one device", "zigzag", "plain"])
def test_all_that_is_timed_is_attention(order: str) -> None:
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


def test_zigzag_shares_the_pairs_out_evenly() -> None:
    """Causal, 16 blocks a side: the pairs are a triangle; plain order is nearly twice uneven."""
    shares = ring.shared_out(ring.random_tokens(LENGTH))
    zigzag, plain = (ring.block_pairs(shares[order]) for order in ("zigzag", "plain"))
    assert zigzag.sum() == plain.sum() == 16 * 17 / 2
    assert ring.busiest(zigzag) == 1
    assert ring.busiest(plain) == pytest.approx(15.5 / 8.5)


def test_the_plain_image_tokenizer_is_the_same() -> None:
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


def test_the_film_that_is_timed_can_be_sought_in(tmp_path: Path) -> None:
    """It repeats its beginning, and is as long as was asked."""
    vision.render(tmp_path / "film.mp4", 4, part=2)
    clip = read_media(tmp_path / "film.mp4", frames=3)
    np.testing.assert_allclose(clip.times, [0, 59 / 30, 119 / 30])
    np.testing.assert_array_equal(clip.frames[1], clip.frames[2])


def test_a_line_through_the_times_of_chunks() -> None:
    """The first chunk compiles and is no point of it; a slow one shows."""
    middles = (np.arange(16) + 0.5) * 512
    seconds = 512 * (2e-4 + 3e-8 * middles)
    seconds[0] = 9
    reading = long.Reading(tokens=8192, cache=1, peak=1, flops=1, seconds=seconds.tolist())
    line = long.Line.through(reading.positions, reading.per_token)
    assert (line.start, line.slope) == pytest.approx((2e-4, 3e-8))
    assert (line.r2, line.worst) == pytest.approx((1, 1))
    reading.seconds[8] *= 2
    assert long.Line.through(reading.positions, reading.per_token).worst > 1.5


def test_a_line_says_how_much_it_explains() -> None:
    """R² of a straight line is the square of the correlation."""
    x = np.arange(20.0)
    y = 3 + 2 * x + np.random.default_rng(0).normal(0, 5, 20)
    assert long.Line.through(x, y).r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_lines_of_cost_over_length() -> None:
    """Time and memory that grow along known lines; of a writing's runs the best counts."""
    lengths = [1024, 2048, 4096]
    readings = [long.Reading(n, n, 500 + 3 * n, 1, list(range(n // 256))) for n in lengths]
    writings = [
        long.Writing(n, n, 400 + 2 * n, [one * (1e-3 + 5e-6 * n) for one in (3, 1, 2)])
        for n in lengths
    ]
    lines = long.Lines.through(readings, writings)
    assert lines.read_time == long.Line.through(readings[-1].positions, readings[-1].per_token)
    for name, start, slope in (
        ("write_time", 1e-3, 5e-6),
        ("read_peak", 500, 3),
        ("write_peak", 400, 2),
    ):
        line = getattr(lines, name)
        assert (line.start, line.slope, line.r2) == pytest.approx((start, slope, 1))


def test_what_is_written_fills_a_made_up_context() -> None:
    """Behind random keys in all slots but the last, which are written in place."""
    writing = long.write(512)
    assert len(writing.seconds) == long.REPEATS
    assert min(writing.seconds) > 0
    places = 2 * 512 * 4 + 4
    assert writing.cache == 2 * 6 * 256 * 4 * 512 + places < writing.peak

    model = long.load_model("nano", dtype="float32", context=512)
    cache = long.random_cache(model, 512)
    kept = np.asarray(cache.keys[0][:, :, :400])
    context = long.Context(bench.random_ids(model.config, 511)[:400].tolist(), cache)
    pieces = list(bench.written(model, 401, 111, context))
    assert sum(ids.shape[1] for ids in pieces) == 111
    np.testing.assert_array_equal(context.cache.positions, np.arange(512)[None])
    np.testing.assert_array_equal(context.cache.segments, 1)
    np.testing.assert_array_equal(context.cache.keys[0][:, :, :400], kept)
    assert (np.asarray(context.cache.keys[0][:, :, 400:]) != 0).any(axis=(0, 1, 3)).all()


def test_loss_of_a_window() -> None:
    """As the definition has it, in float64; the first token is not predicted."""
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(1, 6, 11)), rng.integers(11, size=(1, 6))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = -np.log([shares[0, at, ids[0, at + 1]] for at in range(5)]).mean()
    assert quality.mean_loss(logits.astype(np.float32), ids) == pytest.approx(truth, rel=1e-6)


def test_windows_are_the_text_end_to_end(reference: Path) -> None:
    tokenizer = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    text = "a red circle moving left " * 40
    windows = quality.cut_windows(tokenizer, text, 5, 16)
    assert windows.shape == (5, 16)
    assert windows.ravel().tolist() == tokenizer.encode(text, bos=False)[:80]
    with pytest.raises(SystemExit, match="longer"):
        quality.cut_windows(tokenizer, "a", 5, 16)


def test_formats_are_compared_window_by_window() -> None:
    """The same factor in all windows is sure, however they differ among themselves."""
    plain = np.array([1.0, 2.0, 3.0])
    assert quality.compare(plain + np.log(1.1), plain) == pytest.approx((1.1, 0))
    ratio, margin = quality.compare(np.array([1.0, 1.2]), np.array([1.0, 1.0]))
    assert (ratio, margin) == pytest.approx((np.exp(0.1), np.exp(0.1) * 1.96 * 0.1))


FAKE = """
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    with open(sys.argv[1], "a") as log:
        log.write(sys.argv[2])
    speed = float(len(open(sys.argv[1]).read()))
    print(json.dumps({"speed": speed, "bytes": job["before"]}), flush=True)
"""


def test_peers_take_turns_and_the_best_round_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two made-up programs, which say how many jobs were done so far."""
    machines = iter([bench.Machine(50, 1), bench.Machine(80, 2)])
    monkeypatch.setattr(bench, "measure_machine", lambda how: next(machines))
    log = tmp_path / "log"
    both = [
        peers.Peer(name, "", (sys.executable, "-c", FAKE, str(log), name)) for name in ("a", "b")
    ]
    machine, rows = peers.measure(both, [peers.Job(10, 2), peers.Job(20)], rounds=2)
    assert log.read_text() == "abababab"
    assert machine == bench.Machine(80, 2)
    assert [(row.name, row.job, row.speeds) for row in rows] == [
        ("a", "decode after 10", [1, 5]),
        ("b", "decode after 10", [2, 6]),
        ("a", "prefill 20", [3, 7]),
        ("b", "prefill 20", [4, 8]),
    ]
    assert rows[0].share == pytest.approx(5 * 10 / 80)


def test_a_peer_that_fails_says_why() -> None:
    command = sys.executable, "-c", "import sys; sys.exit('no such weights')"
    with (
        peers.Running(peers.Peer("a", "int8", command)) as running,
        pytest.raises(SystemExit, match="a in int8 failed: no such weights"),
    ):
        running.time(peers.Job(1))


def test_what_is_not_installed_is_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found = list(peers.peers(tmp_path / "m.Q4_1.gguf", None, peers.JOBS, tmp_path))
    assert {one.name for one in found} == {"lwm"}
    assert {one.numbers for one in found} >= {"float32", "bfloat16", "int8"}
    said = capsys.readouterr().out
    assert "transformers is left out" in said
    assert "llama.cpp is left out" in said


def test_a_plot_has_its_points_where_they_are() -> None:
    """Two dots at (1, 1) and (2, 2): the second is above, right, and twice as far from zero."""
    points = [long.Curve("", [value], [value], dots=True) for value in (1, 2)]
    pixels = np.asarray(long.plot("", "", "", points))
    colours = [(0x00, 0x22, 0x4E), (0xC0, 0x39, 0x2B)]
    first, second = (np.argwhere((pixels == colour).all(-1)).mean(0) for colour in colours)
    zero = 2 * first - second
    assert second[0] < first[0]
    assert second[1] > first[1]
    np.testing.assert_allclose(zero, [520 - 70, 90], atol=1)


def test_the_table_sets_each_figure_beside_its_peer() -> None:
    speeds = {
        ("lwm", "int8"): [80, 90],
        ("lwm", "float32"): [30, 28],
        ("lwm", "bfloat16"): [900, 1000],
        ("transformers", "float32"): [15, 12],
        ("llama.cpp", "Q4_1"): [45, 60],
    }
    rows = [
        peers.Row(name, numbers, job.name, some, 0.5 if name == "lwm" and job.written else None)
        for job in peers.JOBS
        for (name, numbers), some in speeds.items()
    ]
    commands = [
        startup.Command("see", "cold", 1.0, 1.5),
        startup.Command("see", "warm", 2.5, 2.6),
        startup.Command("see", "warm", 2.0, 2.9),
        startup.Command("film", "warm", None, 3.3),
    ]
    figures = {
        "peers": {"rows": [asdict(row) for row in rows]},
        "speed": {"figures": [{"job": "train", "numbers": "float32", "speed": 512, "ratio": 2}]},
        "training": {"tokens a second": {"bfloat16": 4500.4}},
        "vision": {
            "encode, ours": 0.9,
            "encode, plain": 0.6,
            "decode, ours": 0.5,
            "decode, plain": 0.5,
            "film": 1.96,
        },
        "startup": {"commands": [asdict(command) for command in commands]},
    }
    found = [row.markdown() for row in table.all_rows(figures)]
    assert found[0] == (
        "| SmolLM2-135M, decode after 512, int8 (50% of memory) | 90 tok/s "
        "| llama.cpp Q4_1: 60 | 1.50 × |"
    )
    assert found[2] == (
        "| SmolLM2-135M, decode after 512, float32 (50% of memory) | 30 tok/s "
        "| transformers float32: 15 | 2.00 × |"
    )
    assert found[4:] == [
        "| SmolLM2-135M, prefill 2048, bfloat16 | 1000 tok/s | llama.cpp Q4_1: 60 | 16.67 × |",
        "| SmolLM2-135M, prefill 2048, int8 | 90 tok/s | llama.cpp Q4_1: 60 | 1.50 × |",
        "| 58M parameters, train, float32 | 512 tok/s | the original, float32: 256 | 2.00 × |",
        "| nano, training, bfloat16 | 4500 tok/s | | |",
        "| image tokenizer, 256×256, encode | 0.9 frames/s | written plainly: 0.6 | 1.50 × |",
        "| image tokenizer, 256×256, decode | 0.5 frames/s | written plainly: 0.5 | 1.00 × |",
        "| 8 frames of an hour of 720p | 1.96 s | | |",
        "| `lwm see`, second run, to the first word | 2 s | | |",
        "| `lwm film`, second run, 8 frames | 3.3 s | | |",
    ]
