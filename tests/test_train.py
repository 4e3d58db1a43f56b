"""Training: what it writes, and that a run which was killed goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from originals import stored
from recipes import IMAGE, TEXT, changed

from lwm_core import atomic, checkpoint, transformer, vqgan
from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError, FormatError, OutputError, TrainingError, UsageError
from lwm_core.load import load_model
from lwm_core.tokenizer import Tokenizer
from lwm_core.train import TrainEvent, language_job, loop, train
from lwm_core.train.language import fresh_params

texts = functools.cache(language_job._texts)
"""What tokenizers are trained on, which takes longer than to train one: made once for all tests."""


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe of four steps in two stages, on a little prose of its own."""
    monkeypatch.setattr(language_job, "_texts", texts)
    prose = "".join(f"The house number {n} stood at the sea. " for n in range(40))
    (tmp_path / "prose.txt").write_text(prose)
    return {**TEXT, "prose": [str(tmp_path / "prose.txt")]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrainEvent]]:
    """The output of an image tokenizer's two steps, and their events."""
    output = tmp_path_factory.mktemp("image") / "run"
    return output, list(train(IMAGE, output=output))


@pytest.fixture
def run(whole: tuple[Path, list[TrainEvent]], tmp_path: Path) -> Path:
    """The same output, to go on from."""
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_an_image_tokenizer(whole: tuple[Path, list[TrainEvent]]) -> None:
    output, events = whole
    assert [event.kind for event in events] == ["start", "step", "step", "checkpoint", "done"]
    assert [line["step"] for line in metrics(output)] == [1, 2]
    named = {"loss", "error", "naming", "codes_used", "gradient_norm", "pictures_per_second"}
    assert named <= metrics(output)[0].keys()
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
    assert embed[10:50].std() == pytest.approx(1 / 16, rel=0.1)
    untouched = np.r_[0:10, 50:52]
    np.testing.assert_array_equal(
        embed[untouched], transformer.init(config, jax.random.key(3))["embed"][untouched]
    )


@pytest.mark.parametrize("killed_after", [2, 4])
def test_an_image_tokenizer_killed_and_resumed(killed_after: int, tmp_path: Path) -> None:
    """Before or after its decoder begins to learn alone; nothing tells it from another run."""
    recipe = {**IMAGE, "steps": 5, "drawing_steps": 2, "save_every": 1}
    list(train(recipe, output=tmp_path / "whole"))
    begun = train(recipe, output=tmp_path / "killed")
    assert next(e for e in begun if (e.kind, e.step) == ("checkpoint", killed_after))
    begun.close()
    list(train(recipe, output=tmp_path / "killed", resume=True))
    ours, theirs = (
        (tmp_path / name / "model/vqgan/model.safetensors").read_bytes()
        for name in ("whole", "killed")
    )
    assert ours == theirs


