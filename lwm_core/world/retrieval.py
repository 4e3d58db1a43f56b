"""Retrieval tasks: a number hidden in long text, in the exact wording of the needle test; and
short notes with numbers, as people write and ask for them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lwm_core.wording import CITIES, NEEDLE, ask
from lwm_core.world.words import Exchange, pick, typed

ANSWER = "The special magic {city} number is: {number}."
PLACES = sorted(set(CITIES))
BEGUN = 0.75
"""Share of the texts that begin with a literal `<s> `, as those of the test do."""

MOST_NOTES = 4


class Wording(NamedTuple):
    """How a number is noted, asked for and told; all of them name a noun, a city and a number."""

    note: str
    questions: tuple[str, ...]
    answer: str


NOTES = (
    Wording(
        "The {noun} number for {city} is {number}.",
        (
            "What is the {noun} number for {city}?",
            "Which {noun} number has {city}?",
            "What's {city}'s {noun} number?",
        ),
        "The {noun} number for {city} is {number}.",
    ),
    Wording(
        "The special magic {city} number is: {number}.",
        ("What is the magic number for {city}?", "What is the special magic {city} number?"),
        "The special magic {city} number is: {number}.",
    ),
    Wording(
        "{city}: {number}.",
        (
            "What is the number for {city}?",
            "Which number has {city}?",
            "What stands behind {city}?",
        ),
        "The number for {city} is {number}.",
    ),
    Wording(
        "The code of {city} is {number}.",
        ("What is the code of {city}?", "What is {city}'s code?", "Tell me the code of {city}."),
        "The code of {city} is {number}.",
    ),
)
NOUNS = ("magic", "secret", "lucky", "telephone", "house")


def sample(
    rng: np.random.Generator, haystack: str, *, characters: int, needles: int = 1, asked: int = 1
) -> tuple[str, str]:
    """The whole prompt, from the system's words to `ASSISTANT: `, and the answer.

    The text with its needles has about `characters` characters, cut from a random place of
    `haystack`; the needles stand at random ends of sentences. With several needles `asked` of
    the cities are asked for, in the wording of the test with several needles.
    """
    cities = [PLACES[i] for i in rng.choice(len(PLACES), needles, replace=False)]
    numbers = rng.integers(10**6, 10**7, needles)
    hidden = [NEEDLE.format(city=c, number=n) for c, n in zip(cities, numbers, strict=True)]
    context = cut(rng, haystack, max(0, characters - sum(map(len, hidden))))
    if rng.random() < BEGUN:
        context = f"<s> {context}"
    for needle in hidden:
        place = insertion_point(context, np.clip(rng.uniform(-0.1, 1.1), 0, 1))
        context = context[:place] + needle + context[place:]
    answers = (ANSWER.format(city=c, number=n) for c, n in zip(cities, numbers, strict=True))
    return ask(context, cities[:asked], of=needles), " ".join(list(answers)[:asked])


def notes(rng: np.random.Generator, haystack: str, *, characters: int) -> Exchange:
    """Up to MOST_NOTES notes of numbers of two to seven figures; one of them is asked for.

    All is in the user's words: the notes, mostly at the ends of sentences of a text of at most
    `characters` characters, then the question.
    """
    wording, noun = pick(rng, NOTES), pick(rng, NOUNS)
    count = int(rng.integers(1, MOST_NOTES + 1))
    cities = [PLACES[i] for i in rng.choice(len(PLACES), count, replace=False)]
    numbers = [rng.integers(10, 10 ** rng.integers(2, 8)) for _ in cities]
    facts = [{"noun": noun, "city": c, "number": n} for c, n in zip(cities, numbers, strict=True)]
    lines = [wording.note.format(**fact) for fact in facts]
    context = cut(rng, haystack, characters) if rng.random() < 0.7 else ""
    context = context[: context.rfind(".") + 1].strip()  # whole sentences
    between = pick(rng, ("\n", " "))
    for line in lines:
        place = insertion_point(context, rng.random())
        parts = (context[:place], line, context[place:].lstrip())
        context = between.join(part for part in parts if part)
    asked = facts[rng.integers(count)]
    question = typed(rng, pick(rng, wording.questions).format(**asked))
    return context + pick(rng, ("\n\n", "\n", " ")) + question, wording.answer.format(**asked)


def cut(rng: np.random.Generator, haystack: str, characters: int) -> str:
    """`characters` of `haystack` (if it has so many), from the start of a sentence."""
    latest = max(0, len(haystack) - characters)
    start = int(rng.integers(latest + 1))
    sentence = haystack.find(". ", start, start + 400) + 2
    start = min(sentence, latest) if sentence > 1 else start
    return haystack[start : start + characters]


def insertion_point(context: str, depth: float) -> int:
    """Where a needle goes at `depth` 0..1: the end, or after the last full stop before it."""
    return len(context) if depth == 1 else context.rfind(".", 0, int(len(context) * depth)) + 1
