"""A model that is played: what commands ask of it is remembered, what it answers is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from lwm_core.errors import TextOnly
from lwm_core.tokenizer import Tokenizer
from lwm_core.types import Frame, Progress

CODES = np.arange(16, dtype=np.int32)
PIXELS = np.full((8, 8, 3), 200, np.uint8)


@dataclass(frozen=True)
class Message:
    """As `lwm_core.generate` has it."""

    role: str
    text: str
    media: tuple[np.ndarray, ...] = ()


class Player:
    """Plays the model: answers with what it was told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[str] = ["A red ", "circle."]
        self.heard: list[Sequence[Message]] = []
        self.sampled: list[dict[str, Any]] = []
        self.loaded: list[str] = []
        self.vqgan: object | None = object()
        self.error: BaseException | None = None
        self.tokenizer: Tokenizer | None = None

    def picture_size(self, model: str) -> int:
        if self.vqgan is None:
            raise TextOnly(model)
        return 64

    def load_model(self, name: str, *, sees: bool = False, **_: object) -> SimpleNamespace:
        if sees:
            self.picture_size(name)
        self.loaded.append(name)
        defaults = {"draw": {"guidance": 3.0}}
        config = SimpleNamespace(max_length=2048)
        return SimpleNamespace(
            name=name,
            device="cpu",
            hint=None,
            assumed=(),
            vqgan=self.vqgan,
            defaults=defaults,
            config=config,
            context=2048,
            tokenizer=self.tokenizer,
        )

    def encode_media(self, _: object, frames: np.ndarray) -> np.ndarray:
        return np.stack([CODES] * len(frames))

    def reply(
        self,
        model: object,
        messages: Sequence[Message],
        *,
        sampling: dict[str, Any],
        max_tokens: int,
        on_progress: Callable[[Progress], None],
        **_: object,
    ) -> Iterator[str]:
        self.heard.append(messages)
        self.sampled.append(sampling)
        on_progress(Progress("reading", 10, 10, "tokens"))
        for count, piece in enumerate(self.answers, 1):
            on_progress(Progress("writing", count, max_tokens, "tokens"))
            yield piece
        if self.error:
            raise self.error

    def draw(
        self, _: object, prompts: Sequence[str], *, sampling: dict[str, Any], preview: bool
    ) -> Iterator[Progress | Frame]:
        self.sampled.append(sampling)
        for row in reversed(range(len(prompts))):
            yield Progress("drawing", 1, 2, "tokens")
            yield Frame(row, 0, np.full_like(PIXELS, row), True, CODES)

    def film(
        self, _: object, prompt: str, *, frames: int, image_sampling: object, **__: object
    ) -> Iterator[Progress | Frame]:
        for index in range(frames):
            yield Frame(0, index, PIXELS // 2, False, CODES)
            yield Frame(0, index, PIXELS // (1 + index), True, CODES)
            if self.error:
                raise self.error

    def complete(
        self, _: object, prompts: Sequence[str], *, sampling: dict[str, Any], **__: object
    ) -> list[str]:
        """Finds every number that lies in the first half of its prompt."""
        halves = [prompt[: len(prompt) // 2] for prompt in prompts]
        return [" ".join(re.findall(r"\d{7}", half)) for half in halves]