def test_killed_and_resumed_is_uninterrupted(text: dict[str, Any], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    events = list(train(text, output=whole))
    assert [event.step for event in events if event.kind == "checkpoint"] == [2, 4]
    run = train(text, output=killed)
    assert next(event for event in run if event.kind == "step" and event.step == 3)
    run.close()  # the third step is lost, the checkpoint after the second is not
    with (killed / "metrics.jsonl").open("ab") as file:
        file.write(b'what is this?\n\xff\n{"step": 4, "lo')

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


def test_lines_of_metrics_survive_being_killed_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is never without the lines that are kept, not even while it is cleaned up."""
    before = metrics(run)

    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        loop._rewind(run / "metrics.jsonl", 1)
    assert metrics(run) == before


def test_a_run_that_can_not_begin_leaves_nothing(text: dict[str, Any], tmp_path: Path) -> None:
    run, missing = tmp_path / "run", str(tmp_path / "none")
    with pytest.raises(UsageError, match="no checkpoint to go on from"):
        next(train(text, output=run, resume=True))
    with pytest.raises(ConfigError, match=r"image_tokenizer: .*none holds no vqgan/ folder"):
        next(train({**text, "image_tokenizer": missing}, output=run))
    assert not run.exists()
    with pytest.raises(TrainingError, match="Vocabulary size too high"):
        next(train({**text, "tokenizer": 200_000}, output=run))
    assert not list(run.iterdir())


def test_killed_before_the_first_checkpoint_leaves_nothing(
    text: dict[str, Any], tmp_path: Path
) -> None:
    """The next run there begins, with the vocabulary of its own recipe."""
    for size in (500, 600):
        begun = train({**text, "tokenizer": size}, output=tmp_path / "run")
        assert next(begun) == TrainEvent("start", 0, 4)
        begun.close()
        assert Tokenizer.load(tmp_path / "run/tokenizer.model").vocab_size == size


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.codes", 16), ("seed", 1), ("optimizer.name", "muon"), ("optimizer.clip", 2.0)],
)
def test_another_recipe_is_not_gone_on_by(key: str, value: Any, run: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: differs from .*recipe\.json") as caught:
        next(train(changed(IMAGE, key, value), output=run, resume=True))
    assert "\n" not in str(caught.value)
    assert next(train(IMAGE, output=run, resume=True)) == TrainEvent("start", 2, 2)


def test_another_kind_is_not_gone_on_by(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"^kind: differs"):
        next(train(TEXT, output=run, resume=True))


def test_schedules_may_change_on_the_way(run: Path) -> None:
    longer = {**IMAGE, "steps": 3, "save_every": 1, "optimizer": {"rate": 1e-4, "end_rate": 1e-5}}
    events = list(train(longer, output=run, resume=True))
    assert [event.kind for event in events] == ["start", "step", "checkpoint", "done"]
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    written = json.loads((run / "recipe.json").read_text())
    assert (written["steps"], written["optimizer"]["rate"]) == (3, 1e-4)
    with pytest.raises(ConfigError, match=r"^steps: 2, but this run is at 3 already"):
        next(train(IMAGE, output=run, resume=True))


def test_runs_that_did_not_note_their_recipe_go_on(run: Path) -> None:
    (run / "recipe.json").unlink()
    assert next(train(IMAGE, output=run, resume=True)) == TrainEvent("start", 2, 2)
    assert (run / "recipe.json").exists()


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"[1]", b'{"kind": "image"}'])
def test_a_damaged_recipe_of_a_run(damaged: bytes, run: Path) -> None:
    (run / "recipe.json").write_bytes(damaged)
    with pytest.raises(FormatError, match=r"recipe\.json: no recipe: .*remove it") as caught:
        next(train(IMAGE, output=run, resume=True))
    assert "\n" not in str(caught.value)


class Clockwork:
    """A job whose clock goes by one in a step, by 100 when it is written, and never otherwise.

    Its weights and one of its metrics are what they are told to be.
    """

    steps, save_every = 4, 2

    def __init__(self) -> None:
        self.now = 0.0
        self.values: dict[int, dict[str, float]] = {}
        self.weights: dict[int, float] = {}
        self.exports = 0

    def initial_state(self) -> dict[str, jax.Array]:
        return {"step": jnp.int32(0), "weight": jnp.zeros(2)}

    def abstract_state(self) -> dict[str, jax.ShapeDtypeStruct]:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            self.initial_state(),
        )

    def batch(self, index: int) -> int:
        return index

    def step(self, state: dict[str, jax.Array], batch: int) -> tuple[dict, dict]:
        self.now += 1
        step = batch + 1
        weight = jnp.array([0.0, self.weights.get(step, 0.0)])
        metrics = {"loss": 1.0, "gradient_norm": 2.0, **self.values.get(step, {})}
        return {"step": jnp.int32(step), "weight": weight}, metrics

    def size(self, batch: int) -> tuple[str, int]:
        return "things", 6

    def export(self, state: dict[str, jax.Array], directory: Path) -> None:
        self.now += 100
        self.exports += 1


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """What is trained instead, by any recipe."""
    job = Clockwork()
    monkeypatch.setattr(loop, "make_job", lambda recipe, output, mesh, begins: job)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: job.now))
    return job


def test_writing_is_not_charged_to_a_step(clockwork: Clockwork, tmp_path: Path) -> None:
    list(train(IMAGE, output=tmp_path / "run"))
    assert clockwork.exports == 2
    assert [line["things_per_second"] for line in metrics(tmp_path / "run")] == [6.0] * 4


def test_killed_before_its_model_was_written(run: Path) -> None:
    """The last checkpoint is there, the model is not: resuming writes it."""
    shutil.rmtree(run / "model")
    events = list(train(IMAGE, output=run, resume=True))
    assert [event.kind for event in events] == ["start", "done"]
    assert checkpoint.read_vqgan(Path(events[-1].path)) is not None


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_lost_ends_the_run(
    name: str, value: float, clockwork: Clockwork, tmp_path: Path
) -> None:
    clockwork.values[3] = {name: value}
    with pytest.raises(TrainingError, match=f"step 3: {name} is no .* --resume from step 2"):
        list(train(IMAGE, output=tmp_path / "run"))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_weights_that_are_lost_are_not_saved(clockwork: Clockwork, tmp_path: Path) -> None:
    """Though the metrics, which are of the weights before the step, are still well."""
    clockwork.weights[4] = float("nan")
    with pytest.raises(TrainingError, match=r"step 4: a weight is no .* --resume from step 2"):
        list(train(IMAGE, output=tmp_path / "run"))
    assert clockwork.exports == 1
    clockwork.weights.clear()
    assert next(train(IMAGE, output=tmp_path / "run", resume=True)).step == 2


@pytest.mark.parametrize("kind", ["see", "make"])
def test_pictures_need_an_image_tokenizer(kind: str, text: dict[str, Any], tmp_path: Path) -> None:
    mixed = changed(text, f"stages.1.mix.{kind}", 0.1)
    with pytest.raises(ConfigError, match=r"stages\.mix: pictures need an image_tokenizer"):
        next(train(mixed, output=tmp_path / "run"))
    assert not (tmp_path / "run/tokenizer.model").exists()
    next(train(changed(text, f"stages.1.mix.{kind}", 0.0), output=tmp_path / "run"))


def test_goes_on_from_a_model_that_sees(tiny_model: Path, tmp_path: Path, text: Any) -> None:
    stage = {**text["stages"][0], "length": 512, "mix": {"see": 0.5, "make": 0.5}}
    barely = {"rate": 1e-9, "end_rate": 1e-9, "warmup": 0}
    recipe = {**text, "start_from": str(tiny_model), "stages": [stage], "optimizer": barely}
    del recipe["model"]
    list(train(recipe, output=tmp_path / "run"))
    (line,) = metrics(tmp_path / "run")
    assert line["vision_loss"] > 0
    made = load_model(str(tmp_path / "run/model"))
    assert made.config == checkpoint.read_config(tiny_model)
    assert made.vqgan is not None
    for name, weight in stored(tiny_model).items():
        np.testing.assert_allclose(transformer.flatten(made.params)[name], weight, atol=1e-6)


def test_goes_on_with_another_image_tokenizer(tiny_model: Path, tmp_path: Path, text: Any) -> None:
    """It must have as many codes, and as many in a picture."""
    config = checkpoint.read_vqgan(tiny_model).config
    for name, codes in (("same", config.codes), ("more", 2 * config.codes)):
        image = vqgan.create(dataclasses.replace(config, codes=codes), seed=7)
        with checkpoint.new_directory(tmp_path / name, force=False) as folder:
            checkpoint.write_vqgan(folder / checkpoint.VQGAN, image)
    list(train(text, output=tmp_path / "words"))
    (tmp_path / "words/model").rename(tmp_path / "text")
    stage = {**text["stages"][0], "length": 512, "steps": 1, "mix": {"see": 1}}
    recipe = {**text, "start_from": str(tiny_model), "stages": [stage]}
    del recipe["model"]
    recipe["image_tokenizer"] = str(tmp_path / "same")
    list(train(recipe, output=tmp_path / "run"))
    made = checkpoint.read_vqgan(tmp_path / "run/model")
    assert np.array_equal(made.codebook[...], vqgan.create(config, seed=7).codebook[...])
    text_only = {**recipe, "start_from": str(tmp_path / "text"), "stages": text["stages"]}
    with pytest.raises(ConfigError, match=r"same does not fit .*text: .* no ids"):
        list(train(text_only, output=tmp_path / "other"))
    recipe["image_tokenizer"] = str(tmp_path / "more")
    with pytest.raises(ConfigError, match=r"image_tokenizer: .*more does not fit"):
        list(train(recipe, output=tmp_path / "other"))


def test_metrics_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "run/metrics.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match="can't be written"):
        next(train(IMAGE, output=tmp_path / "run"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        next(train(IMAGE, output=tmp_path / "file/run"))


@pytest.mark.parametrize(
    ("key", "value", "words", "kind"),
    [
        ("image_tokenizer", "nowhere", "nowhere", ConfigError),
        ("prose", ["nowhere.txt"], "nowhere.txt", UsageError),
        ("start_from", "nowhere", "nowhere", UsageError),
    ],
)
def test_sources_that_are_not_there(
    key: str, value: Any, words: str, kind: type, text: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**text, key: value}
    if key == "start_from":
        del recipe["model"]
    with pytest.raises(kind, match=words) as caught:
        next(train(recipe, output=tmp_path / "run"))
    assert "\n" not in str(caught.value)
