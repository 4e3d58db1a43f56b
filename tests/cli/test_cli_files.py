"""Names, pipes and the places of outputs."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lwm_cli import files
from lwm_cli.dialogue import read_attachment
from lwm_core.errors import UsageError


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Fireworks over a city", "fireworks-over-a-city.mp4"),
        ("  a/b: ../c?! ", "a-b-c.mp4"),
        ("снег", "снег.mp4"),
        ("!?", "lwm.mp4"),
        ("x" * 300, "x" * 48 + ".mp4"),
    ],
)
def test_names_from_prompts(prompt: str, name: str) -> None:
    assert files.output_name(prompt, ".mp4") == Path(name)


def test_numbered_names() -> None:
    assert files.numbered(Path("a/x.png"), 1) == [Path("a/x.png")]
    assert files.numbered(Path("a/x.png"), 2) == [Path("a/x-1.png"), Path("a/x-2.png")]


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("grüße")
    (tmp_path / "latin").write_bytes("grüße".encode("latin-1"))
    (tmp_path / "zeros").write_bytes(b"RIFF\0\0\0\0")
    assert files.read_text(tmp_path / "text") == "grüße"
    assert files.read_text(tmp_path / "latin") is None
    assert files.read_text(tmp_path / "zeros") is None


def test_long_texts_and_long_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a film does not matter; a text is refused, wherever the limit cuts it."""
    with (tmp_path / "film").open("wb") as film:
        film.write(b"RIFF")
        film.truncate(20 << 30)  # sparse: it takes no space
    assert files.read_text(tmp_path / "film") is None
    monkeypatch.setattr(files, "MOST_TEXT", 10)
    (tmp_path / "text").write_text("grüße ü")
    assert files.read_text(tmp_path / "text") == "grüße ü"
    (tmp_path / "text").write_text("xééééé")
    with pytest.raises(UsageError, match="too long"):
        files.read_text(tmp_path / "text")
    (tmp_path / "film").write_bytes(b"YUV4MPEG" + b"\xff" * 10)
    assert files.read_text(tmp_path / "film") is None


def test_what_is_no_file_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(UsageError, match=name):
            read_attachment(name, 1, "nano")


def test_home_in_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("Buy milk.")
    assert read_attachment("~/notes.txt", 1, "nano") == "Buy milk."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~notes.txt").write_text("Buy more.")
    assert read_attachment("~notes.txt", 1, "nano") == "Buy more."


def test_a_slow_pipe_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    told = threading.Event()

    def write() -> None:
        told.wait(timeout=60)
        os.write(writing, b"late\n")
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0)
    monkeypatch.setattr(files.typer, "echo", lambda *_, **__: told.set())
    with open(reading) as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        assert files.piped_text(is_needed=True) == "late"
    writer.join()


def test_a_pipe_that_never_ends_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0)
    with open(reading) as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        assert files.piped_text(is_needed=False) == ""
    os.close(writing)
    assert "going on without it" in capsys.readouterr().err


@pytest.mark.parametrize("place", [os.devnull, None])
def test_no_pipe_no_text(place: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if place is None:
        monkeypatch.setattr("sys.stdin", None)
        assert files.piped_text(is_needed=True) == ""
    else:
        with open(place) as nothing:
            monkeypatch.setattr("sys.stdin", nothing)
            assert files.piped_text(is_needed=True) == ""


def test_pictures_in_a_pipe_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x80")
    with (tmp_path / "noise").open(encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        with pytest.raises(UsageError, match="UTF-8"):
            files.piped_text(is_needed=True)
