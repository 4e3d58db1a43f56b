"""The words of the needle test: what is hidden, what is asked, and of which cities.

They are those of LWM's `eval_needle` and `eval_needle_multi` (standard library only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEEDLE = "\nThe special magic {city} number is: {number}\n"
QUESTION_ONE = "What is the special magic {} number?"
QUESTION_ONE_OF_SEVERAL = "What is the special magic number for {}?"
QUESTION_SEVERAL = "What are the special magic numbers for {}?"
PROMPT_ONE = (
    "You are a helpful assistant. USER: {context} {question} Don't give information outside the "
    "document or repeat your findings. Keep your response short and direct. ASSISTANT: "
)
PROMPT_SEVERAL = (
    "You are a helpful assistant. USER: {context} {question} Don't give information outside the "
    "document. ASSISTANT: "
)
# A name that stands here twice is drawn twice as often, as in the original.
_NAMES = (
    "Chicago,Yangon,Antananarivo,Colombo,Almaty,Sydney,Chicago,Mexico City,Seattle,Lagos,"
    "Amsterdam,Belgrade,Cairo,Baghdad,Damascus,Kigali,Dakar,Dakar,Sofia,Kigali,Victoria,Tashkent,"
    "Mumbai,Barcelona,Almaty,Amman,Toronto,Bratislava,Johannesburg,Thimphu,Bangkok,Santiago,Cairo,"
    "San Francisco,Lagos,Amsterdam,Paris,Rabat,Santiago,Copenhagen,Madrid,Kigali,Ho Chi Minh City,"
    "Sarajevo,Delhi,Istanbul,Ho Chi Minh City,Khartoum,Helsinki,Doha,Istanbul,Kuala Lumpur,"
    "Budapest,Shanghai,Moscow,Los Angeles,Oslo,Johannesburg,Berlin,Bangalore,Tokyo,Melbourne,"
    "Barcelona,Chicago,Port Louis,Lisbon,Nairobi,Kampala,Lima,Maputo,Vancouver,Dubai,Khartoum,"
    "Jakarta,Madrid,Yerevan,Beirut,Athens,Chicago,Paris,Bucharest,Copenhagen,Brussels,Damascus,"
    "Seattle,Los Angeles,Yerevan,Victoria,Tunis,Astana,Seoul,Buenos Aires,Bangkok,Colombo,"
    "Brussels,Khartoum,Doha,San Francisco,Vienna,Jakarta"
)
CITIES = tuple(_NAMES.split(","))


@dataclass(frozen=True)
class Needle:
    """A number that belongs to a city, and its depth in percent of the context."""

    city: str
    number: str
    depth: float

    @property
    def text(self) -> str:
        """The line that is hidden."""
        return NEEDLE.format(city=self.city, number=self.number)


def ask(context: str, cities: Sequence[str], *, of: int) -> str:
    """The prompt that asks for the numbers of some cities `of` so many that are hidden."""
    if of == 1:
        return PROMPT_ONE.format(context=context, question=QUESTION_ONE.format(*cities))
    if len(cities) == 1:
        question = QUESTION_ONE_OF_SEVERAL.format(*cities)
    else:
        question = QUESTION_SEVERAL.format(", ".join(cities[:-1]) + ", and " + cities[-1])
    return PROMPT_SEVERAL.format(context=context, question=question)
