"""The questions of the needle test: stretches of a haystack with needles in them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from lwm_core.errors import UsageError
from lwm_core.vocabulary import AnyTokenizer
from lwm_core.wording import CITIES, Needle, ask

MOST_NEEDLES = 30
"""How many can be hidden at once: drawn anew until all cities differ, as in the original, 30 take
41 draws on average and 40 take 1425, because the list of 100 names has only 69 cities."""


@dataclass(frozen=True)
class NeedleConfig:
    """What to try.

    `lengths` in tokens, `depths` in percent of the context; `needles` are hidden and `asked` of
    them asked for, in `rounds` different stretches of the haystack. `reserve` tokens of a length
    are kept for question and answer (at most a third of it), as many rows as hold `batch_tokens`
    are answered at once. Raises UsageError for what can't be tried.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0, 25, 50, 75, 100)
    needles: int = 1
    asked: int = 1
    rounds: int = 1
    seed: int = 0
    reserve: int = 200
    batch_tokens: int = 32768

    def __post_init__(self) -> None:
        if not self.lengths or not self.depths or self.rounds < 1:
            raise UsageError("the needle test needs at least one length, one depth and one round")
        if not all(0 <= depth <= 100 for depth in self.depths):
            raise UsageError(f"depths are percent, from 0 to 100, not {self.depths}")
        if not 1 <= self.asked <= self.needles:
            raise UsageError(f"can't ask for {self.asked} of {self.needles} needles")
        if self.needles > MOST_NEEDLES:
            raise UsageError(
                f"can't hide {self.needles} needles at once, each for another city; "
                f"{MOST_NEEDLES} is the most"
            )
        if 1 < self.needles > len(self.depths):
            raise UsageError(
                f"{self.needles} needles need as many depths to lie at, not {len(self.depths)}"
            )

    @property
    def count(self) -> int:
        """How many questions the test asks."""
        places = len(self.depths) if self.needles == 1 else 1
        return len(self.lengths) * places * self.rounds

    @property
    def answer_tokens(self) -> int:
        """How long an answer may be: a sentence, and more for every further number."""
        return 24 + 8 * self.asked


@dataclass(frozen=True)
class NeedleCase:
    """One question: `prompt` and its answer fit into `length` tokens."""

    length: int
    round: int
    needles: tuple[Needle, ...]
    asked: tuple[Needle, ...]
    prompt: str


def evenly(low: float, high: float, count: int) -> tuple[int, ...]:
    """`count` whole numbers at even distances that end with `high`: lengths or depths."""
    return tuple(int(number) for number in np.round(np.linspace(high, low, count))[::-1])


def cases(
    config: NeedleConfig, tokenizer: AnyTokenizer, haystack: Iterable[str]
) -> Iterator[NeedleCase]:
    """The questions of a test: length by length, depth by depth, round by round.

    `haystack` is a list of passages. Lengths are counted in ids of `tokenizer`, depths in parts of
    its `split`, which are the same but for prefixes.
    Raises UsageError when a length is too short for its needles.
    """
    generator = random.Random(config.seed)
    passages = cycle(haystack)
    stretches = [_fill(passages, max(config.lengths), tokenizer) for _ in range(config.rounds)]
    for length in config.lengths:
        # The original leaves the begin token in the context, as the literal text `<s>`.
        texts = [tokenizer.decode(ids[:length], skip_special=False) for ids in stretches]
        trimmed = [tokenizer.split(text) for text in texts]
        for depth in config.depths if config.needles == 1 else (None,):
            for number, parts in enumerate(trimmed):
                needles, asked = _draw(config, generator, depth)
                prompt = _fit(config, tokenizer, length, parts, needles, asked)
                yield NeedleCase(length, number, needles, asked, prompt)


def hide(parts: list[bytes], needle: list[bytes], depth: float, limit: int) -> list[bytes]:
    """Put a needle into a context of at most `limit` parts, at `depth` percent of it.

    The context loses what is too much at its end. The needle goes back to the end of a sentence,
    or to the very begin; at depth 100 it is the last thing. As in the original, a needle can cut
    off an earlier one that lies at the end.
    """
    if len(parts) + len(needle) > limit:
        parts = parts[: limit - len(needle)]
    if depth == 100:
        return parts + needle
    place = int(len(parts) * (depth / 100))
    while place and not parts[place - 1].endswith(b"."):
        place -= 1
    return parts[:place] + needle + parts[place:]


def _fill(passages: Iterator[str], size: int, tokenizer: AnyTokenizer) -> list[int]:
    """The ids of the next passages, joined: as few as hold `size` tokens."""
    text = ""
    ids: list[int] = []
    while len(ids) < size:
        missing = size - len(ids)
        while missing > 0:
            passage = next(passages)
            text += passage
            missing -= len(tokenizer.encode(passage))
        ids = tokenizer.encode(text)
    return ids


def _draw(
    config: NeedleConfig, generator: random.Random, depth: float | None
) -> tuple[tuple[Needle, ...], tuple[Needle, ...]]:
    """The needles of a case and those asked for, in the original's order of draws."""
    cities = generator.sample(CITIES, config.needles)
    while len(set(cities)) < config.needles:
        cities = generator.sample(CITIES, config.needles)
    if depth is None:
        depths = generator.sample(config.depths, config.needles)
        chosen = generator.sample(range(config.needles), config.asked)
    else:
        depths, chosen = [depth], [0]
    needles = tuple(
        Needle(city, str(generator.randint(1_000_000, 9_999_999)), place)
        for city, place in zip(cities, depths, strict=True)
    )
    return needles, tuple(needles[i] for i in chosen)


def _fit(
    config: NeedleConfig,
    tokenizer: AnyTokenizer,
    length: int,
    parts: list[bytes],
    needles: Sequence[Needle],
    asked: Sequence[Needle],
) -> str:
    """The prompt with the longest context that leaves the reserve, and room for the answer."""
    hidden = [(tokenizer.split(needle.text), needle.depth) for needle in needles]
    limit = length - min(config.reserve, length // 3)
    while limit > sum(len(needle) for needle, _ in hidden):
        mixed = parts
        for needle, depth in hidden:
            mixed = hide(mixed, needle, depth, limit)
        context = b"".join(mixed).decode("utf-8", "ignore")
        prompt = ask(context, [needle.city for needle in asked], of=len(needles))
        excess = len(tokenizer.encode(prompt)) + config.answer_tokens - length
        if excess <= 0:
            return prompt
        limit -= excess
    hidden_things = "a needle" if len(needles) == 1 else f"{len(needles)} needles"
    raise UsageError(
        f"a length of {length} tokens is too short for {hidden_things}, a question and an answer"
    )
