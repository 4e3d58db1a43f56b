"""Retrieval tasks: a number hidden in long text, in the exact wording of the needle test; and
short notes with numbers, as people write and ask for them.
"""

from __future__ import annotations

import numpy as np

from lwm_core.wording import CITIES, NEEDLE, ask
from lwm_core.world.words import Exchange, pick, typed

ANSWER = "The special magic {city} number is: {number}."
PLACES = sorted(set(CITIES))
BEGUN = 0.75
"""Share of the texts that begin with a literal `<s> `, as those of the test do."""

MOST_NOTES = 4
# How a number is noted, how it is asked for, and how the answer begins.
NOTES = (
    (
        "The {} number for {} is {}.",
        ("What is the {} number for {}?", "Which {} number has {}?", "What's {1}'s {0} number?"),
        "The {} number for {} is {}.",
    ),
    (
        "The special magic {1} number is: {2}",
        ("What is the magic number for {1}?", "What is the special magic {1} number?"),
        "The special magic {1} number is: {2}.",
    ),
    (
        "{1}: {2}",
        ("What is the number for {1}?", "Which number has {1}?", "What stands behind {1}?"),
        "The number for {1} is {2}.",
    ),
    (
        "The code of {1} is {2}.",
        ("What is the code of {1}?", "What is {1}'s code?", "Tell me the code of {1}."),
        "The code of {1} is {2}.",
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
    """Up to MOST_NOTES numbers of two to seven figures, mostly among sentences, and one of them.

    All is in the user's words: the notes in about `characters` characters of text, the question.
    """
    note, questions, answer = pick(rng, NOTES)
    noun = pick(rng, NOUNS)
    count = int(rng.integers(1, MOST_NOTES + 1))
    cities = [PLACES[i] for i in rng.choice(len(PLACES), count, replace=False)]
    facts = [(noun, city, rng.integers(10, 10 ** rng.integers(2, 8))) for city in cities]
    lines = [note.format(*fact) for fact in facts]
    if rng.random() < 0.7:
        sentences = cut(rng, haystack, characters).replace("\n", " ").split(". ")
        places = np.sort(rng.integers(0, len(sentences) + 1, count))
        for place, line in reversed(list(zip(places, lines, strict=True))):
            sentences.insert(place, line.removesuffix("."))
        text = pick(rng, (". ", ".\n")).join(sentences).strip()
    else:
        text = pick(rng, ("\n", " ")).join(lines)
    asked = facts[rng.integers(count)]
    question = typed(rng, pick(rng, questions).format(*asked))
    return text + pick(rng, ("\n\n", "\n", " ")) + question, answer.format(*asked)


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
