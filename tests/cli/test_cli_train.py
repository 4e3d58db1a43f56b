"""`lwm train`: recipes, settings, and what is shown of the events."""

from __future__ import annotations

import io
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lwm_cli import app, failures, live, ui
from lwm_cli.loading import sampling_for
from lwm_cli.train import complete_recipe
from lwm_cli.ui import Screen
from lwm_core.errors import FormatError, OutputError, TrainingError
from lwm_core.train import read_recipe, to_document
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
        output.mkdir(parents=True, exist_ok=True)
        with (output / "metrics.jsonl").open("a") as lines:
            for step in (1, 2):
                event = TrainEvent("step", step, 2, {"loss": 1.23456 / step})
                lines.write(json.dumps({"step": step, **event.metrics}) + "\n")
                lines.flush()
                yield event
        yield TrainEvent("checkpoint", 2, 2, path="out/checkpoints/2")
        yield TrainEvent("done", 2, 2, path="out/model")

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
    assert said.out == "out/model\n"
    assert said.err.splitlines() == [
        "step 1/2  loss 1.235",
        "checkpoint 2/2  out/checkpoints/2",
        "done 2/2  out/model",
        "loss 0.6173",
    ]
    assert "0.6173" in Path("runs/tiny/report.html").read_text()


@pytest.mark.parametrize(("step", "says_so"), [(0, True), (2, False)])
def test_an_output_without_a_checkpoint_to_resume_is_noted(
    step: int,
    says_so: bool,
    trained: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run begins there all the same, but whoever misspelt its name can see it."""

    def train(recipe: dict[str, Any], *, output: Path, **_: Any) -> Iterator[TrainEvent]:
        yield TrainEvent("start", step, 4)

    monkeypatch.setattr("lwm_core.train.train", train)
    assert app.main(["train", "tiny.toml", "--resume", "-o", "rum"]) == 0
    note = "rum holds no checkpoint to go on from: this run begins anew"
    assert (note in capsys.readouterr().err.splitlines()) == says_so


def test_settings_that_a_run_goes_on_without_are_told(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ["train", "tiny.toml", "-o", "out", "--set", "optimizer.rate=0.5"]
    recipe = read_recipe({**tomllib.loads(RECIPE), "optimizer": {"rate": 0.5}})
    Path("out").mkdir()
    Path("out/recipe.json").write_text(json.dumps(to_document(recipe)))
    note = "optimizer.rate was 0.5 and is 0.001 now"
    assert app.main([*begun, "--resume"]) == 0
    assert note not in capsys.readouterr().err
    assert app.main(["train", "tiny.toml", "-o", "out", "--resume"]) == 0
    assert note in capsys.readouterr().err


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


class Wandb:
    """As the package of that name: it remembers what runs were begun, and what was logged."""

    class Error(Exception):
        pass

    Settings = dict

    def __init__(self) -> None:
        self.began: list[dict[str, Any]] = []
        self.logged: list[Any] = []
        self.refuses = False

    def init(self, **settings: Any) -> Wandb:
        if self.refuses:
            raise self.Error("no\nkey")
        self.began.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def __enter__(self) -> Wandb:
        return self

    def __exit__(self, *raised: object) -> None:
        self.logged.append("finished")


def test_curves_for_weights_and_biases(
    trained: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert app.main(["train", "tiny.toml", "--wandb"]) == 0
    points = [{"step": step, "loss": 1.23456 / step} for step in (1, 2)]
    assert service.logged == [*points, "finished"]
    assert app.main(["train", "tiny.toml", "--wandb", "--resume"]) == 0
    assert app.main(["train", "tiny.toml", "--wandb"]) == 0
    first, resumed, other = service.began
    assert (first["project"], first["name"], first["config"]["batch"]) == ("lwm", "tiny", 4)
    assert first["id"] == resumed["id"] != other["id"]

    service.refuses = True
    assert app.main(["train", "tiny.toml", "--wandb"]) == failures.FAILED
    assert capsys.readouterr().err.endswith("lwm: error: Weights & Biases: no key\n")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert app.main(["train", "tiny.toml", "--wandb"]) == failures.WRONG_USAGE
    assert "[logs]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "is_reported"), [(TrainingError("too much"), True), (OutputError("full"), False)]
)
def test_a_run_that_failed_is_reported(
    error: Exception,
    is_reported: bool,
    trained: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the disk is full nothing more is written; the error says why."""

    def train(recipe: dict[str, Any], *, output: Path, **_: Any) -> Iterator[TrainEvent]:
        output.mkdir(parents=True)
        yield TrainEvent("start", 0, 2)
        raise error

    monkeypatch.setattr("lwm_core.train.train", train)
    assert app.main(["train", "tiny.toml"]) == failures.FAILED
    assert capsys.readouterr().err.endswith(f"lwm: error: {error}\n")
    assert Path("runs/tiny/report.html").exists() == is_reported


def test_a_report_that_fails_does_not_hide_why_the_run_did(
    trained: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(recipe: dict[str, Any], *, output: Path, **_: Any) -> Iterator[TrainEvent]:
        (output / "report.html").mkdir(parents=True)  # in the report's place
        yield TrainEvent("start", 0, 2)
        raise TrainingError("too much")

    monkeypatch.setattr("lwm_core.train.train", train)
    assert app.main(["train", "tiny.toml"]) == failures.FAILED
    assert capsys.readouterr().err.endswith("lwm: error: too much\n")


def test_a_report_that_fails_does_not_end_the_run(
    trained: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, though the report is tried after the checkpoint and at the end."""
    Path("runs/tiny/report.html").mkdir(parents=True)  # in the report's place
    assert app.main(["train", "tiny.toml"]) == 0
    said = capsys.readouterr()
    assert said.out == "out/model\n"
    notes = [line for line in said.err.splitlines() if line.startswith("no report: ")]
    assert notes == ["no report: can't write runs/tiny/report.html: Is a directory"]


def test_a_run_that_can_not_begin_is_not_reported(
    trained: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: dict[str, Any], **_: Any) -> Iterator[TrainEvent]:
        raise TrainingError("no vocabulary")
        yield

    monkeypatch.setattr("lwm_core.train.train", train)
    assert app.main(["train", "tiny.toml"]) == failures.FAILED
    assert not Path("runs").exists()


# What is shown

EVENTS = [
    TrainEvent("start", 100, 1000),
    TrainEvent("step", 101, 1000, {
        "loss": 2.34567, "text_loss": 2.1, "vision_loss": 2.62, "gradient_norm": 1.0,
        "tokens_per_second": 123456.7, "mfu": 0.413, "memory": 11.25 * 2**30, "packed": 0.9812,
        "skipped": 1.0, "seconds": 3.0,
    }),
    TrainEvent("evaluation", 101, 1000, {"evaluation_loss": 2.5}),
    TrainEvent("sample", 101, 1000, path="run/samples"),
    TrainEvent("checkpoint", 101, 1000, path="run/checkpoints/101"),
    TrainEvent("step", 102, 1000, {"loss": 2.25, "skipped": 1.0, "seconds": 1.0}),
]  # fmt: skip


def test_lines_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ui, "SECONDS_BETWEEN_LINES", 0.0)
    view = live.LiveView(Screen())
    for event in EVENTS:
        view.show(event)
    rest = "tokens/s 123,457  MFU 41%  memory 11.2 GiB  packed 98.1%"
    assert capsys.readouterr().err.splitlines() == [
        "start 100/1000",
        f"step 101/1000  loss 2.346  text 2.100  vision 2.620  {rest}  skipped 1  left 44 min 57 s",
        "evaluation 101/1000  evaluation_loss 2.5",
        "sample 101/1000  run/samples",
        "checkpoint 101/1000  run/checkpoints/101",
        f"step 102/1000  loss 2.250  text 2.100  vision 2.620  evaluated 2.500  {rest}  skipped 2  "
        "left 29 min 56 s",
    ]


def test_figures_above_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them find room in a terminal of 80 columns."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Screen() as screen:
        view = live.LiveView(screen)
        for event in EVENTS:
            view.show(event)
        view.close()
    drawn = re.sub(r"\x1b\[[\d?;]*\w", "", terminal.getvalue())
    headings = "loss text vision evaluated tokens/s MFU memory packed skipped"
    values = "2.250 2.100 2.620 2.500 123,457 41% 11.2 GiB 98.1% 2"
    assert re.search(r"\s+".join(headings.split()), drawn)
    assert re.search(
        r"\s+".join(values.split()) + r"\s+training .* 102/1000 steps, 101 saved", drawn
    )
    assert drawn.rstrip().endswith("packed 98.1% · skipped 2")
    assert "…" not in drawn


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
