"""Prompts and frames become exactly the ids that the original feeds its models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lwm_core.config import ModelConfig
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import (
    FrameLayout,
    Message,
    answer_ids,
    chat_prompt,
    make_prompt,
    pad_left,
    unconditional_prompt,
)

LAYOUT = FrameLayout(offset=512, codes=8192, frame_codes=256)
SMALL = FrameLayout(offset=100, codes=8, frame_codes=3)


@pytest.fixture(scope="module")
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.load(reference / "tokenizer/tokenizer.model")


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, np.ndarray]:
    """Inputs of the original's pictures, clip and chat; vision ids behind the text ids, as ours."""
    with np.load(reference / "vision_full/generate.npz") as stored:
        arrays = dict(stored)
    for name in ("image", "video", "chat"):
        arrays[f"{name}.input_ids"] += LAYOUT.offset * arrays[f"{name}.vision_masks"]
    return arrays


@pytest.fixture(scope="module")
def meta(reference: Path) -> dict:
    return json.loads((reference / "vision_full/generate_meta.json").read_text())


def caption(prompt: str) -> str:
    """What a prompt of the original asks for."""
    return prompt.partition(" of ")[2].removesuffix(" ASSISTANT: <vision>")


def assert_padded(prompts: list[list[int]], golden: dict[str, np.ndarray], name: str) -> None:
    """The same ids where the original's mask is on; its padding is ours."""
    expected, mask = golden[f"{name}.input_ids"], golden[f"{name}.attention_mask"]
    ids, positions, segments = pad_left(prompts, expected.shape[1])
    np.testing.assert_array_equal(segments, mask)
    np.testing.assert_array_equal(ids, expected * mask)
    np.testing.assert_array_equal(positions, np.maximum(mask.cumsum(1) - 1, 0))


def test_picture_prompts(tokenizer: Tokenizer, golden: dict, meta: dict) -> None:
    wishes = [caption(prompt) for prompt in meta["image_prompts"][:2]]
    assert wishes == ["Fireworks over the city", "a red boat"]
    asked = [make_prompt(tokenizer, wish, "image") for wish in wishes]
    assert_padded([*asked, *[unconditional_prompt(tokenizer)] * 2], golden, "image")


def test_clip_prompt(tokenizer: Tokenizer, golden: dict, meta: dict) -> None:
    """The first frame stands behind both prompts, ended by the marker of a frame that goes on."""
    given = golden["video.input_ids"][0, -LAYOUT.frame_tokens :]
    frame = LAYOUT.frames(given[None, :-1] - LAYOUT.offset, closed=False)
    assert frame[-1] == LAYOUT.end_of_frame
    asked = make_prompt(tokenizer, caption(meta["video_prompts"][0]), "video")
    assert_padded([asked + frame, unconditional_prompt(tokenizer) + frame], golden, "video")


def test_chat_prompt(tokenizer: Tokenizer, golden: dict, meta: dict) -> None:
    ids, vision = golden["chat.input_ids"][0], golden["chat.vision_masks"][0]
    codes = ids[vision].reshape(-1, LAYOUT.frame_tokens)[:, :-1] - LAYOUT.offset
    question = Message("user", meta["chat_question"], (codes,))
    assert_padded([chat_prompt(tokenizer, LAYOUT, [question])], golden, "chat")


def test_question_without_pictures(reference: Path, tokenizer: Tokenizer) -> None:
    """The original cut this one on the left, behind its beginning of text."""
    prompt = json.loads((reference / "text_a/generate_text.json").read_text())["prompts"][0]
    system, _, question = prompt.removesuffix(" ASSISTANT:").partition(" USER: ")
    said = [Message("system", system), Message("user", question)]
    with np.load(reference / "text_a/golden.npz") as stored:
        bos, *given = stored["generate.prompt_ids"][0]
    ids = chat_prompt(tokenizer, LAYOUT, said)
    assert ids[0] == bos
    assert ids[-len(given) :] == given
    assert chat_prompt(tokenizer, LAYOUT, said[1:]) == ids


def test_conversation_continues_what_was_said(tokenizer: Tokenizer) -> None:
    """The ids of a longer conversation begin with those of the shorter, so a cache stays valid."""
    codes = np.zeros((1, 3), np.int32)
    said = [
        Message("system", "Be brief."),
        Message("user", "Hello", (codes,)),
        Message("assistant", "Hi!"),
        Message("user", "And this?", (codes,)),
    ]
    before = chat_prompt(tokenizer, SMALL, said[:2])
    whole = chat_prompt(tokenizer, SMALL, said)
    assert whole[: len(before)] == before
    rest = whole[len(before) :]
    answer = answer_ids(tokenizer, "Hi!")
    assert rest[: len(answer)] == answer
    assert answer[-1] == tokenizer.eos_id
    assert tokenizer.bos_id not in answer
    text = tokenizer.decode([token for token in whole if token < SMALL.offset or token > 111])
    assert text.startswith("Be brief. USER: Hello")
    assert text.endswith(" ASSISTANT:")


def test_frames() -> None:
    codes = np.array([[1, 2, 3], [4, 5, 6]])
    assert SMALL.frame_tokens == 4
    assert SMALL.frames(codes) == [101, 102, 103, 108, 104, 105, 106, 109]
    assert SMALL.frames(codes, closed=False) == [101, 102, 103, 108, 104, 105, 106, 108]
    config = ModelConfig(
        text_vocab=100, vision_vocab=10, vision_codes=8, frame_codes=3, hidden=8, intermediate=8,
        layers=1, heads=1, kv_heads=1, head_dim=8, max_length=8,
    )  # fmt: skip
    assert FrameLayout.of(config) == SMALL


def test_padding_to_the_longest() -> None:
    ids, positions, segments = pad_left([[5, 6, 7], [8]])
    np.testing.assert_array_equal(ids, [[5, 6, 7], [0, 0, 8]])
    np.testing.assert_array_equal(positions, [[0, 1, 2], [0, 0, 0]])
    np.testing.assert_array_equal(segments, [[1, 1, 1], [0, 0, 1]])
    assert ids.dtype == positions.dtype == segments.dtype == np.int32
