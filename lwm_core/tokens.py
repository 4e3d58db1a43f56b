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
CALL = " ASSISTANT:"
"""What stands before an answer."""
DESCRIBE = {"image": "What is in the picture?", "video": "What happens?"}
"""What is asked of a picture or a clip where there is no other question."""

Kind = Literal["image", "video"]


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
    opening: Sequence[int] = (),
) -> list[int]:
    """Ids of a conversation that ends where the assistant is to speak.

    Of LWM's style, turns after the first follow the end id of the answer before them. Media stand
    behind the question that they belong to, as in the original's chat about pictures and clips.
    An `opening` is what `opening_ids` gave; the first message is about it. Raises UsageError for
    media in another style.
    """
    if style.name == "chatml":
        return [*opening, *_chatml_ids(tokenizer, messages, style.system, is_open=bool(opening))]
    system = style.system or SYSTEM
    ids = list(opening)
    if opening:
        first, *messages = messages
        ids += _question_ids(tokenizer, layout, first, "")
    for message in messages:
        if message.role == "system":
            system = message.text
        elif message.role == "assistant":
            ids += answer_ids(tokenizer, message.text)
        else:
            ids += user_ids(tokenizer, layout, message, system if not ids else None)
    return ids


def opening_ids(
    tokenizer: AnyTokenizer,
    layout: FrameLayout,
    shown: Message,
    style: ChatStyle = LWM,
    system: str | None = None,
) -> list[int]:
    """Ids of what a conversation is about, up to where its first question begins.

    The text and the media of `shown` stand before the question here, so that many can be asked
    about what is read once. Raises UsageError for media in a style other than LWM's.
    """
    system = system or style.system
    text = f"{shown.text}\n" if shown.text else ""
    if style.name == "chatml":
        _check_text_only([shown])
        told = f"<|im_start|>system\n{system}<|im_end|>\n" if system is not None else ""
        return tokenizer.encode(f"{told}<|im_start|>user\n{text}", bos=False)
    begin = "<s>" if shown.media else ""
    ids = tokenizer.encode(f"{begin}{system or SYSTEM} USER:{text and ' '}{text}")
    return ids + _media_ids(tokenizer, layout, shown)


def _chatml_ids(
    tokenizer: AnyTokenizer, messages: Sequence[Message], system: str | None, *, is_open: bool
) -> list[int]:
    """Ids of a conversation in ChatML: every turn between two marks, nothing in front.

    Where it is open already, the first turn only has its second mark.
    """
    _check_text_only(messages)
    turns = list(messages)
    if system is not None and not is_open and not (turns and turns[0].role == "system"):
        turns.insert(0, Message("system", system))
    text = "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns)
    text = text.removeprefix("<|im_start|>user\n") if is_open else text
    return tokenizer.encode(f"{text}<|im_start|>assistant\n", bos=False)


def _check_text_only(messages: Sequence[Message]) -> None:
    if any(message.media for message in messages):
        raise UsageError("this model talks about text only; -m nano sees and makes pictures")


def user_ids(
    tokenizer: AnyTokenizer, layout: FrameLayout, message: Message, system: str | None
) -> list[int]:
    """Ids of one question up to where its answer begins; `system` opens a conversation."""
    if system is None:
        return _question_ids(tokenizer, layout, message, "USER: ")
    return _question_ids(tokenizer, layout, message, f"{system} USER: ", first=True)


def _question_ids(
    tokenizer: AnyTokenizer,
    layout: FrameLayout,
    message: Message,
    before: str,
    *,
    first: bool = False,
) -> list[int]:
    """Ids of some words, a question, its media, and the call to answer."""
    opening = f"{before}{message.text}"
    if not message.media:
        return tokenizer.encode(f"{opening}{CALL}", bos=first)
    ids = tokenizer.encode(f"<s>{opening}\n" if first else f"{opening}\n")
    return ids + _media_ids(tokenizer, layout, message) + tokenizer.encode(CALL)


def _media_ids(tokenizer: AnyTokenizer, layout: FrameLayout, message: Message) -> list[int]:
    return [token for codes in message.media for token in clip_ids(tokenizer, layout, codes)]


def clip_ids(tokenizer: AnyTokenizer, layout: FrameLayout, codes: np.ndarray) -> list[int]:
    """Ids of a picture or clip between its two tags; codes are `[F, frame_codes]`."""
    return [*tokenizer.encode("<vision>"), *layout.frames(codes), *tokenizer.encode("</vision>")]


def answer_ids(tokenizer: AnyTokenizer, text: str) -> list[int]:
    """Ids of an answer with the end id behind it."""
    return [*tokenizer.encode(text, bos=False), tokenizer.eos_id]


def question_text(question: str) -> str:
    """A conversation's first question about media, as it stands before them."""
    return f"{SYSTEM} USER: {question}\n"


def wish_text(caption: str, kind: Kind) -> str:
    """What asks for a picture or a clip."""
    article = {"image": "an", "video": "a"}[kind]
    return f"{SYSTEM} USER: Generate {article} {kind} of {caption}{CALL}"


def make_prompt(tokenizer: AnyTokenizer, caption: str, kind: Kind) -> list[int]:
    """Ids that ask for a picture or a clip; its codes follow."""
    return tokenizer.encode(f"<s>{wish_text(caption, kind)} <vision>")


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
