"""A dialogue at the terminal: lines that are said, and lines that begin with a slash."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lwm_cli import loading
from lwm_cli.failures import explain
from lwm_cli.files import as_file, is_terminal, read_text
from lwm_core.atomic import write_text
from lwm_core.errors import ContextTooLong, UsageError

if TYPE_CHECKING:
    import numpy as np

    from lwm_cli.talk import Talk

HELP = """\
/attach FILE   show it a text file, a picture or a clip with your next message
/system TEXT   say how it should behave; without TEXT, see what was said
/clear         begin a new conversation
/save FILE     write the conversation to a file
/help          this list
/exit          leave, as Ctrl-D does; Ctrl-C stops an answer"""
HISTORY_LINES = 1000


def read_attachment(name: str, frames: int, model: str) -> str | np.ndarray:
    """A text file's text, or the frames of a picture or clip as a model sees them.

    Those are uint8 `[frames, size, size, 3]`. Raises UsageError (no such file, too long a text, a
    picture for a model that knows text only) or MediaError (neither text nor a picture).
    """
    from lwm_core.media import read_media

    with as_file(name) as path:
        text = read_text(path)
        if text is not None:
            return text
        return read_media(path, frames=frames, size=loading.picture_size(model)).frames


def attach_file(talk: Talk, name: str, content: str | np.ndarray) -> None:
    """Show the model what `read_attachment` read."""
    if isinstance(content, str):
        talk.show_text(Path(name).name, content)
    else:
        talk.show_frames(content)


def hold_dialogue(talk: Talk, frames: int) -> None:
    """Read lines and answer them until /exit or the end of the input.

    What goes wrong with one line is told, and the dialogue goes on.
    """
    commands = _Commands(talk, frames)
    talk.screen.note("/help lists the commands")
    with _LineEditor() as editor:
        while (line := editor.read()) is not None:
            try:
                if commands.runs(line):
                    continue
                if line:
                    talk.say(line)
            except _Exit:
                return
            except KeyboardInterrupt:
                talk.screen.clear()
                typer.echo("\n(stopped)", err=True)
            except BrokenPipeError:
                raise
            except Exception as error:
                talk.screen.clear()
                message, _ = explain(error)
                hint = "; /clear begins anew" if isinstance(error, ContextTooLong) else ""
                typer.echo(f"lwm: {message}{hint}", err=True)


class _Exit(Exception):
    """The user wants to leave."""


class _Commands:
    """The slash commands of one dialogue."""

    def __init__(self, talk: Talk, frames: int) -> None:
        self._talk = talk
        self._frames = frames
        self._by_name: dict[str, Callable[[str], None]] = {
            "/attach": self._attach,
            "/system": self._system,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: self._tell(HELP),
            "/exit": self._exit,
        }

    def runs(self, line: str) -> bool:
        """Run the line if it is a command. Raises UsageError for an unknown one."""
        name, _, rest = line.partition(" ")
        if not re.fullmatch(r"/[a-z]+", name):
            return False
        if name not in self._by_name:
            raise UsageError(f"{name} is no command; /help lists them")
        self._by_name[name](rest.strip())
        return True

    def _attach(self, name: str) -> None:
        if not name:
            raise UsageError("/attach needs a file")
        content = read_attachment(name, self._frames, self._talk.conversation.model)
        attach_file(self._talk, name, content)
        self._tell(f"{name} goes with your next message")

    def _system(self, text: str) -> None:
        if text and self._talk.conversation.context:
            raise UsageError("what it was told stands in the context that was read; begin without")
        if text:
            self._talk.conversation.system = text
        self._tell(self._talk.conversation.system or "nothing was said; /system TEXT says it")

    def _clear(self, _: str) -> None:
        self._talk.begin_anew()
        self._tell("a new conversation")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file")
        path = Path(os.path.expanduser(name))
        if os.path.lexists(path):
            raise UsageError(f"{path} exists; choose another name")
        write_text(path, self._talk.conversation.transcript())
        self._tell(f"saved to {path}")

    def _exit(self, _: str) -> None:
        raise _Exit

    def _tell(self, text: str) -> None:
        self._talk.screen.clear()
        typer.echo(text, err=True)


class _LineEditor:
    """Reads lines, with editing keys and a history kept under LWM_HOME where Python has them."""

    def __enter__(self) -> _LineEditor:
        from lwm_core.backend import home

        self._history = home() / "history"
        with suppress(ImportError, OSError):
            import readline

            readline.set_history_length(HISTORY_LINES)
            readline.read_history_file(self._history)
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(ImportError, OSError):
            import readline

            self._history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(self._history)

    def read(self) -> str | None:
        """The next line without its surrounding blanks; None at the end of the input."""
        prompt = "> "
        if not is_terminal(sys.stdout):  # Python would write the prompt among the answers
            typer.echo(prompt, err=True, nl=False)
            prompt = ""
        try:
            return input(prompt).strip()
        except EOFError:
            typer.echo(err=True)
            return None
