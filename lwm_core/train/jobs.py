"""What is trained: a job knows its batches, its step, and how its result is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import jax

from lwm_core.distributed import are_several
from lwm_core.errors import UsageError
from lwm_core.train.image_job import ImageJob
from lwm_core.train.language_job import LanguageJob
from lwm_core.train.recipe import ImageRecipe, LanguageRecipe


class Job(Protocol):
    """One training: batches by number, a step that takes its state, and what comes out."""

    steps: int
    save_every: int

    def initial_state(self) -> Any:
        """State before the first step."""

    def abstract_state(self) -> Any:
        """Shapes, dtypes and places of a state, without making it."""

    def batch(self, index: int) -> Any:
        """Batch number `index`: a function of the recipe and the number alone."""

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        """One update; the state that goes in is used up."""

    def size(self, batch: Any) -> tuple[str, int]:
        """What a batch counts, and how many of it: pictures or tokens."""

    def export(self, state: Any, directory: Path) -> None:
        """Write what has been learned so far; it is there when this returns."""


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
