"""Retrieval tasks: a number hidden in long text, in the exact wording of the needle test."""

from __future__ import annotations

import numpy as np

from lwm_core.wording import CITIES, NEEDLE, ask

ANSWER = "The special magic {city} number is: {number}."
PLACES = sorted(set(CITIES))
BEGUN = 0.75
"""Share of the texts that begin with a literal `<s> `, as those of the test do."""


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
