"""Conversations kept as JSON files under LWM_HOME, so that `-c` can go on with the last one."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lwm_core.atomic import write_text
from lwm_core.errors import FormatError, UsageError
from lwm_core.registry import named_path

Codes = list[list[int]]  # one clip: frames of image codes


@dataclass(frozen=True)
class Turn:
    """What one side said; `media` holds the clips that were shown, as codes of the model."""

    role: Literal["system", "user", "assistant"]
    text: str
    media: list[Codes] = field(default_factory=list)


@dataclass
class Conversation:
    """A conversation with one model: what was said, and the file that keeps it.

    `context` is the file of the context that it begins with, if any.
    """

    model: str
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    context: str | None = None
    path: Path = field(default_factory=lambda: _new_path())

    @classmethod
    def with_model(cls, model: str, system: str | None = None) -> Conversation:
        """A new conversation; a model that is a path is kept so that any folder finds it."""
        return cls(_absolute(model), system)

    @classmethod
    def latest(cls) -> Conversation:
        """The conversation that was saved last. Raises UsageError if there is none yet."""
        saved = sorted(_folder().glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        if not saved:
            raise UsageError("there is no conversation to continue yet; start one without -c")
        return cls.load(saved[-1])

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read a saved conversation. Raises FormatError."""
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            turns = [Turn(**turn) for turn in values["turns"]]
            context = values.get("context")
            return cls(values["model"], values["system"], turns, context, path)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} is no conversation of lwm; delete it") from error

    def switch(self, model: str) -> None:
        """Go on with another model. Raises UsageError if pictures were shown: their codes mean
        something to the model that has seen them only."""
        model = _absolute(model)
        if model != self.model and any(turn.media for turn in self.turns):
            raise UsageError(
                f"{self.model} has seen pictures here that {model} can't; leave out -m or -c"
            )
        self.model = model

    def save(self) -> None:
        """Write the file, whole or not at all, into a folder that others can't read.

        Raises OutputError, or OSError where there can be no folder.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {
            "model": self.model,
            "system": self.system,
            "context": self.context,
            "turns": [asdict(turn) for turn in self.turns],
        }
        write_text(self.path, json.dumps(values, ensure_ascii=False))

    def transcript(self) -> str:
        """The conversation as Markdown for people."""
        told = [f"*{self.system}*"] if self.system else []
        said = [f"**{turn.role}:** {turn.text}" for turn in self.turns]
        return "\n\n".join(told + said) + "\n"


def _absolute(model: str) -> str:
    path = named_path(model)
    return str(path.absolute()) if path and path.is_dir() else model


def _new_path() -> Path:
    """Named by the time, and by chance for those that begin in the same second."""
    return _folder() / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}.json"


def _folder() -> Path:
    from lwm_core.backend import home

    return home() / "conversations"
