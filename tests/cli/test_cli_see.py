"""`lwm see`: media, questions, descriptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from player import Player

from lwm_cli import app, failures
from lwm_cli.see import split_question


def test_question(player: Player, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["see", str(clip), "what happens?", "--frames", "3"]) == 0
    assert capsys.readouterr().out == "A red circle.\n"
    (message,) = player.heard[0]
    assert message.text == "what happens?"
    assert [media.shape for media in message.media] == [(3, 16)]
    assert player.sampled[0]["temperature"] == 0


def test_describes_then_takes_questions(
    player: Player, clip: Path, type_lines: Callable[..., None]
) -> None:
    type_lines("which colour?")
    assert app.main(["see", str(clip)]) == 0
    assert [message.text for message in player.heard[1]] == [
        "What happens?",
        "A red circle.",
        "which colour?",
    ]


def test_several_media(player: Player, clip: Path, picture: Path) -> None:
    assert app.main(["see", str(picture), str(clip), "same?"]) == 0
    assert [len(media) for media in player.heard[0][0].media] == [1, 4]


def test_standard_input(player: Player, picture: Path, pipe: Callable[[bytes], None]) -> None:
    pipe(picture.read_bytes())
    assert app.main(["see", "-", "what?", "--json"]) == 0
    assert player.heard[0][0].text == "what?"


def test_json(player: Player, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["see", str(clip), "--json", "--start", "0.1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["question"] == "What happens?"
    assert result["media"][0]["seconds"] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (["clip.gif"], None),
        (["clip.gif", "what happens?"], "what happens?"),
        (["clip.gif", "describe"], "describe"),
        (["clip.gif", "-"], None),
        (["clip.gif", "missing.mp4"], None),
        (["clip.gif", "no/where"], None),
        (["clip.gif", "red/blue?"], "red/blue?"),
        (["missing"], None),
    ],
)
def test_what_is_a_question(
    words: list[str], question: str | None, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip.parent)
    assert split_question(words)[1] == question


@pytest.mark.parametrize("name", ["missing.mp4", ".", "empty.mp4"])
def test_bad_input_before_the_model(
    name: str, player: Player, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.mp4").touch()
    assert app.main(["see", name, "what?"]) in (failures.FAILED, failures.WRONG_USAGE)
    assert capsys.readouterr().err.count("\n") == 1
    assert not player.loaded
