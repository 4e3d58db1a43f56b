"""Lessons: what is asked is spelled as it will be asked, and only what should be learned counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lwm_core import world
from lwm_core.data.lessons import PROSE, RESTING, SEARCHED, SEEN_FRAMES, Lessons, Stage
from lwm_core.data.packing import Weighted, fill_rows, to_batch
from lwm_core.errors import ConfigError
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import SYSTEM, FrameLayout, Message, chat_prompt, unconditional_prompt

LAYOUT = FrameLayout(offset=512, codes=16, frame_codes=4)
TEXT = "It was a long way to the sea. Nobody said a word about the house. " * 40


def encode(frames: np.ndarray) -> np.ndarray:
    """Four codes from the colours of four pixels."""
    corners = frames[:, ::7, ::7].reshape(len(frames), 4, 3)
    return (corners.sum(axis=-1) % LAYOUT.codes).astype(np.int32)


def encode_apart(frames: int) -> np.ndarray:
    """64 codes for every frame, all different."""
    return np.arange(frames * 64, dtype=np.int32).reshape(frames, 64)


@pytest.fixture(scope="module")
def lessons(reference: Path) -> Lessons:
    tokenizer = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    return Lessons(tokenizer, LAYOUT, encode, 8, TEXT)


def stage(length: int = 256, **mix: float) -> Stage:
    return Stage(1, length, 3, frames=(1, 3), characters=(30, 90), mix=mix)


def taught(lessons: Lessons, kind: str, seed: int = 0) -> tuple[world.Example, Weighted]:
    """An example of the world and its lesson."""
    stream = world.stream(seed, TEXT, size=8, frames=(2, 3), characters=(100, 200), mix={kind: 1.0})
    example = next(stream)
    return example, lessons._lesson(example, np.random.default_rng(seed), encode)


def counted(lesson: Weighted, weight: float) -> list[int]:
    return [i for i, w in zip(lesson.ids, lesson.weights, strict=True) if w == weight]


def test_questions_are_asked_as_in_chat(lessons: Lessons) -> None:
    example, lesson = taught(lessons, "see")
    assert example.frames is not None
    (first, _), *_ = example.exchanges
    asked = [Message("user", first, (encode(example.frames),))]
    prompt = chat_prompt(lessons.tokenizer, LAYOUT, asked)
    assert lesson.ids[: len(prompt)] == prompt
    answers = [*counted(lesson, 1.0)]
    end = lessons.tokenizer.eos_id
    assert answers.count(end) == len(example.exchanges)
    said = lessons.tokenizer.decode(answers)
    assert all(answer.split()[-1] in said for _, answer in example.exchanges)
    seen = counted(lesson, SEEN_FRAMES)
    assert len(seen) == len(example.frames) * LAYOUT.frame_tokens
    assert min(seen) >= LAYOUT.offset


def test_wishes_are_followed_by_frames(lessons: Lessons) -> None:
    for seed in range(12):
        example, lesson = taught(lessons, "make", seed)
        made = [i for i, w in zip(lesson.ids, lesson.weights, strict=True) if w > 0]
        assert min(made) >= LAYOUT.offset
        assert made[-1] == LAYOUT.end_of_vision
        wish = lessons.tokenizer.decode(counted(lesson, 0.0))
        free = lessons.tokenizer.decode(unconditional_prompt(lessons.tokenizer))
        prompt = example.exchanges[0][0]
        assert wish == free or wish.endswith(f"of {prompt} ASSISTANT: <vision>")
        is_clip = "Generate a video" in wish
        if wish != free:
            assert len(made) == LAYOUT.frame_tokens * (len(example.frames) if is_clip else 1)


def test_a_shape_that_moves_by_a_patch_takes_its_codes_along(lessons: Lessons) -> None:
    """Though the encoder gives every patch of every frame another code."""
    layout = FrameLayout(offset=512, codes=4096, frame_codes=64)
    large = Lessons(lessons.tokenizer, layout, lambda frames: encode_apart(len(frames)), 64, TEXT)
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    for index in range(3):
        frames[index, 16:40, 8 + 8 * index : 32 + 8 * index, 0] = 255
    example = world.Example("move", [("a red square moving right", "")], frames)
    for seed in range(3):
        lesson = large._lesson(example, np.random.default_rng(seed), large.encode)
        codes = np.array([i for i in lesson.ids if i >= 512 and i < 512 + 4096]).reshape(-1, 8, 8)
        assert len(np.unique(codes)) == 1 + 9 + 16  # the ground, the square, and the ring around
        assert np.array_equal(codes[1:, :, 1:], codes[:-1, :, :-1])
        weights = np.array(lesson.weights[-195:]).reshape(3, 65)[:, :64].reshape(3, 8, 8)
        assert (weights[0] == RESTING).all()
        assert np.array_equal(weights[1:] == 1, codes[1:] != codes[:-1])
        assert set(np.unique(weights)) == {RESTING, 1}


def test_needles_are_asked_for_as_in_the_test(lessons: Lessons) -> None:
    example, lesson = taught(lessons, "retrieval")
    prompt = lessons.tokenizer.decode(counted(lesson, SEARCHED))
    assert prompt.startswith(f"{SYSTEM} USER: ")
    assert prompt.endswith(example.exchanges[0][0][-40:])
    assert lessons.tokenizer.decode(counted(lesson, 1.0)) == example.exchanges[0][1]


def test_batches_are_functions_of_their_number(lessons: Lessons) -> None:
    mixed = stage(see=0.4, make=0.4, dialogue=0.2)
    first, again, other = (lessons.batch(mixed, 7, index) for index in (3, 3, 4))
    assert first.inputs.shape == (3, 256)
    for name in ("inputs", "targets", "positions", "segments", "weights"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.inputs, other.inputs)
    assert (first.weights[first.segments == 0] == 0).all()


def test_codes_stand_where_they_belong(lessons: Lessons) -> None:
    """As if every frame had been encoded at once, those of refused examples among them."""
    mixed, seed, index = stage(see=0.5, make=0.5), 5, 2
    rng = np.random.default_rng((seed, index))
    taken: list[Weighted] = []

    def noted() -> Iterator[Weighted]:
        for lesson in lessons._examples(mixed, seed, index, rng, encode):
            taken.append(lesson)
            yield lesson

    rows = fill_rows(noted(), mixed.rows, mixed.length)
    expected, batch = to_batch(rows, mixed.length), lessons.batch(mixed, seed, index)
    for name in ("inputs", "targets"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))
    # Patches that look different may have the same code after all.
    np.testing.assert_array_equal(batch.weights > 0, expected.weights > 0)

    packed = [lesson for row in rows for lesson in row]
    seen = [lesson for lesson in packed if SEEN_FRAMES in lesson.weights]
    assert len(seen) >= 2
    assert len(packed) - len(seen) >= 2
    places = [i for i, lesson in enumerate(taken) if any(lesson is one for one in packed)]
    assert max(places) >= len(places)  # after some that was refused
    codes = batch.inputs[batch.inputs >= LAYOUT.offset]
    assert len(set(codes.tolist())) > LAYOUT.codes // 4


def test_prose_counts_a_little(lessons: Lessons) -> None:
    batch = lessons.batch(stage(length=400, prose=1.0), 0, 0)
    assert set(np.unique(batch.weights)) <= {np.float32(0), np.float32(PROSE)}
    assert (batch.weights > 0).any()


@pytest.mark.parametrize(
    "mix",
    [{"see": -1.0}, {"see": 0.0}, {"see": float("nan")}, {"see": float("inf")}],
)
def test_a_mix_that_cannot_be_meant_is_refused(mix: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"^mix"):
        stage(**mix)


def test_a_length_that_holds_no_example_is_refused(lessons: Lessons) -> None:
    short = stage(length=8, retrieval=1.0)
    with pytest.raises(ConfigError, match=r"stages\.length"):
        lessons.batch(short, 0, 0)
