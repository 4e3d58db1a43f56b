"""The only home of the frame layout and the prompt templates.

A frame is its codes in row-major order and one marker; vision code c is the id `text_vocab + c`.
Prompts are spelled exactly as the published models were trained: every quoted piece is encoded by
itself, so each begins with its own `<s>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lwm_core.chat_templates import LWM, ChatStyle
from lwm_core.config import ModelConfig
from lwm_core.errors import UsageError
from lwm_core.vocabulary import AnyTokenizer

SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class FrameLayout:
    """Where vision ids lie and how codes become tokens."""

    offset: int
    codes: int
    frame_codes: int

    @classmethod
    def of(cls, config: ModelConfig) -> FrameLayout:
        """The layout of a model."""
        return cls(config.text_vocab, config.vision_codes, config.frame_codes)

    @property
    def end_of_frame(self) -> int:
        """Id of the marker after every frame but the last."""
        return self.offset + self.codes

    @property
    def end_of_vision(self) -> int:
        """Id of the marker after the last frame of a picture or clip."""
        return self.offset + self.codes + 1

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame with its marker."""
        return self.frame_codes + 1

    def frames(self, codes: np.ndarray, *, closed: bool = True) -> list[int]:
        """Ids of frames `[F, frame_codes]`; `closed` ends them with the end-of-vision marker."""
        marks = np.full((len(codes), 1), self.end_of_frame)
        if closed:
            marks[-1] = self.end_of_vision
        return np.concatenate([codes + self.offset, marks], axis=1).reshape(-1).tolist()


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `media` are clips of codes, int32 `[F, frame_codes]` each."""

    role: Literal["system", "user", "assistant"]
    text: str
    media: tuple[np.ndarray, ...] = ()


def chat_prompt(
    tokenizer: AnyTokenizer,
    layout: FrameLayout,
    messages: Sequence[Message],
    style: ChatStyle = LWM,
) -> list[int]:
    """Ids of a conversation that ends where the assistant is to speak.

    Of LWM's style, turns after the first follow the end id of the answer before them. Media stand
    behind the question that they belong to, as in the original's chat about pictures and clips.
    Raises UsageError for media in another style.
    """
    if style.name == "chatml":
        return _chatml_ids(tokenizer, messages, style.system)
    system = style.system or SYSTEM
    ids: list[int] = []
    for message in messages:
        if message.role == "system":
            system = message.text
        elif message.role == "assistant":
            ids += answer_ids(tokenizer, message.text)
        else:
            ids += user_ids(tokenizer, layout, message, system if not ids else None)
    return ids


def _chatml_ids(
    tokenizer: AnyTokenizer, messages: Sequence[Message], system: str | None
) -> list[int]:
    """Ids of a conversation in ChatML: every turn between two marks, nothing in front."""
    if any(message.media for message in messages):
        raise UsageError("this model talks about text only; -m nano sees and makes pictures")
    turns = list(messages)
    if system is not None and not (turns and turns[0].role == "system"):
        turns.insert(0, Message("system", system))
    text = "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns)
    return tokenizer.encode(f"{text}<|im_start|>assistant\n", bos=False)


def user_ids(
    tokenizer: AnyTokenizer, layout: FrameLayout, message: Message, system: str | None
) -> list[int]:
    """Ids of one question up to where its answer begins; `system` opens a conversation."""
    first = system is not None
    opening = f"{system} USER: {message.text}" if first else f"USER: {message.text}"
    if not message.media:
        return tokenizer.encode(f"{opening} ASSISTANT:", bos=first)
    ids = tokenizer.encode(f"<s>{opening}\n" if first else f"{opening}\n")
    for codes in message.media:
        ids += tokenizer.encode("<vision>") + layout.frames(codes) + tokenizer.encode("</vision>")
    return ids + tokenizer.encode(" ASSISTANT:")


def answer_ids(tokenizer: AnyTokenizer, text: str) -> list[int]:
    """Ids of an answer with the end id behind it."""
    return [*tokenizer.encode(text, bos=False), tokenizer.eos_id]


def make_prompt(
    tokenizer: AnyTokenizer, caption: str, kind: Literal["image", "video"]
) -> list[int]:
    """Ids that ask for a picture or a clip; its codes follow."""
    article = {"image": "an", "video": "a"}[kind]
    return tokenizer.encode(
        f"<s>{SYSTEM} USER: Generate {article} {kind} of {caption} ASSISTANT: <vision>"
    )


def unconditional_prompt(tokenizer: AnyTokenizer) -> list[int]:
    """Ids of the prompt without a wish, for classifier-free guidance."""
    return tokenizer.encode("<s><vision>")


def pad_left(prompts: Sequence[Sequence[int]], length: int | None = None) -> tuple[np.ndarray, ...]:
    """Prompts as one array: ids, positions and segments, int32 `[B, T]`, padded on the left.

    Padding has position and segment 0. `length` is at least that of the longest prompt.
    """
    length = length or max(map(len, prompts))
    ids, positions, segments = (np.zeros((len(prompts), length), np.int32) for _ in range(3))
    for row, prompt in enumerate(prompts):
        start = length - len(prompt)
        ids[row, start:] = prompt
        positions[row, start:] = np.arange(len(prompt))
        segments[row, start:] = 1
    return ids, positions, segments
