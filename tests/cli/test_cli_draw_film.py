"""`lwm draw` and `lwm film`: what they write, name and never overwrite."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Terminal
from PIL import Image
from player import Player

from lwm_cli import app, failures
from lwm_core.media import read_media


def test_writes_and_names_the_file(player: Player, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["draw", "A red circle!"]) == 0
    assert capsys.readouterr().out == "a-red-circle.png\n"
    assert read_media("a-red-circle.png").frames.shape == (1, 256, 256, 3)


def test_the_model_has_its_own_defaults(player: Player) -> None:
    app.main(["draw", "x", "-o", "a.png", "--seed", "3"])
    assert player.sampled[0] == {"guidance": 3.0, "top_k": 8192, "temperature": 1.0, "seed": 3}
    app.main(["draw", "x", "-o", "b.png", "-g", "7"])
    assert player.sampled[1]["guidance"] == 7


def test_several_files(player: Player) -> None:
    assert app.main(["draw", "x", "-o", "x.png", "-N", "3", "--size", "16"]) == 0
    shades = [read_media(f"x-{number}.png").frames.max() for number in (1, 2, 3)]
    assert shades == [0, 1, 2]


def test_a_grid(player: Player) -> None:
    assert app.main(["draw", "x", "-o", "x.png", "-N", "4", "--grid", "--size", "16"]) == 0
    assert read_media("x.png").frames.shape == (1, 32, 32, 3)


def test_standard_output(player: Player, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert app.main(["draw", "x", "-o", "-"]) == 0
    with Image.open(io.BytesIO(capfdbinary.readouterr().out)) as written:
        assert written.size == (256, 256)
    assert app.main(["draw", "x", "-o", "-", "-N", "2"]) == failures.WRONG_USAGE


@pytest.mark.parametrize("name", ["x.txt", "x", "folder.png", "no/x.png"])
def test_bad_output_before_the_model(name: str, player: Player) -> None:
    Path("folder.png").mkdir()
    assert app.main(["draw", "x", "-o", name]) == failures.WRONG_USAGE
    assert not player.loaded


def test_never_overwrites_unasked(player: Player, pipe: Callable[[bytes], None]) -> None:
    Path("x.png").write_text("mine")
    pipe(b"")
    assert app.main(["draw", "x", "-o", "x.png"]) == failures.WRONG_USAGE
    assert not player.loaded
    assert app.main(["draw", "x", "-o", "x.png", "--force"]) == 0
    assert read_media("x.png").frames.shape == (1, 256, 256, 3)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_asks_on_a_terminal(
    answer: str, code: int, player: Player, type_lines: Callable[..., None]
) -> None:
    Path("x.png").write_text("mine")
    type_lines(answer)
    assert app.main(["draw", "x", "-o", "x.png"]) == code
    assert (Path("x.png").read_bytes()[:4] == b"mine") == bool(code)


def test_the_preview_is_gone_before_the_name_is_written(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output and error are one terminal."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    for command in (["film", "x", "-o", "x.mp4"], ["draw", "x", "-o", "x.png"]):
        assert app.main(command) == 0
        drawn = terminal.getvalue()
        cursor_shown = "\x1b[?25h"
        assert cursor_shown in drawn
        assert drawn.index(f"{command[-1]}\n") > drawn.rindex(cursor_shown)
        terminal.truncate(terminal.seek(0))


def test_a_text_model_draws_nothing(player: Player) -> None:
    player.vqgan = None
    assert app.main(["draw", "x", "-o", "x.png"]) == failures.WRONG_USAGE
    assert not Path("x.png").exists()


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
def test_writes_its_frames(suffix: str, player: Player) -> None:
    arguments = ["film", "x", "-o", f"x.{suffix}", "--frames", "5", "--fps", "2"]
    assert app.main(arguments) == 0
    clip = read_media(f"x.{suffix}", frames=99)
    assert clip.frames.shape == (5, 256, 256, 3)
    assert np.diff(clip.times) == pytest.approx(0.5)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ValueError("x")])
def test_nothing_half_written(error: BaseException, player: Player) -> None:
    player.error = error
    assert app.main(["film", "x", "-o", "x.mp4"]) in (failures.FAILED, failures.INTERRUPTED)
    assert not [path for path in Path().iterdir() if path.name != "home"]
