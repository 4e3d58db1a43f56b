"""Samples of a model that learns: they are what the model makes, and cost the run nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lwm_core.errors import ConfigError, OutputError
from lwm_core.generate import Message, complete, draw, encode_media, reply
from lwm_core.load import LoadedModel, load_model
from lwm_core.media import prepare, write_image
from lwm_core.sampling import Sampling
from lwm_core.train import samples
from lwm_core.train.samples import Prompt, read_samples, write_samples
from lwm_core.types import Frame

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


def asked(folder: Path, step: int = 7) -> list[dict[str, Any]]:
    return json.loads((folder / f"{step:08d}/samples.json").read_text())["samples"]


def test_words_are_the_likeliest(model: LoadedModel, tmp_path: Path) -> None:
    prompts = [Prompt("chat", "who?", max_tokens=5), Prompt("text", "Once upon", max_tokens=4)]
    place = write_samples(model, prompts, tmp_path, step=7)
    assert place == tmp_path / "00000007"
    chat, text = asked(tmp_path)
    said = reply(model, [Message("user", "who?")], sampling=GREEDY, max_tokens=5)
    assert chat["answer"] == "".join(said) != ""
    assert [text["answer"]] == complete(model, ["Once upon"], sampling=GREEDY, max_tokens=4)
    assert (chat["task"], chat["text"], chat["max_tokens"]) == ("chat", "who?", 5)
    assert list(place.iterdir()) == [place / "samples.json"]


def test_habits_of_the_model_are_kept(model: LoadedModel, tmp_path: Path) -> None:
    lively = dataclasses.replace(model, defaults={"chat": {"temperature": 3.0}})
    write_samples(lively, [Prompt("chat", "who?", max_tokens=8)], tmp_path, step=7)
    hot = Sampling(temperature=3.0)
    said = "".join(reply(model, [Message("user", "who?")], sampling=hot, max_tokens=8))
    assert asked(tmp_path)[0]["answer"] == said
    assert said != "".join(reply(model, [Message("user", "who?")], sampling=GREEDY, max_tokens=8))


def test_pictures_and_clips(model: LoadedModel, tmp_path: Path) -> None:
    prompts = [Prompt("draw", "a hill"), Prompt("film", "a wave", frames=2)]
    place = write_samples(model, prompts, tmp_path, step=7)
    picture, clip = asked(tmp_path)
    events = draw(model, ["a hill"], sampling=Sampling(guidance=2.0))
    (frame,) = (one for one in events if isinstance(one, Frame) and one.complete)
    with Image.open(place / picture["file"]) as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), frame.pixels)
    with Image.open(place / clip["file"]) as film:
        assert (film.n_frames, film.size) == (2, (64, 64))
    again = write_samples(model, prompts[:1], tmp_path, step=8)
    assert (again / "1.png").read_bytes() == (place / "1.png").read_bytes()


def test_what_was_seen_is_kept(model: LoadedModel, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    write_image(tmp_path / "shown.png", pixels)
    prompt = Prompt("see", "what?", media=str(tmp_path / "shown.png"), max_tokens=4)
    place = write_samples(model, [prompt], tmp_path, step=7)
    (sample,) = asked(tmp_path)
    codes = encode_media(model, pixels[None])
    said = reply(model, [Message("user", "what?", (codes,))], sampling=GREEDY, max_tokens=4)
    assert sample["answer"] == "".join(said)
    with Image.open(place / sample["file"]) as kept:
        np.testing.assert_array_equal(np.asarray(kept)[None], prepare(pixels[None], 64))


def test_a_prompt_that_can_not_be_met_costs_itself(model: LoadedModel, tmp_path: Path) -> None:
    prompts = [
        Prompt("film", "too long", frames=100),
        Prompt("see", "what?", media=str(tmp_path / "gone.png")),
        Prompt("text", "Once", max_tokens=2),
    ]
    write_samples(model, prompts, tmp_path, step=7)
    film, see, text = asked(tmp_path)
    assert "make at most" in film["error"]
    assert "gone.png" in see["error"]
    assert text["answer"]
    assert "error" not in text
    blind = dataclasses.replace(model, vqgan=None)
    write_samples(blind, [Prompt("draw", "a hill"), prompts[1]], tmp_path, step=8)
    assert all("knows text only" in sample["error"] for sample in asked(tmp_path, 8))


def test_a_prompt_without_memory_costs_itself(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: Any, **__: Any) -> None:
        jnp.zeros(1 << 50)

    monkeypatch.setattr(samples, "draw", draw)
    prompts = [Prompt("draw", "a hill"), Prompt("text", "Once", max_tokens=2)]
    write_samples(model, prompts, tmp_path, step=7)
    drawn, text = asked(tmp_path)
    assert drawn["error"].startswith("out of memory")
    assert text["answer"]


def test_a_mistake_is_not_taken_for_a_lack_of_memory(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: of another kind")

    monkeypatch.setattr(samples, "draw", draw)
    with pytest.raises(jax.errors.JaxRuntimeError, match="of another kind"):
        write_samples(model, [Prompt("draw", "a hill")], tmp_path, step=7)


def test_what_another_process_does_not_see_is_refused_in_all(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it asked about here, the model would wait for the other."""
    write_image(tmp_path / "shown.png", np.zeros((8, 8, 3), np.uint8))
    prompts = [
        Prompt("see", "what?", media=str(tmp_path / "shown.png"), max_tokens=2),
        Prompt("text", "Once", max_tokens=2),
    ]
    monkeypatch.setattr(samples, "everyone", lambda here: [here, ["no such file", ""]])
    write_samples(model, prompts, tmp_path, step=7)
    see, text = asked(tmp_path)
    assert see["error"] == "no such file"
    assert "answer" not in see
    assert text["answer"]


def test_rounds_are_read_in_order(model: LoadedModel, tmp_path: Path) -> None:
    prompts = [Prompt("text", "Once", max_tokens=2)]
    for step in (100, 20):
        write_samples(model, prompts, tmp_path, step)
    shutil.copytree(tmp_path / "00000020", tmp_path / "unfinished")
    (tmp_path / "unfinished/samples.json").unlink()
    for name, damaged in (("a", b"\xff"), ("b", b"[]"), ("c", b'{"step": 3, "samples": [1]}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.json").write_bytes(damaged)
    rounds = read_samples(tmp_path)
    assert [one.step for one in rounds] == [20, 100]
    assert rounds[0].samples == asked(tmp_path, 20)


def test_a_place_that_can_not_be_written(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(OutputError, match="can't be written"):
        write_samples(model, [], tmp_path / "samples", step=7)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task": "sing"}, "task is 'sing'; choose one of text, chat, see, draw, film"),
        ({"task": "see"}, "media: the task 'see' needs a file"),
        ({"task": "draw", "media": "x.png"}, "media: the task 'see' needs a file"),
        ({"task": "film", "frames": 0}, "frames is 0; it must be at least 1"),
        ({"task": "chat", "max_tokens": -1}, "max_tokens is -1; it must be at least 1"),
    ],
)
def test_prompts_that_say_nonsense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Prompt(text="a hill", **values)
    assert str(caught.value).startswith(words)
