"""Small talk: short conversations in plain sentences, as people begin them with a program.

Most exchanges are taken from a list; some are made on the spot (a sum, a name to remember),
so that the answer must be found in the conversation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lwm_core.wording import CITIES
from lwm_core.world.colours import SHAPE_COLOURS
from lwm_core.world.dialogue_words import CLOSINGS, OPENINGS, TALK, Intent
from lwm_core.world.shapes import SHAPES
from lwm_core.world.words import Exchange, pick, sentence, typed, with_article

_NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Kate",
    "Leo",
    "Mary",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tom",
    "Vera",
)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_THINGS = ("car", "ball", "house", "hat", "cup", "book", "bag", "door")


def _name(rng: np.random.Generator) -> list[Exchange]:
    """A name, to be remembered a turn or two later."""
    name = pick(rng, _NAMES)
    told = pick(rng, ("My name is {}.", "I am {}.", "I'm {}.", "Call me {}.", "Hello, I am {}."))
    asked = pick(rng, ("What is my name?", "Who am I?", "Do you know my name?", "What's my name?"))
    between = _talk(rng) if rng.random() < 0.3 else []
    answer = (typed(rng, asked), f"Your name is {name}.")
    return [(told.format(name), f"Nice to meet you, {name}."), *between, answer]


def _belonging(rng: np.random.Generator) -> list[Exchange]:
    """The colour of something, told and asked for."""
    thing, colour = pick(rng, _THINGS), pick(rng, SHAPE_COLOURS)
    forms = ("My {0} is {1}.", "I have {2} {0}.", "Remember that my {0} is {1}.")
    told = pick(rng, forms).format(thing, colour, with_article(colour))
    asked = pick(rng, ("What colour is my {}?", "Which colour is my {}?", "What colour has my {}?"))
    answer = (typed(rng, asked.format(thing)), f"Your {thing} is {colour}.")
    return [(told, f"I see, your {thing} is {colour}."), answer]


def _number(rng: np.random.Generator) -> list[Exchange]:
    """A number to remember."""
    number = int(rng.integers(10 ** int(rng.integers(1, 5)))) + 1
    told = pick(rng, ("Remember the number {}.", "The number is {}.", "Remember {}."))
    asked = pick(rng, ("Which number was it?", "What was the number?", "What is the number?"))
    return [
        (told.format(number), f"I will remember {number}."),
        (typed(rng, asked), f"The number is {number}."),
    ]


def _sum(rng: np.random.Generator) -> list[Exchange]:
    """Two small numbers and their sum, in words or figures."""
    one, other = (int(n) for n in rng.integers(0, 6, 2))
    write: Callable[[int], str] = _NUMBERS.__getitem__ if rng.random() < 0.5 else str
    form = pick(rng, ("What is {} plus {}?", "How much is {} and {}?", "What is {} + {}?"))
    question = form.format(write(one), write(other))
    return [
        (
            typed(rng, question),
            sentence(f"{write(one)} plus {write(other)} is {write(one + other)}"),
        )
    ]


def _next_number(rng: np.random.Generator) -> list[Exchange]:
    """What comes after a number, or counting up to it."""
    number = int(rng.integers(1, 10))
    if rng.random() < 0.5:
        return [
            (
                typed(rng, f"Count to {_NUMBERS[number]}."),
                sentence(", ".join(_NUMBERS[1 : number + 1])),
            )
        ]
    after = sentence(f"{_NUMBERS[number + 1]} comes after {_NUMBERS[number]}")
    return [(typed(rng, f"What comes after {_NUMBERS[number]}?"), after)]


def repeat(rng: np.random.Generator) -> list[Exchange]:
    """Words and numbers to say again."""
    items = [_item(rng) for _ in range(int(rng.integers(1, 17)))]
    told = pick(rng, ("Say {}.", "Repeat: {}.", "Please say {}.", "Repeat after me: {}."))
    said = ", ".join(items)
    return [(typed(rng, told.format(said)), f"{said}.")]


def _item(rng: np.random.Generator) -> str:
    """A number of one to seven figures, a place, a name, or a coloured shape."""
    kind = rng.random()
    if kind < 0.5:
        return str(rng.integers(10 ** int(rng.integers(1, 8))))
    if kind < 0.7:
        return pick(rng, CITIES)
    return pick(rng, _NAMES) if kind < 0.8 else f"{pick(rng, SHAPE_COLOURS)} {pick(rng, SHAPES)}"


def _kind(rng: np.random.Generator) -> list[Exchange]:
    """Whether a word names a colour or a shape."""
    colour = rng.random() < 0.5
    word = pick(rng, SHAPE_COLOURS if colour else SHAPES)
    named = word if colour else with_article(word)
    kind = pick(rng, ("colour", "shape"))
    verdict = "Yes" if (kind == "colour") == colour else "No"
    truth = f"{named} is a {'colour' if colour else 'shape'}"
    return [(typed(rng, f"Is {named} a {kind}?"), f"{verdict}, {truth}.")]


def _talk(rng: np.random.Generator) -> list[Exchange]:
    return _exchange(rng, TALK)


def _exchange(rng: np.random.Generator, intents: tuple[Intent, ...]) -> list[Exchange]:
    """Any of the intents, said and answered."""
    said, answers = pick(rng, intents)
    return [(typed(rng, pick(rng, said)), pick(rng, answers))]


_MADE = (_name, _belonging, _number, _sum, _next_number, repeat, _kind)


def sample(rng: np.random.Generator) -> list[Exchange]:
    """A conversation of one to some six exchanges: (user, assistant)."""
    conversation = _exchange(rng, OPENINGS) if rng.random() < 0.25 else []
    while True:
        conversation += pick(rng, _MADE)(rng) if rng.random() < 0.35 else _talk(rng)
        if len(conversation) >= 5 or rng.random() < 0.5:
            break
    return conversation + (_exchange(rng, CLOSINGS) if rng.random() < 0.2 else [])
