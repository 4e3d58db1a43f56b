"""Retrieval tasks: a number hidden in long text, in the exact wording of the needle test.

Wording and cities are those of LWM's `eval_needle` and `eval_needle_multi`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEEDLE = "\nThe special magic {city} number is: {number}\n"
QUESTION = "What is the special magic {} number?"
QUESTION_SEVERAL = "What are the special magic numbers for {}?"
QUESTION_ONE_OF_SEVERAL = "What is the special magic number for {}?"
TAIL = (
    "Don't give information outside the document or repeat your findings. "
    "Keep your response short and direct."
)
TAIL_SEVERAL = "Don't give information outside the document."
ANSWER = "The special magic {city} number is: {number}."

_CITIES = """
Chicago, Yangon, Antananarivo, Colombo, Almaty, Sydney, Mexico City, Seattle, Lagos, Amsterdam,
Belgrade, Cairo, Baghdad, Damascus, Kigali, Dakar, Sofia, Victoria, Tashkent, Mumbai, Barcelona,
Amman, Toronto, Bratislava, Johannesburg, Thimphu, Bangkok, Santiago, San Francisco, Paris, Rabat,
Copenhagen, Madrid, Ho Chi Minh City, Sarajevo, Delhi, Istanbul, Khartoum, Helsinki, Doha,
Kuala Lumpur, Budapest, Shanghai, Moscow, Los Angeles, Oslo, Berlin, Bangalore, Tokyo, Melbourne,
Port Louis, Lisbon, Nairobi, Kampala, Lima, Maputo, Vancouver, Dubai, Jakarta, Yerevan, Beirut,
Athens, Bucharest, Brussels, Tunis, Astana, Seoul, Buenos Aires, Vienna
"""
CITIES = tuple(city.strip() for city in _CITIES.split(","))


def sample(
    rng: np.random.Generator, haystack: str, *, characters: int, needles: int = 1, asked: int = 1
) -> tuple[str, str]:
    """What the user says (text with needles, question and instructions), and the answer.

    The text with its needles has about `characters` characters, cut from a random place of
    `haystack`; the needles stand at random ends of sentences. With several needles `asked` of
    the cities are asked for, in the wording of the test with several needles.
    """
    cities = [CITIES[i] for i in rng.choice(len(CITIES), needles, replace=False)]
    numbers = rng.integers(10**6, 10**7, needles)
    hidden = [NEEDLE.format(city=c, number=n) for c, n in zip(cities, numbers, strict=True)]
    context = cut(rng, haystack, max(0, characters - sum(map(len, hidden))))
    for needle in hidden:
        place = insertion_point(context, np.clip(rng.uniform(-0.1, 1.1), 0, 1))
        context = context[:place] + needle + context[place:]
    if needles == 1:
        question = f"{QUESTION.format(cities[0])} {TAIL}"
    else:
        question = f"{ask_several(cities[:asked])} {TAIL_SEVERAL}"
    answers = (ANSWER.format(city=c, number=n) for c, n in zip(cities, numbers, strict=True))
    return f"{context} {question}", " ".join(list(answers)[:asked])


def ask_several(cities: Sequence[str]) -> str:
    """The question for one or more of several hidden numbers."""
    if len(cities) == 1:
        return QUESTION_ONE_OF_SEVERAL.format(cities[0])
    listed = ", ".join(cities[:-1]) + f", and {cities[-1]}"
    return QUESTION_SEVERAL.format(listed)


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
