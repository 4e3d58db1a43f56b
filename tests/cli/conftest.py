"""What the tests of the commands share: a played model, media, and standard input."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from player import PIXELS, Message, Player


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Player:
    """A played model behind every command; the working folder and LWM_HOME are empty."""
    player = Player()
    generate = SimpleNamespace(
        Message=Message,
        encode_media=player.encode_media,
        reply=player.reply,
        draw=player.draw,
        film=player.film,
        complete=player.complete,
    )
    loading = SimpleNamespace(load_model=player.load_model, picture_size=player.picture_size)
    for name in ("load", "source"):
        monkeypatch.setitem(sys.modules, f"lwm_core.{name}", loading)
    monkeypatch.setitem(sys.modules, "lwm_core.generate", generate)
    monkeypatch.setitem(sys.modules, "lwm_core.sampling", SimpleNamespace(Sampling=dict))
    monkeypatch.setenv("LWM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LWM_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    return player


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture that is there."""
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A clip of four frames."""
    frames = [Image.fromarray(PIXELS // (1 + index)) for index in range(4)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    return tmp_path / "clip.gif"


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def type_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a person type lines, then Ctrl-D."""

    def type_lines(*lines: str) -> None:
        monkeypatch.setattr("sys.stdin", Terminal("".join(line + "\n" for line in lines)))

    return type_lines


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Lets standard input be a file with this content."""
    with ExitStack() as opened:

        def pipe(content: bytes) -> None:
            (tmp_path / "piped").write_bytes(content)
            monkeypatch.setattr("sys.stdin", opened.enter_context((tmp_path / "piped").open()))

        yield pipe
