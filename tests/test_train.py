"""Training: what it writes, and that a run which was killed goes on as if nothing had happened."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lwm_core import checkpoint, transformer, vqgan
from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError, OutputError, UsageError
from lwm_core.load import load_model
from lwm_core.train import TrainEvent, read_recipe, train
from lwm_core.train.language import fresh_params

IMAGE = {
    "kind": "image",
    "steps": 2,
    "batch": 2,
    "model": {
        "resolution": 16, "base_channels": 4, "channel_mult": [1, 2], "res_blocks": 1,
        "latent_channels": 4, "codes": 8, "code_dim": 4, "groups": 2,
    },
    "optimizer": {"rate": 1e-3},
}  # fmt: skip

TEXT = {
    "kind": "language",
    "save_every": 2,
    "model": {"hidden": 16, "intermediate": 24, "layers": 1, "heads": 2, "max_length": 256},
    "optimizer": {"rate": 1e-2, "warmup": 1},
    "defaults": {"chat": {"temperature": 0.5}},
    "stages": [
        {
            "steps": steps, "length": 192, "rows": 2, "frames": [1, 1], "characters": [20, 60],
            "mix": {"dialogue": 0.8, "prose": 0.2},
        }
        for steps in (1, 3)
    ],
}  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Any]:
    """A recipe of four steps in two stages, on a little prose of its own."""
    prose = "".join(f"The house number {n} stood at the sea. " for n in range(40))
    (tmp_path / "prose.txt").write_text(prose)
    return {**TEXT, "prose": [str(tmp_path / "prose.txt")]}


@pytest.fixture
def place(tmp_path: Path, reference: Path) -> Any:
    """Makes output directories that hold a tokenizer already, so that none is trained."""

    def place(name: str) -> Path:
        (tmp_path / name).mkdir()
        shutil.copy(reference / "tokenizer/tokenizer.model", tmp_path / name)
        return tmp_path / name

    return place


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def changed(recipe: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A recipe with one value replaced, or without it if the value is None."""
    recipe = copy.deepcopy(recipe)
    *outer, last = key.split(".")
    table = recipe
    for name in outer:
        table = table[int(name) if isinstance(table, list) else name]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return recipe


def test_an_image_tokenizer(tmp_path: Path) -> None:
    output = tmp_path / "run"
    events = list(train(IMAGE, output=output))
    assert [event.kind for event in events] == ["start", "step", "step", "checkpoint", "done"]
    assert [line["step"] for line in metrics(output)] == [1, 2]
    assert {"loss", "error", "codes_used", "pictures_per_second"} <= metrics(output)[0].keys()
    image = checkpoint.read_vqgan(Path(events[-1].path))
    assert image is not None
    codes = vqgan.encode(image, np.zeros((1, 16, 16, 3), np.float32))
    assert codes.shape == (1, 64)


def test_codes_that_look_alike_begin_alike() -> None:
    config = ModelConfig(
        text_vocab=10, hidden=256, intermediate=8, layers=1, heads=1, kv_heads=1, head_dim=256,
        max_length=8, vision_vocab=42, vision_codes=40, frame_codes=4,
    )  # fmt: skip
    codebook = np.random.default_rng(0).standard_normal((20, 8)).repeat(2, 0)
    embed = np.asarray(fresh_params(config, 3, codebook)["embed"])
    codes = embed[10:50] / np.linalg.norm(embed[10:50], axis=1, keepdims=True)
    likeness = codes @ codes.T
    twins = likeness[np.arange(0, 40, 2), np.arange(1, 40, 2)]
    strangers = likeness[::2, ::2][~np.eye(20, dtype=bool)]
    assert twins.mean() == pytest.approx(0.5, abs=0.1)
    assert abs(strangers).mean() < 0.3
    assert embed[10:50].std() == pytest.approx(0.02, rel=0.1)
    untouched = np.r_[0:10, 50:52]
    np.testing.assert_array_equal(
        embed[untouched], transformer.init(config, jax.random.key(3))["embed"][untouched]
    )


