"""`lwm tokenize` with a real image tokenizer: what it writes and shows, and when it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lwm_cli import app, failures
from lwm_cli import tokenize as command
from lwm_core.source import open_image
from lwm_core.tokenize import flow
from lwm_core.types import Progress


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a folder of pictures and one of a bad one; LWM_HOME lies in it."""
    monkeypatch.setenv("LWM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LWM_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "bad"):
        Path(name).mkdir()
    for number in range(3):
        colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
        Image.new("RGB", (40, 30), colour).save(f"pictures/{number}.png")
    Path("bad/x.mp4").write_text("no film")
    return tmp_path


@pytest.fixture(scope="module")
def opened() -> Callable:
    """How a model's image tokenizer is opened: for all tests once."""
    return cache(open_image)


@pytest.fixture
def tokenize(tiny_model: Path, opened: Callable, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command with the tiny model, into `data`."""
    monkeypatch.setattr(flow, "open_image", opened)
    return ["tokenize", "-m", str(tiny_model), "-o", "data"]


def test_a_data_set(tokenize: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/1.txt").write_text("all one colour")
    assert app.main([*tokenize, "pictures", "bad", "--tasks", "see,draw"]) == 0
    said = capsys.readouterr()
    assert said.out == "data\n"
    assert said.err.startswith("3 files · 3 frames · ")
    words = " · 1 see · 1 draw · 2 without words · 1 failed, see data/errors.jsonl\n"
    assert said.err.endswith(words)
    lines = Path("data/data-00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["0.png", "1.png", "1.png", "2.png"]
    assert json.loads(lines[1])["output"] == "all one colour"
    assert json.loads(Path("data/tokens.json").read_text())["frames"] == 8
    assert app.main([*tokenize, "pictures", "--tasks", "see, draw", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["media"], told["before"], told["shards"]) == ("data", 0, 3, 1)


def test_words_that_are_not_used_are_told(
    tokenize: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pictures/t.csv").write_text("file,capton\n0.png,green\n")
    assert app.main([*tokenize, "pictures", "--tasks", "draw"]) == 0
    note, figures = capsys.readouterr().err.splitlines()
    assert note.startswith("pictures/t.csv: not used: capton (columns are file, ")
    assert figures.endswith(" · 0 draw · 3 without words")


def test_what_has_changed_is_said(tokenize: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Path(f"pictures/{number}.txt").write_text("all one colour")
    assert app.main([*tokenize, "pictures"]) == 0
    Path("pictures/1.txt").write_text("green")
    shard = Path("data/data-00000.jsonl")
    shard.write_bytes(shard.read_bytes()[:-20])
    capsys.readouterr()
    assert app.main([*tokenize, "pictures"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("1 file · 1 frame · ")
    assert " · 2 were there · 1 of them with other words · 1 damaged line left out" in said
    outputs = [json.loads(line)["output"] for line in shard.read_text().splitlines()]
    assert outputs == ["all one colour", "green"]


def test_fps_takes_all_frames_unless_they_are_counted(tokenize: list[str]) -> None:
    frames = [Image.new("RGB", (40, 30), (25 * index, 0, 0)) for index in range(10)]
    frames[0].save("clip.gif", save_all=True, append_images=frames[1:], duration=1000)
    for options, count in [(["--fps", "1"], 10), ([], 8), (["--fps", "1", "--frames", "3"], 3)]:
        folder = f"{count} frames"
        assert app.main([*tokenize, "clip.gif", *options, "-o", folder, "-q"]) == 0
        record = json.loads(Path(folder, "data-00000.jsonl").read_text())
        assert len(record["vision"]) == 64 * count


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["none"], "no such file", failures.WRONG_USAGE),
        (["pictures", "--tasks", "look"], "'look'", failures.WRONG_USAGE),
        (["pictures", "--frames", "0"], "frames", failures.WRONG_USAGE),
        (["pictures", "-m", "text-1m"], "lwm download", failures.WRONG_USAGE),
        (["pictures", "-o", "pictures"], "holds", failures.WRONG_USAGE),
        ([], "SRC", failures.WRONG_USAGE),
        (["bad"], "errors.jsonl", failures.FAILED),
    ],
)
def test_what_can_not_be(
    arguments: list[str],
    words: str,
    code: int,
    tokenize: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main([*tokenize, *arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["0.png", "1.png", "2.png"]


def test_other_options_name_themselves(
    tokenize: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*tokenize, "pictures", "-q"]) == 0
    assert app.main([*tokenize, "pictures", "--frames", "4"]) == failures.WRONG_USAGE
    assert "data was made with --frames 8: " in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tokenize: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as pressed:
        pressed.setattr(command._Reporter, "__call__", interrupt)
        assert app.main([*tokenize, "pictures"]) == failures.INTERRUPTED
    assert "the same command goes on from there" in capsys.readouterr().err
    assert app.main([*tokenize, "pictures"]) == 0


def test_lines_where_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ten files six were there; two take 20 s, so the last two take as long."""
    now = iter([0.0, 1.0, 5.0, 20.0, 21.0])
    monkeypatch.setattr(command, "time", type("Clock", (), {"monotonic": lambda: next(now)}))
    report = command._Reporter(command.Screen())
    for done in (6, 7, 8, 9):
        report(Progress("tokenizing", done, 10, "files  1.0 frames/s"))
    assert capsys.readouterr().err == "8/10 files  1.0 frames/s  20 s left\n"


def test_a_run_that_is_killed_goes_on(tokenize: list[str], tiny_model: Path) -> None:
    for number in range(300):
        Image.new("RGB", (40, 30), (number % 256, number // 256, 99)).save(f"pictures/{number}.png")
    assert app.main([*tokenize, "pictures", "-o", "whole", "-q"]) == 0
    program = [sys.executable, "-m", "lwm_cli", *tokenize, "pictures"]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        part = Path("data/.data.part")
        while run.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert app.main([*tokenize, "pictures", "-q"]) == 0
    for name in ("data-00000.jsonl", "tokens.json"):
        assert Path("data", name).read_bytes() == Path("whole", name).read_bytes()
