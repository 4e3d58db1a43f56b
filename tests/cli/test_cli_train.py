"""`lwm train`: recipes, settings, and what is shown of the events."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lwm_cli import app, failures
from lwm_cli.loading import sampling_for
from lwm_cli.train import complete_recipe
from lwm_core.errors import FormatError
from lwm_core.train.events import TrainEvent

RECIPE = """
kind = "image"
steps = 20
batch = 4
[model]
base_channels = 32
channel_mult = [1, 2]
[optimizer]
rate = 1e-3
"""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Every played training: (recipe, output, resume, mesh)."""
    trained: list[tuple[Any, ...]] = []

    def train(
        recipe: dict[str, Any], *, output: Path, resume: bool, mesh: str
    ) -> Iterator[TrainEvent]:
        trained.append((recipe, output, resume, mesh))
        for step in (1, 2):
            yield TrainEvent("step", step, 2, {"loss": 1.23456 / step})
        yield TrainEvent("checkpoint", 2, 2, path="out/2")

    monkeypatch.setattr("lwm_core.train.train", train)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return trained


def test_a_file_and_its_output(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["train", "tiny.toml"]) == 0
    assert trained == [(tomllib.loads(RECIPE), Path("runs/tiny"), False, "auto")]
    said = capsys.readouterr()
    assert said.out == "out/2\n"
    assert said.err.splitlines() == ["step 1/2  loss 1.235", "checkpoint 2/2"]


def test_curves_for_tensorboard(
    trained: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[Any] = []
    writer = SimpleNamespace(
        add_scalar=lambda *point: drawn.append(point), close=lambda: drawn.append("closed")
    )

    def open_writer(folder: str) -> SimpleNamespace:
        drawn.append(folder)
        return writer

    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorboard.summary", SimpleNamespace(Writer=open_writer))
    assert app.main(["train", "tiny.toml", "--tensorboard"]) == 0
    points = [("loss", 1.23456, 1), ("loss", 1.23456 / 2, 2)]
    assert drawn == ["runs/tiny/curves", *points, "closed"]

    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)  # as if it were not installed
    assert app.main(["train", "tiny.toml", "--tensorboard"]) == failures.WRONG_USAGE
    assert "[logs]" in capsys.readouterr().err
    assert len(trained) == 1


def test_dry_run_shows_all_settings(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["train", "tiny.toml", "--dry-run", "--set", "seed=7"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["kind"] == "image"
    assert (shown["steps"], shown["seed"], shown["model"]["groups"]) == (20, 7, 32)
    assert not trained


def test_recipes_of_the_package_are_valid_and_complete(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = complete_recipe("nano")
    assert set(names) >= {"nano", "nano-vqgan"}
    for name in names:
        assert app.main(["train", name, "--dry-run"]) == 0


def test_settings(trained: list[tuple[Any, ...]]) -> None:
    changes = ["steps=5", "model.channel_mult.1=4", "optimizer.rate = 2e-3", "model.groups=16"]
    arguments = [word for change in changes for word in ("--set", change)]
    arguments += ["-o", "out", "--resume", "--mesh", "dp=2"]
    assert app.main(["train", "tiny.toml", *arguments]) == 0
    recipe, output, resume, mesh = trained[0]
    assert mesh == "dp=2"
    assert recipe["steps"] == 5
    assert recipe["model"] == {"base_channels": 32, "channel_mult": [1, 4], "groups": 16}
    assert recipe["optimizer"] == {"rate": 2e-3}
    assert (output, resume) == (Path("out"), True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.toml"], "can't open missing.toml"),
        (["broken.toml"], "broken.toml is no valid TOML: "),
        (["."], "can't open ."),
        (["tiny.toml", "--set", "steps"], "--set steps"),
        (["tiny.toml", "--set", "=3"], "--set =3"),
        (["tiny.toml", "--set", "steps=many"], "steps: int is needed, not 'many'"),
        (["tiny.toml", "--set", "model.channel_mult.2=4"], "no such place"),
        (["tiny.toml", "--set", "model.layers=3"], "model.layers"),
        (["tiny.toml", "--set", "steps.more=3"], "no such place"),
        (["tiny.toml", "--set", "save_every=0"], "save_every is 0; it must be at least 1"),
        (["tiny.toml", "--set", "optimizer.rate=0"], "optimizer.rate is 0.0; it must be above 0"),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: str,
    trained: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("broken.toml").write_text("steps = \n")
    assert app.main(["train", *arguments]) == failures.WRONG_USAGE
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not trained


@pytest.mark.parametrize("habits", [{"topk": 3}, {"top_k": "all"}])
def test_habits_of_a_model_that_sampling_does_not_know(habits: dict[str, Any]) -> None:
    """A recipe can't say them; a model directory of other origin may."""
    model: Any = SimpleNamespace(name="stray", defaults={"draw": habits})
    with pytest.raises(FormatError, match=r"^stray: its defaults for draw are wrong: ") as caught:
        sampling_for("draw", model)
    assert "\n" not in str(caught.value)
    assert sampling_for("film", model, top_k=7).top_k == 7
