"""Training: what it writes, and that a run which was killed goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from cases import slow
from clockwork import TICKING, Clockwork, wound_up
from originals import stored
from recipes import IMAGE, TEXT, changed

from lwm_core import atomic, checkpoint, vqgan, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError, FormatError, OutputError, TrainingError, UsageError
from lwm_core.load import load_model
from lwm_core.tokenizer import Tokenizer
from lwm_core.train import TrainEvent, start, train
from lwm_core.train import metrics as metrics_file
from lwm_core.train.language import fresh_params

texts = functools.cache(start._texts)
"""What tokenizers are trained on, which takes longer than to train one: made once for all tests."""


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe of four steps in two stages, on a little prose of its own."""
    monkeypatch.setattr(start, "_texts", texts)
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


def rounds(output: Path) -> list[int]:
    return sorted(int(place.name) for place in (output / "samples").iterdir())


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
        embed[untouched], weight_tree.init(config, jax.random.key(3))["embed"][untouched]
    )


@pytest.mark.parametrize("killed_after", [slow(2), 4])
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
        metrics_file.rewind(run / "metrics.jsonl", 1)
    assert metrics(run) == before


def test_a_run_that_can_not_begin_leaves_nothing(text: dict[str, Any], tmp_path: Path) -> None:
    run, missing = tmp_path / "run", str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"image_tokenizer: .*none holds no vqgan/ folder"):
        next(train({**text, "image_tokenizer": missing}, output=run))
    assert not run.exists()
    with pytest.raises(TrainingError, match="Vocabulary size too high"):
        next(train({**text, "tokenizer": 200_000}, output=run))
    assert not run.exists()


def test_killed_before_the_first_checkpoint_leaves_nothing(
    text: dict[str, Any], tmp_path: Path
) -> None:
    """The next run there begins, with the vocabulary of its own recipe."""
    for size in (500, 600):
        begun = train({**text, "tokenizer": size}, output=tmp_path / "run")
        assert next(begun) == TrainEvent("start", 0, 4)
        begun.close()
        assert Tokenizer.load(tmp_path / "run/tokenizer.model").vocab_size == size


def test_one_command_begins_and_goes_on(clockwork: Clockwork, tmp_path: Path) -> None:
    """As schedulers give it: where nothing was saved yet to go on from, the run begins."""
    run = tmp_path / "run"
    for killed_at, began_at in ((1, 0), (3, 0), (4, 2)):
        events = train(TICKING, output=run, resume=True)
        assert next(events) == TrainEvent("start", began_at, 4)
        next(event for event in events if event.step == killed_at)
        events.close()
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]


def test_samples_of_steps_that_are_taken_again_go(clockwork: Clockwork, tmp_path: Path) -> None:
    """Those that a killed run or another one has left would be told as of this one."""
    clockwork.sample_every = 1
    run = tmp_path / "run"
    list(train(TICKING, output=run))
    (run / "samples/notes").mkdir()
    shutil.rmtree(run / "checkpoints/4")
    assert next(train(TICKING, output=run, resume=True)).step == 2
    (run / "samples/notes").rmdir()
    assert rounds(run) == [1, 2]
    shutil.rmtree(run / "checkpoints")
    assert next(train(TICKING, output=run)).step == 0
    assert rounds(run) == []


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


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """What is trained instead, by any recipe."""
    return wound_up(monkeypatch)


def test_writing_is_not_charged_to_a_step(clockwork: Clockwork, tmp_path: Path) -> None:
    clockwork.evaluate_every = 1
    list(train({**TICKING, "export_every": 2}, output=tmp_path / "run"))
    assert clockwork.exports == 2
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert [line["things_per_second"] for line in lines] == [6.0] * 4
    assert [line["seconds"] for line in lines] == [1.0] * 4
    assert all(line["memory"] > 1e6 and "mfu" not in line for line in lines)


def test_the_share_of_a_known_peak(
    clockwork: Clockwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_file, "_peak_flops", lambda: 2e10)
    list(train(TICKING, output=tmp_path / "run"))
    assert [line["mfu"] for line in metrics(tmp_path / "run")] == [0.25] * 4


def test_flops_of_a_small_model() -> None:
    """By hand: 2 a product, two layers, a head, and the pairs that see each other."""
    config = ModelConfig(
        text_vocab=11, hidden=8, intermediate=12, layers=2, heads=2, kv_heads=1, head_dim=4,
        max_length=16,
    )  # fmt: skip
    rows, length = 3, 16
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12
    products = 2 * rows * length * (2 * layer + 8 * 11)
    pairs = rows * length * (length + 1) // 2
    attention = 2 * 2 * pairs * (2 * 8)
    assert metrics_file.model_flops(config, rows, length) == 3 * (products + attention)


def test_what_is_done_between_steps(clockwork: Clockwork, tmp_path: Path) -> None:
    clockwork.evaluate_every, clockwork.sample_every = 3, 2
    events = list(train(TICKING, output=tmp_path / "run"))
    assert [(event.kind, event.step) for event in events if event.kind != "checkpoint"] == [
        ("start", 0), ("step", 1), ("step", 2), ("sample", 2), ("step", 3), ("evaluation", 3),
        ("step", 4), ("sample", 4), ("done", 4),
    ]  # fmt: skip
    assert metrics(tmp_path / "run")[3] == {"step": 3, "evaluation_loss": 3.0}
    assert rounds(tmp_path / "run") == [2, 4]


