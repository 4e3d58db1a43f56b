"""A conversation with a loaded model, as `chat` and `see` hold it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lwm_cli.failures import explain
from lwm_cli.session import Conversation, Turn
from lwm_core.distributed import is_first
from lwm_core.errors import OutputError

if TYPE_CHECKING:
    import numpy as np

    from lwm_cli.ui import Screen
    from lwm_core.context import Context
    from lwm_core.generate import Message
    from lwm_core.load import LoadedModel
    from lwm_core.sampling import Sampling
    from lwm_core.types import Progress


@dataclass(frozen=True)
class Answer:
    """What the model said, how many tokens that took, and how long."""

    text: str
    tokens: int
    seconds: float

    def to_json(self) -> dict[str, str | int | float]:
        """What `--json` writes about an answer."""
        return {"answer": self.text, "tokens": self.tokens, "seconds": round(self.seconds, 3)}


class Talk:
    """One conversation: things are shown, something is said, the answer streams in."""

    def __init__(
        self,
        model: LoadedModel,
        conversation: Conversation,
        screen: Screen,
        sampling: Sampling,
        max_tokens: int,
    ) -> None:
        self.model = model
        self.conversation = conversation
        self.screen = screen
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._texts: list[str] = []
        self._clips: list[np.ndarray] = []
        self._opening: list[int] = []
        self._context: Context | None = None

    def begin_anew(self) -> None:
        """Forget what was said and what was shown; what it was told to be stays, and a context."""
        old = self.conversation
        self.conversation = Conversation(old.model, old.system, context=old.context)
        self._texts, self._clips = [], []

    def begin_with(self, context: Context, path: Path | None) -> None:
        """Let the conversation be about a context; it is kept only where a file holds that."""
        self._opening, self._context = list(context.ids), context
        self.conversation.context = str(path.absolute()) if path else None

    def show_text(self, name: str, text: str) -> None:
        """Put a text file before the next message."""
        self._texts.append(f"{name}:\n{text.strip()}\n")

    def show_frames(self, frames: np.ndarray) -> None:
        """Put a picture or clip, uint8 `[frames, height, width, 3]`, before the next message."""
        from lwm_core.generate import encode_media

        self._clips.append(encode_media(self.model, frames))

    def take_shown(self) -> Message:
        """What was shown and waits for the next message, which now goes without it."""
        from lwm_core.generate import Message

        shown = Message("user", "\n".join(self._texts), tuple(self._clips))
        self._texts, self._clips = [], []
        return shown

    def say(self, text: str, *, echo: bool = True) -> Answer:
        """Say something; the answer goes to standard output as it comes, unless not `echo`.

        What was said counts only once it is answered: an error or Ctrl-C leaves no trace.
        """
        from lwm_core.context import Context
        from lwm_core.generate import reply

        self._context = self._context or Context()
        turn = Turn(
            "user", "\n".join([*self._texts, text]), [clip.tolist() for clip in self._clips]
        )
        meter = Meter(self.screen)
        pieces: list[str] = []
        try:
            for piece in reply(
                self.model,
                _messages([*self._told(), *self.conversation.turns, turn]),
                sampling=self._sampling,
                max_tokens=self._max_tokens,
                opening=self._opening,
                context=self._context,
                on_progress=meter,
            ):
                self.screen.clear()
                pieces.append(piece)
                if echo:
                    typer.echo(piece, nl=False)
        finally:
            if echo and pieces:
                typer.echo()
        answer = Answer("".join(pieces), meter.tokens, meter.seconds)
        self._keep(turn, Turn("assistant", answer.text))
        self.screen.footer([*meter.figures(), self.model.device])
        return answer

    def _told(self) -> list[Turn]:
        system = self.conversation.system
        return [Turn("system", system)] if system and not self._opening else []

    def _keep(self, *turns: Turn) -> None:
        self._texts, self._clips = [], []
        self.conversation.turns += turns
        if not is_first() or (self._opening and not self.conversation.context):
            return
        try:
            self.conversation.save()
        except (OSError, OutputError) as error:
            self.screen.note(f"lwm: this conversation can't be kept: {explain(error)[0]}")


class Meter:
    """Counts the tokens that are written and the time since the first, from progress events."""

    def __init__(self, screen: Screen) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._screen = screen
        self._began = time.perf_counter()

    def __call__(self, event: Progress) -> None:
        if event.phase != "writing":
            self._screen.progress(event)
            self._began = time.perf_counter()
            return
        self.tokens = event.done
        self.seconds = time.perf_counter() - self._began

    def figures(self) -> list[str]:
        """`42 tokens` and, if it took any time, `310 tok/s`."""
        speed = [f"{self.tokens / self.seconds:.0f} tok/s"] if self.seconds else []
        return [f"{self.tokens} tokens", *speed]


def _messages(turns: Sequence[Turn]) -> list[Message]:
    import numpy as np

    from lwm_core.generate import Message

    return [
        Message(turn.role, turn.text, tuple(np.array(clip, np.int32) for clip in turn.media))
        for turn in turns
    ]
