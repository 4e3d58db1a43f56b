"""Asking a model the questions of the needle test, and judging its answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING

from lwm_core import costs
from lwm_core.data.prose import read_prose
from lwm_core.distributed import agree
from lwm_core.errors import ContextTooLong
from lwm_core.memory import free_memory, mesh_sizes
from lwm_core.needle.memory import rows_that_fit
from lwm_core.needle.questions import Haystack, NeedleCase, NeedleConfig, cases
from lwm_core.needle.results import NeedleResult

if TYPE_CHECKING:
    from lwm_core.load import LoadedModel
    from lwm_core.types import Progress


def score(answer: str, numbers: Sequence[str]) -> tuple[bool, ...]:
    """For every number whether it occurs in the answer."""
    return tuple(number in answer for number in numbers)


def hide_in(
    model: LoadedModel, config: NeedleConfig, passages: Sequence[str] | None = None
) -> Haystack:
    """The haystack of a test of a model; without passages the package's novel, as often as needed.

    Raises ContextTooLong when a length is over the model's, UsageError as `Haystack` does.
    """
    if max(config.lengths) > model.context:
        raise ContextTooLong(
            f"{max(config.lengths)} tokens are more than the context of {model.name}: "
            f"try lengths up to {model.context}"
        )
    return Haystack(config, model.tokenizer, passages or read_prose(), repeat=not passages)


def run(
    model: LoadedModel,
    config: NeedleConfig,
    haystack: Haystack | None = None,
    *,
    answered: Collection[NeedleCase] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[NeedleResult]:
    """Ask a model all questions but those `answered`, greedily, and yield results in their order.

    As many are asked at once as memory holds. Raises ContextTooLong when a length is over the
    model's, UsageError as `Haystack` does.
    """
    # Here, so that cases are made and results drawn without an accelerator library.
    from lwm_core.generate import complete
    from lwm_core.sampling import Sampling

    haystack = haystack or hide_in(model, config)
    done = set(answered)
    whole = cases(config)
    missing = agree([index for index, case in enumerate(whole) if case not in done])
    for length, group in groupby((whole[i] for i in missing), key=lambda case: case.length):
        waiting = list(group)
        prompts = haystack.prompts(waiting)
        for rows in _batches(waiting, _rows_at_once(model, length)):
            texts = list(islice(prompts, len(rows)))
            answers = complete(
                model,
                texts,
                sampling=Sampling(temperature=0.0),
                max_tokens=config.answer_tokens,
                on_progress=on_progress,
            )
            for case, text, answer in zip(rows, texts, answers, strict=True):
                found = score(answer, [needle.number for needle in case.asked])
                present = tuple(needle.text in text for needle in case.needles)
                yield NeedleResult(case, answer, found, present)


def _rows_at_once(model: LoadedModel, length: int) -> int:
    """How many questions of this length memory holds now, that of the first process."""
    mesh = model.how.mesh
    row = costs.memory(model.reading(length), mesh_sizes(mesh)).cache
    return agree(rows_that_fit(free_memory(mesh.local_devices), row))


def _batches(waiting: Sequence[NeedleCase], size: int) -> Iterator[Sequence[NeedleCase]]:
    for start in range(0, len(waiting), size):
        yield waiting[start : start + size]
