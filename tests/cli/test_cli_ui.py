"""What is drawn: bars and pictures on a terminal, plain lines or nothing anywhere else."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence

import numpy as np
import pytest

from lwm_cli.ui import HalfBlocks, Screen, four_digits, print_table
from lwm_core.types import Frame, Progress

CODES = np.zeros(4, np.int32)
EVENTS = (
    Progress("reading", 3, 10, "tokens"),
    Frame(0, 0, np.full((8, 8, 3), (200, 10, 0), np.uint8), False, CODES),
    Frame(0, 0, np.full((8, 8, 3), (255, 0, 0), np.uint8), True, CODES),
)


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let standard error be a terminal with all colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def play(screen: Screen, events: Sequence[Progress | Frame] = EVENTS) -> list[Frame]:
    """Show the events and the closing line; returns the complete pictures."""
    with screen:
        frames = list(screen.follow(events))
        screen.footer(["1 picture", "cpu"])
    return frames


def test_a_terminal_shows_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    play(Screen(), [*EVENTS[:1], Progress("download", 10**6, 10**9, "bytes")])
    drawn = terminal.getvalue()
    assert re.search("reading .* 3/10 tokens", drawn)
    assert re.search("download .* 1/1000 MB", drawn)


def test_the_last_picture_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    assert play(Screen()) == [EVENTS[-1]]
    drawn = terminal.getvalue()
    assert "\x1b[38;2;255;0;0;48;2;255;0;0m▀" in drawn
    assert drawn.endswith("▀\x1b[0m\n\x1b[?25h\x1b[2m1 picture · cpu\x1b[0m\n")


def test_no_color_leaves_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    play(Screen())
    drawn = terminal.getvalue()
    assert "3/10 tokens" in drawn
    assert "▀" not in drawn
    assert "[38;" not in drawn
    assert drawn.endswith("1 picture · cpu\n")


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    play(Screen(quiet=True))
    assert terminal.getvalue() == ""


def test_verbose_shows_what_the_core_chooses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    core = logging.getLogger("lwm_core")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(core, "level", core.level)
    core.getChild("load").info("before")
    Screen(verbose=True)
    core.getChild("load").info("in %s", "bfloat16")
    assert capsys.readouterr().err == "in bfloat16\n"


def test_a_file_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert play(Screen()) == [EVENTS[-1]]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "1 picture · cpu\n"


def test_an_error_leaves_a_clean_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)

    def interrupted() -> None:
        with Screen() as screen:
            screen.progress(EVENTS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    cursor_hidden, cursor_shown = "\x1b[?25l", "\x1b[?25h"
    assert terminal.getvalue().rindex(cursor_shown) > terminal.getvalue().rindex(cursor_hidden)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.12344, "0.1234"), (7, "7"), (1234.4, "1,234"), (14579.4, "14,579")],
)
def test_four_digits(number: float, text: str) -> None:
    assert four_digits(number) == text


def test_half_blocks_show_two_pixels_each() -> None:
    from rich.console import Console

    pixels = np.zeros((4, 2, 3), np.uint8)
    pixels[0] = 255, 0, 0
    pixels[1] = 0, 255, 0
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, color_system="truecolor", width=2)
    console.print(HalfBlocks(pixels), end="")
    first, second = page.getvalue().splitlines()
    assert first.count("▀") == second.count("▀") == 2
    assert "38;2;255;0;0;48;2;0;255;0m" in first
    assert "38;2;0;0;0;48;2;0;0;0m" in second


def test_a_picture_leaves_room_for_the_bars() -> None:
    from rich.console import Console

    page = io.StringIO()
    terminal = {"force_terminal": True, "color_system": "truecolor", "width": 80, "height": 24}
    Console(file=page, **terminal).print(HalfBlocks(np.zeros((64, 64, 3), np.uint8)), end="")
    lines = page.getvalue().splitlines()
    assert 18 <= len(lines) <= 21
    assert lines[0].count("▀") == 2 * len(lines)


def test_streams_that_were_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert play(Screen()) == [EVENTS[-1]]


def test_tables_in_a_file_are_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "size>"], [["x" * 90, "1"], ["y", "100"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("x" * 90)
    assert lines[1].endswith("  1")
    assert lines[2].endswith("100")
    assert "\x1b" not in "".join(lines)