def test_killed_and_resumed_is_uninterrupted(text: dict[str, Any], place: Any) -> None:
    whole, killed = place("whole"), place("killed")
    events = list(train(text, output=whole))
    assert [event.step for event in events if event.kind == "checkpoint"] == [2, 4]
    run = train(text, output=killed)
    assert next(event for event in run if event.kind == "step" and event.step == 3)
    run.close()  # the third step is lost, the checkpoint after the second is not
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('what is this?\n{"step": 4, "lo')

    with pytest.raises(UsageError, match="--resume"):
        next(train(text, output=killed))
    resumed = list(train(text, output=killed, resume=True))
    assert resumed[0] == TrainEvent("start", 2, 4)
    assert [line["step"] for line in metrics(killed)] == [1, 2, 3, 4]
    for name in ("loss", "text_loss", "gradient_norm"):
        assert [one[name] for one in metrics(killed)] == [one[name] for one in metrics(whole)]
    ours, theirs = ((each / "model/model.safetensors").read_bytes() for each in (whole, killed))
    assert ours == theirs

    model = load_model(str(whole / "model"))
    assert model.vqgan is None
    assert model.defaults == {"chat": {"temperature": 0.5}}
    assert list(train(text, output=whole, resume=True))[-1].kind == "done"


def test_goes_on_from_a_model_that_sees(tiny_model: Path, tmp_path: Path, text: Any) -> None:
    stage = {**text["stages"][0], "length": 512, "mix": {"see": 0.5, "make": 0.5}}
    recipe = {**text, "start_from": str(tiny_model), "stages": [stage]}
    del recipe["model"]
    list(train(recipe, output=tmp_path / "run"))
    (line,) = metrics(tmp_path / "run")
    assert line["vision_loss"] > 0
    made = load_model(str(tmp_path / "run/model"))
    assert made.config == checkpoint.read_config(tiny_model)
    assert made.vqgan is not None


@pytest.mark.parametrize(
    ("recipe", "key", "value", "words"),
    [
        (IMAGE, "kind", "music", "kind is 'music'"),
        (IMAGE, "kind", None, "kind is None"),
        (IMAGE, "stpes", 3, "stpes: no such key"),
        (IMAGE, "batch", None, "batch: missing"),
        (IMAGE, "batch", "many", "batch: int is needed"),
        (IMAGE, "batch", True, "batch: int is needed"),
        (IMAGE, "model", 3, "model: a table is needed"),
        (IMAGE, "model.codes", 1.5, "model.codes: int is needed"),
        (IMAGE, "model.channel_mult", [1, "x"], r"model.channel_mult\[1\]: int is needed"),
        (IMAGE, "optimizer.name", "sgd", "optimizer.name is 'sgd'"),
        (TEXT, "stages", [], "stages: at least one"),
        (TEXT, "stages.0.mix", {"see": "much"}, r"stages\[0\].mix.see: float is needed"),
        (TEXT, "stages.1.frames", [1], r"stages\[1\].frames: 2 values are needed"),
        (TEXT, "model", None, "model, start_from: give exactly one"),
        (TEXT, "start_from", "x", "model, start_from: give exactly one"),
    ],
)
def test_wrong_recipes(recipe: dict[str, Any], key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_recipe(changed(recipe, key, value))
    assert "\n" not in str(caught.value)


def test_whole_numbers_serve_as_fractions() -> None:
    assert read_recipe(changed(IMAGE, "optimizer.rate", 1)).optimizer.rate == 1.0


def test_metrics_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "run/metrics.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match="can't be written"):
        next(train(IMAGE, output=tmp_path / "run"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        next(train(IMAGE, output=tmp_path / "file/run"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image_tokenizer", "nowhere", "nowhere"),
        ("prose", ["nowhere.txt"], "nowhere.txt"),
        ("start_from", "nowhere", "nowhere"),
    ],
)
def test_sources_that_are_not_there(
    key: str, value: Any, words: str, text: dict[str, Any], place: Any
) -> None:
    recipe = {**text, key: value}
    if key == "start_from":
        del recipe["model"]
    with pytest.raises((UsageError, OutputError, ConfigError), match=words) as caught:
        next(train(recipe, output=place("run")))
    assert "\n" not in str(caught.value)
