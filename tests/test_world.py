"""The world as a whole: scenes of any kind, noise, texts and dialogues, and their stream."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from pixels import generator

from lwm_core.world import dialogue, retrieval, sample_scene, sample_shapes, stream
from lwm_core.world.noise import degrade
from lwm_core.world.stream import MIX

HAYSTACK = "".join(f"This is sentence number {i} of a long text.\n" for i in range(4000))


def test_pictures_are_not_asked_about_motion() -> None:
    for index in range(60):
        scene = sample_scene(generator(index), frames=1, purpose="see")
        told = " ".join(answer for _, answer in scene.questions(generator(index), 12))
        assert not re.search(r"moves|grows|shrinks|stands still|bounces|drives|rises", told)


@pytest.mark.parametrize("frames", range(1, 17))
def test_any_length_and_size(frames: int) -> None:
    for purpose in ("see", "make"):
        for seed in range(6):
            scene = sample_scene(generator(seed), frames=frames, purpose=purpose)
            assert scene.frames == frames
            clip = scene.render(32 + 4 * seed)
            assert clip.shape == (frames, 32 + 4 * seed, 32 + 4 * seed, 3)
            assert clip.dtype == np.uint8
            assert len(scene.questions(generator(0), 5)) == 5
            np.testing.assert_array_equal(clip, scene.render(32 + 4 * seed))


def test_making_is_clean_and_seeing_is_mixed() -> None:
    noisy = {
        purpose: [
            sample_scene(generator(i), frames=2, purpose=purpose).noise_seed is not None
            for i in range(200)
        ]
        for purpose in ("see", "make")
    }
    assert not any(noisy["make"])
    assert 0.4 < np.mean(noisy["see"]) < 0.8


def test_noise_keeps_what_is_seen() -> None:
    clip = sample_shapes(generator(5), frames=3, purpose="make").render(50)
    before = clip.copy()
    worse = [degrade(clip, generator(i)) for i in range(40)]
    np.testing.assert_array_equal(clip, before)
    assert all(w.shape == clip.shape and w.dtype == np.uint8 for w in worse)
    errors = [np.abs(w.astype(float) - clip).mean() for w in worse]
    assert max(errors) < 50
    assert len({w.tobytes() for w in worse}) > 30
    np.testing.assert_array_equal(worse[7], degrade(clip, generator(7)))


@pytest.mark.parametrize("characters", [150, 600, 5000])
def test_retrieval_in_the_wording_of_the_needle_test(characters: int) -> None:
    places = set()
    for seed in range(30):
        body, answer = retrieval.sample(generator(seed), HAYSTACK, characters=characters)
        city, number = re.fullmatch(r"The special magic (.+) number is: (\d{7})\.", answer).groups()
        needle = f"\nThe special magic {city} number is: {number}\n"
        head = "You are a helpful assistant. USER: "
        tail = (
            f" What is the special magic {city} number? Don't give information outside the document"
            " or repeat your findings. Keep your response short and direct. ASSISTANT: "
        )
        assert body.count(needle) == 1
        assert body.startswith(head)
        assert body.endswith(tail)
        text = body.removeprefix(head).removesuffix(tail).replace("<s> ", "")
        before, after = text.split(needle)
        assert before[-1:] in (".", "") or not after
        assert before + after in HAYSTACK
        assert len(before + needle + after) == characters
        places.add(round(5 * len(before) / characters))
    assert len(places) >= 3


def test_several_needles_in_the_wording_of_the_needle_test() -> None:
    body, answer = retrieval.sample(generator(0), HAYSTACK, characters=2000, needles=4, asked=3)
    asked = re.search(r"What are the special magic numbers for (.+), (.+), and (.+)\? Don't", body)
    found = re.findall(r"\nThe special magic (.+) number is: (\d+)\n", body)
    assert len(found) == 4
    assert answer == " ".join(
        f"The special magic {city} number is: {dict(found)[city]}." for city in asked.groups()
    )
    assert body.endswith("? Don't give information outside the document. ASSISTANT: ")
    body, answer = retrieval.sample(generator(1), HAYSTACK, characters=2000, needles=4)
    city = re.search(r"What is the special magic number for (.+)\?", body)[1]
    assert answer.startswith(f"The special magic {city} number is: ")


def test_notes_are_asked_for_after_they_were_made() -> None:
    """Among whole sentences or alone; one of them is asked for, wherever it stands."""
    prose = "".join(f"This is sentence {n} of a text. " for n in "abcdefghijklmnopqrstuvwxyz")
    prose *= 40
    figures, counts, places, lengths = set(), set(), set(), []
    for seed in range(200):
        asked, answer = retrieval.notes(generator(seed), prose, characters=400)
        *lines, question = re.split(r"(?<=\.)\s+", asked)
        sentences = [line for line in lines if line.startswith("This is")]
        notes = [line for line in lines if line not in sentences]
        assert all(sentence in prose for sentence in sentences)
        assert all(re.search(r"\d+\.$", note) for note in notes)
        number = re.search(r"(\d+)\.$", answer)[1]
        (place,) = [n for n, note in enumerate(notes) if note.endswith(f" {number}.")]
        city = next(c for c in sorted(retrieval.PLACES, key=len) if c in notes[place])
        assert city in answer
        assert city in question
        figures.add(len(number))
        counts.add(len(notes))
        places.add(place)
        lengths.append(len(" ".join(sentences)))
    assert figures == {2, 3, 4, 5, 6, 7}
    assert counts == {1, 2, 3, 4}
    assert places == {0, 1, 2, 3}
    assert 0.1 < np.mean(np.array(lengths) == 0) < 0.5
    assert max(lengths) <= 400


def test_dialogues_remember_what_was_said() -> None:
    remembered = 0
    for seed in range(300):
        turns = dialogue.sample(generator(seed))
        assert 1 <= len(turns) <= 9
        assert all(user and answer for user, answer in turns)
        said = " ".join(user for user, _ in turns)
        for user, answer in turns:
            if named := re.fullmatch(r"Your name is (\w+)\.", answer):
                remembered += 1
                assert re.search(rf"(name is|am|I'm|me) {named[1]}\.", said)
            if total := re.fullmatch(r"(\d+) plus (\d+) is (\d+)\.", answer):
                assert int(total[1]) + int(total[2]) == int(total[3])
                assert total[1] in user
    assert remembered > 5


def test_what_is_repeated_was_said() -> None:
    for seed in range(50):
        ((question, answer),) = dialogue.repeat(generator(seed))
        words = answer.removesuffix(".")
        assert words.lower() in question.lower()


def test_streams_are_functions_of_their_seed() -> None:
    mix = dict.fromkeys(MIX, 1.0)
    options = {"size": 32, "frames": (1, 4), "characters": (100, 300), "mix": mix}
    first, again = (list(itertools.islice(stream(7, HAYSTACK, **options), 40)) for _ in range(2))
    assert {example.kind for example in first} == set(MIX)
    for one, other in zip(first, again, strict=True):
        assert (one.kind, one.exchanges) == (other.kind, other.exchanges)
        np.testing.assert_array_equal(one.frames, other.frames)
    assert first[0].exchanges != next(stream(8, HAYSTACK, **options)).exchanges


def test_parts_may_be_asked_for_first() -> None:
    examples = itertools.islice(stream(1, "", size=8, frames=(4, 4), mix={"see": 1.0}), 80)
    first = [example.exchanges[0][0].lower() for example in examples]
    assert 5 < sum("which" in question or "how many" in question for question in first) < 40
    assert sum("happen" in question for question in first) > 15


def test_what_the_world_has_not_is_no_example() -> None:
    with pytest.raises(KeyError):
        next(stream(0, HAYSTACK, mix={"sea": 1.0}))
