"""What people say about the six landscapes.

`{colour}` and `{way}` stand for what differs from scene to scene. Answers are stored without
capital and full stop.
"""

from __future__ import annotations

from dataclasses import dataclass

from lwm_core.world import question_words as asking

Asking = tuple[tuple[str, ...], str]  # ways to ask, and the answer


@dataclass(frozen=True)
class Tale:
    """Everything that is told of one landscape."""

    caption: str
    happens: str
    there_is: str
    background: str
    prompts: tuple[str, ...]
    of_picture: tuple[Asking, ...] = ()
    of_clip: tuple[Asking, ...] = ()

    def exchanges(self, *, is_clip: bool) -> tuple[list[Asking], list[Asking]]:
        """Overall questions, and questions for parts."""
        happens: Asking = (asking.WHAT_HAPPENS + asking.DESCRIBE_CLIP, self.happens)
        parts = [(asking.BACKGROUND, self.background), *self.of_picture]
        if is_clip:
            there_is: Asking = (asking.WHAT_IS_THERE_CLIP, self.there_is)
            return [happens, happens, happens, there_is], [*parts, there_is, *self.of_clip]
        there_is = (asking.WHAT_IS_THERE_PICTURE + asking.DESCRIBE_PICTURE, self.there_is)
        return [there_is], parts


_TIME_OF_DAY = ("Is it day or night?", "What time of day is it?", "Is it night or day?")
_WEATHER = ("What is the weather like?", "How is the weather?", "What falls from the sky?")
_PLACE = ("Where is it?", "What place is this?", "Where is this?")
_CAR_WAYS = ("Which way does the car drive?", "Which way does the car move?", "Where does it go?")
_BALL_WAYS = ("What does the ball do?", "How does the ball move?", "What does it do?")


def _colour_of(thing: str) -> tuple[str, ...]:
    return (f"What colour is the {thing}?", f"Which colour is the {thing}?", "What colour is it?")


TALES = {
    "fireworks": Tale(
        caption="fireworks over a city",
        happens="fireworks burst over a city",
        there_is="there are fireworks over a city",
        background="the background is a city at night",
        prompts=(
            "fireworks over the city",
            "fireworks over a city at night",
            "colourful fireworks over a city",
            "colorful fireworks over a city",
            "fireworks",
            "fireworks in the night sky",
            "a firework over a city",
            "fireworks over a skyline",
            "a city with fireworks",
        ),
        of_picture=(
            (_TIME_OF_DAY, "it is night"),
            (_PLACE, "it is a city"),
            (("What is in the sky?", "What is over the city?"), "there are fireworks in the sky"),
        ),
    ),
    "sunrise": Tale(
        caption="sunrise over the sea",
        happens="the sun rises over the sea",
        there_is="there is a sunrise over the sea",
        background="the background is the sea",
        prompts=(
            "a sunrise over the sea",
            "sunrise over the ocean",
            "the sun rises over the sea",
            "the sun rising over the sea",
            "sunrise at sea",
            "sunrise",
            "a sunrise over water",
            "sun coming up over the sea",
        ),
        of_picture=(
            (_TIME_OF_DAY, "it is morning"),
            (_PLACE, "it is the sea"),
            (("What is in the sky?", "What is over the sea?"), "the sun is over the sea"),
        ),
        of_clip=((("Which way does the sun move?", "What does the sun do?"), "the sun rises"),),
    ),
    "rain": Tale(
        caption="rain over a field",
        happens="rain falls on a field",
        there_is="there is rain over a field",
        background="the background is a green field",
        prompts=(
            "rain over the field",
            "rain on a field",
            "rain falling on a field",
            "rain over a green field",
            "a field in the rain",
            "it rains over a field",
            "rain",
            "a rainy field",
        ),
        of_picture=(
            (_WEATHER, "it is raining"),
            (_PLACE, "it is a field"),
            (("What colour is the field?", "Which colour is the field?"), "the field is green"),
        ),
        of_clip=((("What falls?", "What is falling?"), "rain falls"),),
    ),
    "snow": Tale(
        caption="snow over a forest",
        happens="snow falls on a forest",
        there_is="there is snow over a forest",
        background="the background is a forest",
        prompts=(
            "snow over the forest",
            "snow in a forest",
            "snow falling on a forest",
            "snow falls on a forest",
            "a forest in the snow",
            "a snowy forest",
            "it snows in the forest",
            "snow",
            "snowfall over a forest",
        ),
        of_picture=(
            (_WEATHER, "it is snowing"),
            (_PLACE, "it is a forest"),
            (("Which season is it?", "What season is it?"), "it is winter"),
        ),
        of_clip=((("What falls?", "What is falling?"), "snow falls"),),
    ),
    "car": Tale(
        caption="a car driving along a road",
        happens="a {colour} car drives along a road",
        there_is="there is a {colour} car on a road",
        background="the background is a road",
        prompts=(
            "a {colour} car driving along a road",
            "a {colour} car driving along a road",
            "a {colour} car on a road",
            "a car driving on a road",
            "a car on a road",
            "a car drives along a road",
            "car driving along the road",
            "a car driving along a street",
            "a car",
            "a {colour} car",
            "a car driving {way} along a road",
            "a {colour} car driving to the {way}",
        ),
        of_picture=(
            (_colour_of("car"), "the car is {colour}"),
            (_PLACE, "it is a road"),
            (_TIME_OF_DAY, "it is day"),
        ),
        of_clip=((_CAR_WAYS, "the car drives {way}"),),
    ),
    "ball": Tale(
        caption="a ball bouncing on the floor",
        happens="a {colour} ball bounces on the floor",
        there_is="there is a {colour} ball over the floor",
        background="the background is a wall and a floor",
        prompts=(
            "a {colour} ball bouncing on the floor",
            "a {colour} ball bouncing on the floor",
            "a ball bouncing on a floor",
            "a ball bounces on the floor",
            "a bouncing ball",
            "a {colour} bouncing ball",
            "a ball",
            "a ball bouncing up and down",
            "ball bouncing on the floor",
        ),
        of_picture=((_colour_of("ball"), "the ball is {colour}"), (_PLACE, "it is a room")),
        of_clip=((_BALL_WAYS, "the ball bounces"),),
    ),
}
