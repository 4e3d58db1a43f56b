"""Conversations become what `lwm chat` would say and hear, and only answers are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm_core.data.conversation import chat_encoder
from lwm_core.errors import RecordError
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import FrameLayout, Message, chat_prompt

LAYOUT = FrameLayout(offset=512, codes=32, frame_codes=4)


@pytest.fixture(scope="module")
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.load(reference / "tokenizer/tokenizer.model")


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


TURNS = (("user", "Hello"), ("assistant", "Hi!"), ("user", "Who?"), ("assistant", "Me, I am."))


def test_it_reads_as_the_prompt_of_each_answer(tokenizer: Tokenizer) -> None:
    """Up to each answer, the ids are those that the model is asked with; the rest is learned."""
    (example,) = chat_encoder(tokenizer, LAYOUT)(0, said(*TURNS))
    messages = [Message(role, text) for role, text in TURNS]  # type: ignore[arg-type]
    learned = np.zeros(len(example.ids))
    for number in (1, 3):
        prompt = chat_prompt(tokenizer, LAYOUT, messages[:number])
        assert example.ids[: len(prompt)] == prompt
        end = example.ids.index(tokenizer.eos_id, len(prompt)) + 1
        assert tokenizer.decode(example.ids[len(prompt) : end]) == messages[number].text
        learned[len(prompt) : end] = 1
    assert end == len(example.ids)
    assert example.weights == learned.tolist()


def test_a_clip_is_looked_at(tokenizer: Tokenizer) -> None:
    record = said(*TURNS[:2])
    record["messages"][0]["vision"] = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    (example,) = chat_encoder(tokenizer, LAYOUT)(0, record)
    codes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    prompt = chat_prompt(tokenizer, LAYOUT, [Message("user", "Hello", (codes,))])
    assert example.ids[: len(prompt)] == prompt
    assert sum(example.weights) == len(example.ids) - len(prompt)


def test_a_picture_is_made(tokenizer: Tokenizer) -> None:
    record = said(("user", "Draw a cat"), ("assistant", ""))
    record["messages"][1]["vision"] = [1, 2, 3, 4]
    (example,) = chat_encoder(tokenizer, LAYOUT)(0, record)
    frame = LAYOUT.frames(np.array([[1, 2, 3, 4]]))
    at = example.ids.index(frame[0])
    assert example.ids[at : at + len(frame)] == frame
    assert example.weights[at : at + len(frame)] == [1.0] * len(frame)
    assert tokenizer.decode(example.ids[:at]).endswith("ASSISTANT: <vision>")
    assert example.ids[-1] == tokenizer.eos_id


def test_share_gpt_says_the_same(tokenizer: Tokenizer) -> None:
    encode = chat_encoder(tokenizer, LAYOUT)
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[role], "value": text} for role, text in TURNS]
    same = encode(0, said(*TURNS))
    assert encode(0, {"conversations": turns}) == same
    assert encode(0, {"conversations": turns, "messages": None}) == same  # as in a table
    assert encode(0, said(*TURNS, ("user", "Unanswered"))) == same


def test_a_system_message_opens_it(tokenizer: Tokenizer) -> None:
    (example,) = chat_encoder(tokenizer, LAYOUT)(0, said(("system", "Be brief."), *TURNS))
    assert tokenizer.decode(example.ids).startswith("Be brief. USER: Hello ASSISTANT:")
    (usual,) = chat_encoder(tokenizer, LAYOUT)(0, said(*TURNS))
    assert tokenizer.decode(usual.ids).startswith("You are a helpful assistant. USER: Hello")
    assert sum(example.weights) == sum(usual.weights)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "record 3: messages is missing"),
        ({"messages": "Hello"}, "messages is no list"),
        ({"messages": ["Hello"]}, "messages is no list"),
        ({"messages": []}, "messages has no answer"),
        (said(("user", "Hello")), "messages has no answer"),
        (said(("system", "Be brief.")), "messages has no answer"),
        (said(("assistant", "Hi!")), r"messages\[0\]\.role is of the assistant, where the user"),
        (said(*TURNS[:1], ("user", "You?")), r"messages\[1\]\.role is of the user"),
        (said(*TURNS[:2], ("system", "Be.")), r"messages\[2\]\.role is of the system"),
        (said(("tool", "3")), r"messages\[0\]\.role is 'tool'; known are"),
        ({"messages": [{"content": "Hello"}]}, r"messages\[0\]\.role is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content is int"),
        (
            {"messages": [{"role": "user", "content": "See", "vision": [1]}]},
            r"messages\[0\]\.vision has 1 codes",
        ),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\]\.value is missing"),
    ],
)
def test_a_record_that_is_none_is_named(
    tokenizer: Tokenizer, record: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecordError, match=reason):
        chat_encoder(tokenizer, LAYOUT)(3, record)
