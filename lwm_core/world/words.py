"""What people say about shapes: captions, prompts, questions and their answers.

Only names come in here (colours, shapes, motions), never pixels. A question is varied as
users vary it; the answer to it is always the same plain sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lwm_core.world import question_words as asking
from lwm_core.world.colours import SHAPE_COLOURS
from lwm_core.world.shapes import SHAPES

MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "still")
DIRECTIONS = MOTIONS[:4]
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
"""The parts of a picture, row by row."""
Exchange = tuple[str, str]  # a question and its answer
T = TypeVar("T")

_BIG = ("big", "large")
_DOES = {
    **{way: f"moves {way}" for way in DIRECTIONS},
    "grow": "grows",
    "shrink": "shrinks",
    "still": "stands still",
}
_DOING = {
    "left": ("moving left", "moving to the left", "going left", "sliding left"),
    "right": ("moving right", "moving to the right", "going right", "sliding right"),
    "up": ("moving up", "moving upwards", "going up", "rising"),
    "down": ("moving down", "moving downwards", "going down", "falling"),
    "grow": ("growing", "getting bigger", "getting larger"),
    "shrink": ("shrinking", "getting smaller"),
    "still": ("standing still", "that stands still", "not moving"),
}


@dataclass(frozen=True)
class Thing:
    """A shape as words know it, with the places (see PLACES) where it is first and last."""

    colour: str
    shape: str
    motion: str
    first: str = PLACES[1][1]
    last: str = PLACES[1][1]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Story:
    """What is to be told of a scene of shapes; a picture has no motion to tell."""

    things: tuple[Thing, ...]
    ground: str
    is_clip: bool


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, each as likely."""
    return options[int(rng.integers(len(options)))]


