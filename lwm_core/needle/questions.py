"""The questions of the needle test, and the stretches of a haystack that they are hidden in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby, islice

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
    are kept for question and answer (at most a third of it).
    Raises UsageError for what can't be tried.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0, 25, 50, 75, 100)
    needles: int = 1
    asked: int = 1
    rounds: int = 1
    seed: int = 0
    reserve: int = 200

    def __post_init__(self) -> None:
        if not self.lengths or not self.depths or self.rounds < 1:
            raise UsageError("the needle test needs at least one length, one depth and one round")
        if not all(isinstance(length, int) and length > 0 for length in self.lengths):
            raise UsageError(f"lengths are whole numbers of tokens, not {self.lengths}")
        for name, values in (("lengths", self.lengths), ("depths", self.depths)):
            if len(set(values)) < len(values):
                raise UsageError(f"so many {name} lie too close together: try fewer --{name}")
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
    """One question; no other of its test is equal to it.

    Prompt and answer fit into `length` tokens; the needles lie in the stretch of this `round`.
    """

    length: int
    round: int
    needles: tuple[Needle, ...]
    asked: tuple[Needle, ...]


def evenly(low: float, high: float, count: int) -> tuple[int, ...]:
    """`count` whole numbers at even distances that end with `high`: lengths or depths."""
    return tuple(int(number) for number in np.round(np.linspace(high, low, count))[::-1])


def cases(config: NeedleConfig) -> list[NeedleCase]:
    """The questions of a test: length by length, depth by depth, round by round."""
    generator = random.Random(config.seed)
    return [
        NeedleCase(length, number, *_draw(config, generator, depth))
        for length in config.lengths
        for depth in (config.depths if config.needles == 1 else (None,))
        for number in range(config.rounds)
    ]


class Haystack:
    """The text of a test: for every round a stretch, of which each length takes the begin.

    Lengths are counted in ids of `tokenizer`, depths in parts of its `split`, which are the same
    but for prefixes. `repeats` says that the text was laid end to end to fill a stretch.
    """

    def __init__(
        self,
        config: NeedleConfig,
        tokenizer: AnyTokenizer,
        passages: Sequence[str],
        *,
        repeat: bool = False,
    ):
        """Cut the stretches one behind the other; behind the last passage stands the first again.

        Raises UsageError when all `passages` don't fill the longest length; with `repeat` they
        are laid end to end until they do.
        """
        self.repeats = False
        self._config, self._tokenizer = config, tokenizer
        endless = cycle(passages)
        self._stretches = []
        for _ in range(config.rounds):
            source = endless if repeat else islice(endless, len(passages))
            ids, taken = _stretch(source, max(config.lengths), tokenizer)
            self._stretches.append(ids)
            self.repeats |= taken > len(passages)

    def prompts(self, cases: Iterable[NeedleCase]) -> Iterator[str]:
        """What the model reads: for each case its context, with the needles in it, and question.

        Raises UsageError when a length is too short for its needles.
        """
        for length, group in groupby(cases, key=lambda case: case.length):
            # The original leaves the begin token in the context, as the literal text `<s>`.
            texts = [
                self._tokenizer.decode(ids[:length], skip_special=False) for ids in self._stretches
            ]
            contexts = [self._tokenizer.split(text) for text in texts]
            for case in group:
                yield _fit(self._config, self._tokenizer, case, contexts[case.round])


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


def _stretch(passages: Iterable[str], size: int, tokenizer: AnyTokenizer) -> tuple[list[int], int]:
    """The ids of the next passages, joined, and how many: as few as hold `size` tokens.

    Raises UsageError when they end before.
    """
    taken: list[str] = []
    ids: list[int] = []
    at_most = 0  # tokens: joined, passages have fewer than one by one
    for passage in passages:
        taken.append(passage)
        at_most += len(tokenizer.encode(passage))
        if at_most >= size:
            ids = tokenizer.encode("".join(taken))
            if len(ids) >= size:
                return ids, len(taken)
            at_most = len(ids)
    ids = tokenizer.encode("".join(taken))
    raise UsageError(
        f"the haystack has {len(ids)} tokens, the longest context needs {size}: "
        "take a longer text or a smaller --ctx"
    )


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
    config: NeedleConfig, tokenizer: AnyTokenizer, case: NeedleCase, parts: list[bytes]
) -> str:
    """The prompt with the longest context that leaves the reserve, and room for the answer."""
    hidden = [(tokenizer.split(needle.text), needle.depth) for needle in case.needles]
    limit = case.length - min(config.reserve, case.length // 3)
    while limit > sum(len(needle) for needle, _ in hidden):
        mixed = parts
        for needle, depth in hidden:
            mixed = hide(mixed, needle, depth, limit)
        context = b"".join(mixed).decode("utf-8", "ignore")
        prompt = ask(context, [needle.city for needle in case.asked], of=len(hidden))
        excess = len(tokenizer.encode(prompt)) + config.answer_tokens - case.length
        if excess <= 0:
            return prompt
        limit -= excess
    hidden_things = "a needle" if len(hidden) == 1 else f"{len(hidden)} needles"
    raise UsageError(
        f"a length of {case.length} tokens is too short for {hidden_things}, a question and an "
        "answer"
    )
