"""What is trained: a job knows its batches, its step, and how its result is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from lwm_core.distributed import are_several
from lwm_core.errors import UsageError
from lwm_core.train.image_job import ImageJob
from lwm_core.train.language_job import LanguageJob
from lwm_core.train.recipe import ImageRecipe, LanguageRecipe


class Job(Protocol):
    """One training: its batches, a step that takes its state, and what comes out.

    After every `evaluate_every` steps it evaluates, after every `sample_every` it writes samples
    (0: never).
    """

    steps: int
    evaluate_every: int
    sample_every: int

    def initial_state(self) -> Any:
        """State before the first step."""

    def abstract_state(self) -> Any:
        """Shapes, dtypes and places of a state, without making it."""

    def batches(self, first: int, cursors: Sequence[dict]) -> Iterator[tuple[Any, dict]]:
        """Batches from number `first` on, each with this process's place in the data after it.

        `cursors` are such places, as JSON, of all the processes that made the batch before `first`,
        which need not be as many as there are now; none at the beginning.
        """

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        """One update, and metrics by name; the state that goes in is used up.

        A metric `skipped` of 1 says that the state is as it was, for the update was no good.
        """

    def size(self, batch: Any) -> tuple[str, int]:
        """What a batch counts, and how many of it: pictures or tokens."""

    def flops(self, batch: Any) -> float:
        """FLOPs that the model needs for a step, 0 where nobody counts them."""

    def evaluate(self, state: Any) -> dict[str, float]:
        """Metrics by name, of data that is not learned from."""

    def samples(self, state: Any, folder: Path, step: int) -> None:
        """Write into a folder what the model makes after `step` steps."""

    def export(self, state: Any, directory: Path) -> None:
        """Write what has been learned so far; it is there when this returns."""

    def fingerprint(self) -> dict[str, str]:
        """What all processes must have alike beside the recipe, such as their data, by name."""


def make_job(recipe: ImageRecipe | LanguageRecipe, output: Path, mesh: str, *, begins: bool) -> Job:
    """The job that a recipe describes, of a run that `begins` or of one that goes on.

    Image tokenizers are small: they learn on the first device. Raises UsageError for one in several
    processes.
    """
    if isinstance(recipe, ImageRecipe):
        if are_several():
            raise UsageError("an image tokenizer learns on one device; train it on one machine")
        return ImageJob(recipe, jax.devices()[0])
    return LanguageJob(recipe, output, mesh, begins=begins)