def test_what_is_kept_and_exported(clockwork: Clockwork, tmp_path: Path) -> None:
    clockwork.steps = 10
    habits = {"save_every": 1, "keep": 2, "keep_every": 4, "export_every": 5}
    events = list(train({**TICKING, **habits}, output=tmp_path / "run"))
    kept = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {"4", "8", "9", "10"}
    assert clockwork.exports == 2
    assert [event.step for event in events if event.kind == "checkpoint"] == [*range(1, 11)]


@pytest.mark.parametrize("kind", ["step", "evaluation", "sample"])
def test_the_model_on_demand(kind: str, clockwork: Clockwork, tmp_path: Path) -> None:
    """Asked for after a step, or while more is done after it; checkpoints alone write none."""
    clockwork.evaluate_every = clockwork.sample_every = 1
    for event in train({**TICKING, "save_every": 1}, output=tmp_path / "run"):
        if (event.kind, event.step) == (kind, 1):
            os.kill(os.getpid(), signal.SIGUSR1)
        if event.kind == "step":
            assert clockwork.exports == int(event.step > 1)
    assert clockwork.exports == 2


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
        list(train(TICKING, output=tmp_path / "run"))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_skipped_steps_in_a_row_end_the_run(clockwork: Clockwork, tmp_path: Path) -> None:
    """Not those with a good one between them; what is no number is not written."""
    clockwork.steps = 8
    skipped = {"skipped": 1.0, "loss": float("nan")}
    clockwork.values = {step: skipped for step in (1, 2, 4, 5, 6)}
    with pytest.raises(TrainingError, match=r"step 6: 3 steps in a row .* --resume from step 4"):
        list(train({**TICKING, "max_skipped": 3}, output=tmp_path / "run"))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert ["loss" in line for line in lines] == [False, False, True, False, False]


def test_weights_that_are_lost_are_not_saved(clockwork: Clockwork, tmp_path: Path) -> None:
    """Though the metrics, which are of the weights before the step, are still well."""
    clockwork.weights[4] = float("nan")
    with pytest.raises(TrainingError, match=r"step 4: a weight is no .* --resume from step 2"):
        list(train(TICKING, output=tmp_path / "run"))
    assert clockwork.exports == 0
    clockwork.weights.clear()
    assert next(train(TICKING, output=tmp_path / "run", resume=True)).step == 2


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
    written = stored(tmp_path / "run/model")
    for name, weight in stored(tiny_model).items():
        np.testing.assert_allclose(written[name], weight, atol=1e-6)


def test_goes_on_with_another_image_tokenizer(tiny_model: Path, tmp_path: Path, text: Any) -> None:
    """It must have as many codes, and as many in a picture."""
    config = checkpoint.read_vqgan(tiny_model).config
    for name, codes in (("same", config.codes), ("more", 2 * config.codes)):
        image = vqgan.create(dataclasses.replace(config, codes=codes), seed=7)
        with checkpoint.new_directory(tmp_path / name, force=False) as folder:
            checkpoint.write_vqgan(folder / checkpoint.VQGAN, image)
    stage = {**text["stages"][0], "length": 512, "steps": 1, "mix": {"see": 1}}
    recipe = {**text, "start_from": str(tiny_model), "stages": [stage]}
    del recipe["model"]
    recipe["image_tokenizer"] = str(tmp_path / "same")
    list(train(recipe, output=tmp_path / "run"))
    made = checkpoint.read_vqgan(tmp_path / "run/model")
    assert np.array_equal(made.codebook, vqgan.create(config, seed=7).codebook)
    recipe["image_tokenizer"] = str(tmp_path / "more")
    with pytest.raises(ConfigError, match=r"image_tokenizer: .*more does not fit"):
        list(train(recipe, output=tmp_path / "other"))


def test_a_text_model_learns_to_see(tiny_model: Path, tmp_path: Path, text: Any) -> None:
    """It gets ids for pictures and a longer context; what it knew stays as it was."""
    list(train(text, output=tmp_path / "words"))
    words = tmp_path / "words/model"
    recipe = {
        **text,
        "start_from": str(words),
        "image_tokenizer": str(tiny_model),
        "extend": {"max_length": 1024, "rope_theta": 5e4},
        "stages": [{**text["stages"][0], "length": 512, "steps": 1, "mix": {"see": 1}}],
        "optimizer": {"rate": 1e-9, "end_rate": 1e-9, "warmup": 0},
    }
    del recipe["model"]
    list(train(recipe, output=tmp_path / "run"))
    before, after = (checkpoint.read_config(path) for path in (words, tmp_path / "run/model"))
    image = checkpoint.read_vqgan(tiny_model).config
    assert (after.max_length, after.rope_theta) == (1024, 5e4)
    assert (after.text_vocab, after.vision_codes) == (before.vocab, image.codes)
    rows = stored(tmp_path / "run/model")["embed"]
    np.testing.assert_allclose(rows[: before.vocab], stored(words)["embed"], atol=1e-6)
    assert rows[before.vocab :].std() == pytest.approx(stored(words)["embed"].std(), rel=0.1)


def test_metrics_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "run/metrics.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"can't write .*/run/metrics\.jsonl: Is a directory"):
        next(train(IMAGE, output=tmp_path / "run"))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't write .*/file/run: Not a directory"):
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