def with_article(name: str) -> str:
    """`red circle` → `a red circle`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def sentence(words: str) -> str:
    """`a red circle` → `A red circle.`"""
    return f"{words[0].upper()}{words[1:]}."


def typed(rng: np.random.Generator, question: str) -> str:
    """`question` as somebody typed it: sometimes in lower case, without its mark, or American."""
    if rng.random() < 0.5:
        question = question.replace("colour", "color").replace("Colour", "Color")
    if rng.random() < 0.4:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.2:
        question = question.rstrip("?.")
    return question


def caption(story: Story) -> str:
    """`a red circle moving left on a black background`; the canonical one."""
    things = " and ".join(
        with_article(thing.name) + (f" {_DOING[thing.motion][0]}" if story.is_clip else "")
        for thing in story.things
    )
    return f"{things} on {with_article(story.ground)} background"


def prompt(story: Story, rng: np.random.Generator, *, big: bool = False) -> str:
    """A wish to draw or film the story, as a user would type it."""
    article = rng.random() < 0.85
    parts = []
    for thing in story.things:
        name = f"{pick(rng, _BIG)} {thing.name}" if big and rng.random() < 0.15 else thing.name
        tells_motion = rng.random() < (0.85 if thing.motion != "still" else 0.15)
        doing = _DOING[thing.motion]
        motion = f" {doing[0] if rng.random() < 0.75 else pick(rng, doing)}" if tells_motion else ""
        parts.append((with_article(name) if article else name) + motion)
    wish = " and ".join(parts)
    if rng.random() < 0.8:
        ground = f"{story.ground} background"
        before = "on" if rng.random() < 0.9 else pick(rng, ("against", "in front of", "over"))
        wish += f" {before} {with_article(ground) if article else ground}"
    return dressed(rng, wish)


def dressed(rng: np.random.Generator, wish: str) -> str:
    """A wish with what people put around it: `picture of …`, a capital, a full stop."""
    if rng.random() < 0.1:
        frames = ("a picture of", "picture of", "an image of", "a video of", "draw", "a clip of")
        wish = f"{pick(rng, frames)} {wish}"
    if rng.random() < 0.15:
        wish = wish.replace("gray", "grey")
    if rng.random() < 0.2:
        wish = wish[0].upper() + wish[1:]
    return wish + "." if rng.random() < 0.1 else wish


def questions(story: Story, rng: np.random.Generator, count: int) -> list[Exchange]:
    """`count` questions with answers; the first asks for the whole, the rest for its parts."""
    asked = [_overall(story, rng)]
    while len(asked) < count:
        kinds = _OF_CLIPS if story.is_clip else _OF_BOTH
        for index in rng.permutation(len(kinds))[: count - len(asked)]:
            asked.append(kinds[index](story, rng))
    return [(typed(rng, question), answer) for question, answer in asked]


def _overall(story: Story, rng: np.random.Generator) -> Exchange:
    choice = rng.random()
    if not story.is_clip:
        if choice < 0.7:
            return pick(rng, asking.WHAT_IS_THERE_PICTURE), _there_is(story)
        return pick(rng, asking.DESCRIBE_PICTURE), sentence(caption(story))
    if choice < 0.75:
        return pick(rng, asking.WHAT_HAPPENS), _happens(story)
    if choice < 0.9:
        answer = f"{_happens(story)[:-1]} on {with_article(story.ground)} background."
        return pick(rng, asking.DESCRIBE_CLIP), answer
    return pick(rng, asking.WHAT_IS_THERE_CLIP), _there_is(story)


def _happens(story: Story) -> str:
    return sentence(" and ".join(f"{with_article(t.name)} {_DOES[t.motion]}" for t in story.things))


def _there_is(story: Story) -> str:
    return sentence(f"{_there(story)} on {with_article(story.ground)} background")


def _there(story: Story) -> str:
    things = " and ".join(with_article(thing.name) for thing in story.things)
    return f"there {'is' if len(story.things) == 1 else 'are'} {things}"


def _ask_colour(story: Story, rng: np.random.Generator) -> Exchange:
    if len(story.things) == 1:
        thing = story.things[0]
        if rng.random() < 0.5:
            return pick(rng, asking.COLOUR_OF_IT), f"It is {thing.colour}."
    elif len({thing.shape for thing in story.things}) == 1:
        colours = " and ".join(thing.colour for thing in story.things)
        return pick(rng, asking.COLOURS_OF_THEM), f"They are {colours}."
    thing = pick(rng, story.things)
    return pick(rng, asking.COLOUR_OF).format(thing.shape), f"The {thing.shape} is {thing.colour}."


def _ask_shape(story: Story, rng: np.random.Generator) -> Exchange:
    if len(story.things) == 1:
        return pick(rng, asking.SHAPE_OF_IT), f"It is {with_article(story.things[0].shape)}."
    colours = {thing.colour for thing in story.things}
    if len(colours) == 2 and rng.random() < 0.6:
        thing = pick(rng, story.things)
        question = pick(rng, asking.SHAPE_OF).format(thing.colour)
        return question, f"The {thing.colour} one is {with_article(thing.shape)}."
    shapes = " and ".join(with_article(thing.shape) for thing in story.things)
    return pick(rng, asking.SHAPES_OF_THEM), f"There are {shapes}."


def _ask_count(story: Story, rng: np.random.Generator) -> Exchange:
    answer = "There is one shape." if len(story.things) == 1 else "There are two shapes."
    return pick(rng, asking.HOW_MANY), answer


def _ask_ground(story: Story, rng: np.random.Generator) -> Exchange:
    return pick(rng, asking.BACKGROUND), f"The background is {story.ground}."


def _ask_content(story: Story, rng: np.random.Generator) -> Exchange:
    forms = asking.WHAT_IS_THERE_CLIP if story.is_clip else asking.WHAT_IS_THERE_PICTURE
    return pick(rng, forms), _there_is(story)


def _ask_truth(story: Story, rng: np.random.Generator) -> Exchange:
    """A yes-or-no question, true half the time."""
    thing = pick(rng, story.things)
    of_colour = rng.random() < 0.5
    present = {t.colour if of_colour else t.shape for t in story.things}
    asked = thing.colour if of_colour else thing.shape
    if rng.random() < 0.5:
        asked = pick(rng, [n for n in (SHAPE_COLOURS if of_colour else SHAPES) if n not in present])
    verdict = "Yes" if asked in present else "No"
    what = f"{with_article(asked)} shape" if of_colour else with_article(asked)
    return f"Is there {what}?", f"{verdict}, {_there(story)}."


def _ask_motion(story: Story, rng: np.random.Generator) -> Exchange:
    if len(story.things) == 1:
        thing = story.things[0]
        if rng.random() < 0.6:
            return pick(rng, asking.WAY_OF_IT), f"It {_DOES[thing.motion]}."
        name = thing.shape
    else:
        thing = pick(rng, story.things)
        name = thing.name
    return pick(rng, asking.WAY_OF).format(name), f"The {name} {_DOES[thing.motion]}."


def _ask_place(story: Story, rng: np.random.Generator) -> Exchange:
    """Where a thing is; in clips, where it is first or last."""
    thing = pick(rng, story.things)
    alone = len(story.things) == 1 and rng.random() < 0.7
    asked, told = ("it", "It") if alone else (f"the {thing.name}", f"The {thing.name}")
    if not story.is_clip:
        return pick(rng, asking.PLACE_OF).format(asked), f"{told} is {thing.first}."
    if rng.random() < 0.5:
        return pick(rng, asking.FIRST_PLACE_OF).format(asked), f"{told} starts {thing.first}."
    return pick(rng, asking.LAST_PLACE_OF).format(asked), f"{told} ends {thing.last}."


_OF_BOTH = (_ask_colour, _ask_shape, _ask_count, _ask_ground, _ask_content, _ask_truth, _ask_place)
_OF_CLIPS = (*_OF_BOTH, _ask_place, _ask_motion, _ask_motion)
