"""`lwm chat`: one answer, what goes with it, and conversations that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from player import CODES, Message, Player

from lwm_cli import app, failures, talk
from lwm_core.errors import ContextTooLong
from lwm_core.types import Progress


def test_one_prompt_one_answer(player: Player, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["chat", "hello", "-s", "Be brief.", "-t", "0.5"]) == 0
    assert capsys.readouterr().out == "A red circle.\n"
    assert player.heard == [[Message("system", "Be brief."), Message("user", "hello")]]
    assert player.sampled[0]["temperature"] == 0.5
    assert player.sampled[0]["top_k"] == 50


def test_the_closing_line_goes_to_standard_error(
    player: Player, capsys: pytest.CaptureFixture[str]
) -> None:
    app.main(["chat", "hello"])
    said = capsys.readouterr().err
    assert said.startswith("2 tokens · ")
    assert said.endswith("tok/s · cpu\n")
    app.main(["chat", "hello", "-q"])
    assert capsys.readouterr().err == ""


def test_piped_text_joins_the_prompt(player: Player, pipe: Callable[[bytes], None]) -> None:
    pipe(b"a long story\n")
    assert app.main(["chat", "Sum it up."]) == 0
    assert player.heard[0][-1].text == "a long story\n\nSum it up."


@pytest.mark.parametrize("arguments", [["chat"], ["chat", "-"], ["draw"], ["film", "-"]])
def test_nothing_said_is_wrong_usage(
    arguments: list[str], player: Player, pipe: Callable[[bytes], None]
) -> None:
    pipe(b" \n")
    assert app.main(arguments) == failures.WRONG_USAGE
    assert not player.loaded


def test_text_and_pictures_are_attached(player: Player, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Buy milk.")
    assert app.main(["chat", "What?", "-a", "notes.txt", "-a", str(picture)]) == 0
    (message,) = player.heard[0]
    assert message.text == "notes.txt:\nBuy milk.\n\nWhat?"
    assert [media.tolist() for media in message.media] == [[CODES.tolist()]]
    assert message.media[0].dtype == np.int32


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("missing", None, 2), ("empty.txt", b"", 1), ("noise", b"\0\1\2\3" * 9, 1)],
)
def test_what_can_not_be_attached(
    name: str,
    content: bytes | None,
    code: int,
    player: Player,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert app.main(["chat", "x", "-a", name]) == code
    assert name in capsys.readouterr().err
    assert not player.loaded


def test_continue_goes_on_with_the_last(player: Player, picture: Path) -> None:
    app.main(["chat", "one", "-m", "chat-1m", "-a", str(picture)])
    app.main(["chat", "two", "-c"])
    assert player.loaded == ["chat-1m", "chat-1m"]
    roles = [(message.role, message.text) for message in player.heard[1]]
    assert roles == [("user", "one"), ("assistant", "A red circle."), ("user", "two")]
    assert player.heard[1][0].media[0].tolist() == [CODES.tolist()]


def test_continue_with_another_model(
    player: Player, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.main(["chat", "one", "-m", "chat-1m"])
    assert app.main(["chat", "two", "-c", "-m", "nano", "-a", str(picture)]) == 0
    assert player.loaded == ["chat-1m", "nano"]
    assert app.main(["chat", "three", "-c", "-m", "chat-1m"]) == failures.WRONG_USAGE
    assert "pictures" in capsys.readouterr().err


def test_nothing_to_continue(player: Player) -> None:
    assert app.main(["chat", "one", "-c"]) == failures.WRONG_USAGE
    assert not player.loaded


def test_json(player: Player, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["chat", "hello", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["answer"], result["tokens"]) == ("A red circle.", 2)


def test_an_error_leaves_no_trace(player: Player) -> None:
    app.main(["chat", "one"])
    player.error = ContextTooLong("too long")
    assert app.main(["chat", "two", "-c"]) == failures.WRONG_USAGE
    player.error = None
    app.main(["chat", "three", "-c"])
    assert [message.text for message in player.heard[-1]][::2] == ["one", "three"]


def test_interruption(player: Player, capsys: pytest.CaptureFixture[str]) -> None:
    player.error = KeyboardInterrupt()
    assert app.main(["chat", "one"]) == failures.INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "lwm: interrupted"


def test_a_text_model_sees_nothing(
    player: Player, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    player.vqgan = None
    assert app.main(["chat", "x", "-m", "text-1m", "-a", str(picture)]) == failures.WRONG_USAGE
    assert "text-1m knows text only" in capsys.readouterr().err


def test_a_conversation_that_can_not_be_kept(
    player: Player, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("no folder")
    assert app.main(["chat", "one"]) == 0
    said = capsys.readouterr()
    assert said.out == "A red circle.\n"
    assert f"can't be kept: {tmp_path / 'home'}" in said.err
    assert "Errno" not in said.err


def test_speed_counts_from_the_end_of_the_reading(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([0.0, 5.0, 5.5, 6.0])
    monkeypatch.setattr(talk.time, "perf_counter", lambda: next(ticks))
    meter = talk.Meter(SimpleNamespace(progress=lambda _: None))
    meter(Progress("reading", 4, 4, "tokens"))
    meter(Progress("writing", 10, 99, "tokens"))
    meter(Progress("writing", 20, 99, "tokens"))
    assert meter.figures() == ["20 tokens", "20 tok/s"]
