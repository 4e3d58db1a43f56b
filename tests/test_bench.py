"""The bench: that what is timed is what it says, and that shares are of counted work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lwm_cli.app import main
from lwm_core import bench, costs
from lwm_core.axes import MeshSizes
from lwm_core.bench import Lengths, Machine
from lwm_core.costs import Work
from lwm_core.errors import UsageError
from lwm_core.load import LoadedModel, load_model

SHORT = Lengths(read=64, before=32, written=40, trained=64)
UNIT = Machine(bandwidth=1.0, flops=1.0)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model), mesh="dp=8")


def test_every_job_of_a_model_is_measured(tiny: LoadedModel) -> None:
    heard = []
    figures = list(bench.measure(tiny, UNIT, SHORT, 1, heard.append))
    assert [figure.job for figure in figures] == ["prefill", "decode", "train", "encode"]
    assert all(figure.speed > 0 for figure in figures)
    assert [one.phase for one in heard] == [f"measuring {figure.job}" for figure in figures]


def test_shares_are_of_what_is_counted(tiny: LoadedModel) -> None:
    """On a machine of one byte and one FLOP a second a share is the work of a second."""
    config, mesh = tiny.config, MeshSizes(dp=8)
    figures = {figure.job: figure for figure in bench.measure(tiny, UNIT, SHORT, 1)}
    reading = Work(config, "prefill", 64, dtype="float32", cache_dtype="float32")
    writing = Work(config, "decode", 32 + 20, dtype="float32", cache_dtype="float32")
    learning = Work(config, "train", 64, 8, dtype="float32", cache_dtype="float32")
    prefill, decode, train = (figures[job] for job in ("prefill", "decode", "train"))
    assert prefill.share == pytest.approx(costs.flops(reading) / 8 / 64 * prefill.speed)
    assert decode.share == pytest.approx(costs.read(writing, mesh) * decode.speed)
    flops = costs.flops(learning, "none") / 8
    assert train.share == pytest.approx(flops / (8 * 64) * train.speed)
    assert (prefill.limit, decode.limit, train.limit) == ("arithmetic", "memory", "arithmetic")


@pytest.mark.slow
def test_of_a_rounded_model_the_plain_one_learns(tiny: LoadedModel, tiny_model: Path) -> None:
    rounded = load_model(str(tiny_model), mesh="dp=8", quantize="int8")
    (train,) = (one for one in bench.measure(rounded, UNIT, SHORT, 1) if one.job == "train")
    learning = Work(tiny.config, "train", 64, 8)
    flops = costs.flops(learning, "none") / 8
    assert train.share == pytest.approx(flops / (8 * 64) * train.speed)


def test_no_room_to_learn(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "free_memory", lambda devices: 1 << 16)
    assert "train" not in {one.job for one in bench.measure(tiny, UNIT, SHORT, 1)}


def test_what_is_written_is_as_long_as_it_says(tiny: LoadedModel) -> None:
    pieces = list(bench.written(tiny, 20, 70))
    assert sum(ids.shape[1] for ids in pieces) == 70
    assert all(np.isin(ids, range(tiny.config.text_vocab)).all() for ids in pieces)


@pytest.mark.parametrize("context", [128, 1000, 10_000])
def test_lengths_fit(context: int) -> None:
    lengths = Lengths().within(context)
    assert max(lengths.read + 1, lengths.before + lengths.written, lengths.trained) <= context
    assert min(dataclasses.astuple(lengths)) > 0
    if context == 10_000:
        assert lengths == Lengths()
    with pytest.raises(UsageError, match="give a --ctx from 128"):
        Lengths().within(127)


def test_the_command(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(tiny_model), "--mesh", "dp=8", "--ctx", "128", "-q"]) == 0
    shown = capsys.readouterr().out
    assert "% of memory" in shown
    assert "frames" in shown
    arguments = ["bench", "-m", str(tiny_model), "--mesh", "dp=8", "--ctx", "128", "--json"]
    assert main([*arguments, "--quantize", "int8"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["quantize"] == "int8"
    assert facts["machine"]["bandwidth"] > 1e8
    assert [one["job"] for one in facts["figures"]] == ["prefill", "decode", "train", "encode"]


def test_bytes_of_a_written_token(tiny: LoadedModel) -> None:
    """All weights but the embeddings, and the keys and values so far, counted from the arrays."""
    config, length = tiny.config, SHORT.before + SHORT.written // 2
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.params))
    weights -= tiny.params["embed"].nbytes
    cache = 2 * 4 * config.layers * config.kv_heads * config.head_dim * length
    decode = bench.time_decode(tiny, UNIT, SHORT, 1)
    assert decode.share == pytest.approx((weights + cache) * decode.speed, rel=0.05)
