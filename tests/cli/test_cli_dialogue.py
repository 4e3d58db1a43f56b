"""Dialogues: lines, slash commands, mistakes and interruptions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from player import Message, Player

from lwm_cli import app
from lwm_core.errors import ContextTooLong


def test_lines_are_answered_with_what_was_said_before(
    player: Player, type_lines: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines("one", "", "two")
    assert app.main(["chat"]) == 0
    assert capsys.readouterr().out == "A red circle.\nA red circle.\n"
    assert [len(messages) for messages in player.heard] == [1, 3]


def test_commands(
    player: Player,
    picture: Path,
    type_lines: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_lines(
        "/help",
        "/system Be brief.",
        "one",
        "/save talk.md",
        "/clear",
        f"/attach {picture}",
        "two",
        "/exit",
        "three",
    )
    assert app.main(["chat"]) == 0
    first, second = player.heard
    assert first == [Message("system", "Be brief."), Message("user", "one")]
    assert [message.text for message in second] == ["Be brief.", "two"]
    assert len(second[1].media) == 1
    saved = Path("talk.md").read_text()
    assert saved == "*Be brief.*\n\n**user:** one\n\n**assistant:** A red circle.\n"
    assert "/attach FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/frob", "/frob is no command"),
        ("/attach", "needs a file"),
        ("/attach nothing.png", "nothing.png"),
        ("/save", "needs a file"),
        ("/save taken", "exists"),
        ("/save no/where", "can't write"),
    ],
)
def test_mistakes_are_told_and_it_goes_on(
    line: str,
    words: str,
    player: Player,
    type_lines: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("taken").write_text("mine")
    type_lines(line, "hello")
    assert app.main(["chat"]) == 0
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == "A red circle.\n"
    assert Path("taken").read_text() == "mine"


def test_a_new_conversation_has_nothing_attached(
    player: Player, picture: Path, type_lines: Callable[..., None]
) -> None:
    Path("notes.txt").write_text("four legs")
    type_lines(f"/attach {picture}", "/attach notes.txt", "/clear", "hello")
    assert app.main(["chat"]) == 0
    assert player.heard == [[Message("user", "hello")]]


@pytest.mark.parametrize("error", [MemoryError(), ValueError("what?"), ContextTooLong("9 tokens")])
def test_a_failed_answer_ends_only_itself(
    error: Exception,
    player: Player,
    type_lines: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    player.error = error
    type_lines("one", "/save ~nobody.md", "/exit")
    assert app.main(["chat"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"lwm: (out of memory|unexpected ValueError|9 tokens; /clear)", said)
    assert Path("~nobody.md").exists()


def test_a_path_is_no_command(player: Player, type_lines: Callable[..., None]) -> None:
    type_lines("/usr/bin is what?")
    app.main(["chat"])
    assert player.heard[0][0].text == "/usr/bin is what?"


def test_an_interrupted_answer_ends_only_itself(
    player: Player, type_lines: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    player.error = KeyboardInterrupt()
    type_lines("one", "/exit")
    assert app.main(["chat"]) == 0
    assert "(stopped)" in capsys.readouterr().err
