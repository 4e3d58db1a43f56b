"""Asking a model the questions of the needle test, and judging its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING

from lwm_core.data.prose import read_prose
from lwm_core.errors import ContextTooLong
from lwm_core.needle.questions import NeedleCase, NeedleConfig, cases

if TYPE_CHECKING:
    from lwm_core.load import LoadedModel
    from lwm_core.types import Progress


@dataclass(frozen=True)
class NeedleResult:
    """What the model answered, and for every asked needle whether its number was there."""

    case: NeedleCase
    answer: str
    found: tuple[bool, ...]


def score(answer: str, numbers: Sequence[str]) -> tuple[bool, ...]:
    """For every number whether it occurs in the answer."""
    return tuple(number in answer for number in numbers)


def run(
    model: LoadedModel,
    config: NeedleConfig,
    haystack: Iterable[str] | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[NeedleResult]:
    """Ask a model all questions, greedily, and yield its results in their order.

    Raises ContextTooLong when a length is over the model's, UsageError as `cases` does.
    """
    # Here, so that cases are made and results drawn without an accelerator library.
    from lwm_core.generate import complete
    from lwm_core.sampling import Sampling

    if max(config.lengths) > model.config.max_length:
        raise ContextTooLong(
            f"{max(config.lengths)} tokens are more than the context of {model.name}: "
            f"try lengths up to {model.config.max_length}"
        )
    questions = cases(config, model.tokenizer, haystack or read_prose())
    for length, group in groupby(questions, key=lambda case: case.length):
        while rows := list(islice(group, max(1, config.batch_tokens // length))):
            answers = complete(
                model,
                [case.prompt for case in rows],
                sampling=Sampling(temperature=0.0),
                max_tokens=config.answer_tokens,
                on_progress=on_progress,
            )
            for case, answer in zip(rows, answers, strict=True):
                found = score(answer, [needle.number for needle in case.asked])
                yield NeedleResult(case, answer, found)
