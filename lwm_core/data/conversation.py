"""Conversations as records: all is read, and what the assistant says is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

from lwm_core.data.entry import Encoder, Entry
from lwm_core.data.packing import Weighted, weigh
from lwm_core.tokens import SYSTEM, FrameLayout, Message, answer_ids, clip_ids, user_ids
from lwm_core.vocabulary import AnyTokenizer

Turn = Literal["user", "assistant"]
TURNS: tuple[Turn, Turn] = ("user", "assistant")
VISION = "vision"
ROLES = {
    **{"system": "system", "user": "user", "assistant": "assistant"},
    **{"human": "user", "gpt": "assistant"},
}
"""Who speaks, as it is written in `messages`, and in the `conversations` of ShareGPT."""


def chat_encoder(tokenizer: AnyTokenizer, layout: FrameLayout) -> Encoder:
    """Makes one example of a conversation, worded as `lwm chat` words it.

    Records are `{"messages": [{"role": …, "content": …}, …]}`, or as ShareGPT has them
    `{"conversations": [{"from": …, "value": …}, …]}`. A message may have `vision`, a flat list of
    codes: of a question it is looked at, of an answer it is made, before what is said. Questions
    and answers take turns; a system message may come first, and a last question without an answer
    is left out. Other records raise RecordError.
    """
    return _ChatEncoder(tokenizer, layout)


@dataclass(frozen=True)
class _Spelling:
    """The keys of a conversation's messages, and in each of who speaks and what is said."""

    messages: str
    role: str
    text: str


OPENAI = _Spelling("messages", "role", "content")
SHAREGPT = _Spelling("conversations", "from", "value")


@dataclass(frozen=True)
class _ChatEncoder:
    tokenizer: AnyTokenizer
    layout: FrameLayout

    def __call__(self, index: int, record: Mapping[str, Any]) -> list[Weighted]:
        entry = Entry(index, record)
        keys = SHAREGPT if entry.has(SHAREGPT.messages) else OPENAI
        parts = list(entry.parts(keys.messages))
        system = SYSTEM
        if parts and _role(parts[0], keys) == "system":
            system = parts.pop(0).text(keys.text)
        messages = [self._message(*turn, keys) for turn in zip(parts, cycle(TURNS))]
        whole = Weighted([], [])
        for question, answer in zip(messages[::2], messages[1::2], strict=False):
            opening = None if whole.ids else system
            whole += weigh(user_ids(self.tokenizer, self.layout, question, opening), 0.0)
            for codes in answer.media:
                whole += weigh(clip_ids(self.tokenizer, self.layout, codes), 1.0)
            whole += weigh(answer_ids(self.tokenizer, answer.text), 1.0)
        if not whole.ids:
            raise entry.wrong(keys.messages, "has no answer to learn from")
        return [whole]

    def _message(self, part: Entry, due: Turn, keys: _Spelling) -> Message:
        """One turn, of who is to speak."""
        if (role := _role(part, keys)) != due:
            raise part.wrong(keys.role, f"is of the {role}, where the {due} is to speak")
        media = (part.codes(VISION, self.layout),) if part.has(VISION) else ()
        return Message(due, part.text(keys.text), media)


def _role(part: Entry, keys: _Spelling) -> str:
    """Who speaks, by our name."""
    said = part.text(keys.role)
    if said not in ROLES:
        raise part.wrong(keys.role, f"is {said!r:.40}; known are {', '.join(ROLES)}")
    return ROLES[said]
