"""What a model learns from a medium: records in the field notation of the original, one a line.

`fields` names the keys in the order in which they are read; what stands in brackets is read and
not learned. The original's vision-text processor, and ours, make the same tokens of a `see` record
as `lwm see` makes of the question; an answer begins with `<s>`, as all texts do there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from lwm_core.errors import UsageError
from lwm_core.tokenize.media import Medium, Said, fingerprint
from lwm_core.tokens import CALL, DESCRIBE, Kind, question_text, wish_text

Task = Literal["see", "draw"]
"""To answer questions about a medium, of which a caption is one; to make it from its caption."""

TASKS: tuple[Task, ...] = get_args(Task)

Example = dict[str, Any]


def known_tasks(names: Sequence[str]) -> tuple[Task, ...]:
    """Tasks by their names, each once and in our order. Raises UsageError for an unknown one."""
    for name in names:
        if name not in TASKS:
            raise UsageError(f"task {name!r} is unknown; choose of {', '.join(TASKS)}")
    return tuple(task for task in TASKS if task in names)


def examples(medium: Medium, codes: np.ndarray, tasks: Sequence[Task]) -> list[Example]:
    """The records of a medium with codes int32 `[F, frame_codes]`: one for each thing to learn.

    Where nothing is said of it that the tasks need, it is learned by itself.
    """
    kind: Kind = "video" if len(codes) > 1 else "image"
    made = [example for _, example in _made(medium, kind, tasks)]
    of_all = {
        "source": medium.name,
        "fingerprint": medium.fingerprint,
        "vision": codes.reshape(-1).tolist(),
    }
    return [of_all | example for example in made or [{"fields": "vision"}]]


def tally(media: Iterable[Medium], tasks: Sequence[Task]) -> tuple[dict[str, int], int]:
    """How many examples of each task some media make, and how many of them make none."""
    counts: dict[str, int] = dict.fromkeys(tasks, 0)
    wordless = 0
    for medium in media:
        made = [task for task, _ in _made(medium, "image", tasks)]
        wordless += not made
        for task in made:
            counts[task] += 1
    return counts, wordless


class Revision:
    """What becomes of the records that stand in a data set, by the media as they are wanted now.

    Of a medium whose file is the same they are made again of their codes; of another file they
    go, and so does what can't be understood. What stands there of other media stays. `there` are
    the names of the media that need not be encoded, `reworded` those of which something else was
    said.
    """

    def __init__(self, media: Sequence[Medium], tasks: Sequence[Task], frame_codes: int):
        self.there: set[str] = set()
        self.reworded: set[str] = set()
        self._wanted = {medium.name: medium for medium in media}
        self._tasks = tasks
        self._frame_codes = frame_codes

    def __call__(self, records: list[Example]) -> list[Example]:
        """The records that a medium should have, by those that it has."""
        first = records[0]
        medium = self._wanted.get(str(first.get("source")))
        if not medium:
            return records
        try:
            medium = replace(medium, fingerprint=first["fingerprint"])
            codes = np.array(first["vision"], np.int32).reshape(-1, self._frame_codes)
        except (LookupError, TypeError, ValueError, OverflowError):
            return []
        if fingerprint(medium.path) not in ("", medium.fingerprint):  # "": the codes outlive it
            return []
        self.there.add(medium.name)
        revised = examples(medium, codes, self._tasks)
        if revised != records:
            self.reworded.add(medium.name)
        return revised


def _made(medium: Medium, kind: Kind, tasks: Sequence[Task]) -> Iterator[tuple[Task, Example]]:
    """What is to be learned of all that is said of a medium, for which task."""
    for said in medium.said:
        for task in tasks:
            for example in _MAKERS[task](said, kind):
                yield task, example


def _see(said: Said, kind: Kind) -> Iterator[Example]:
    """A caption, which is what a medium is described by, and an answer, which may be one too."""
    if said.caption:
        yield {"caption": said.caption} | _answered(DESCRIBE[kind], said.caption)
    if said.answer:
        yield _answered(said.question or DESCRIBE[kind], said.answer)


def _answered(question: str, answer: str) -> Example:
    """A question about the medium and its answer."""
    return {
        "instruction": question_text(question),
        "call": CALL,
        "output": answer,
        "fields": "[instruction],[vision],[call],output",
    }


def _draw(said: Said, kind: Kind) -> Iterator[Example]:
    """A wish, and the medium as its fulfilment."""
    if said.caption:
        yield {
            "caption": said.caption,
            "instruction": wish_text(said.caption, kind),
            "fields": "[instruction],vision",
        }


_MAKERS: dict[Task, Callable[[Said, Kind], Iterator[Example]]] = {"see": _see, "draw": _draw}
