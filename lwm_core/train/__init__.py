"""Training: a recipe in, events out; checkpoints, metrics and a model directory on the way."""

from __future__ import annotations

from lwm_core.train.events import TrainEvent
from lwm_core.train.language_job import plan_of
from lwm_core.train.loop import train
from lwm_core.train.provenance import changed
from lwm_core.train.recipe import ImageRecipe, LanguageRecipe, read_recipe, to_document
from lwm_core.train.start import sizes_of

__all__ = [
    "ImageRecipe",
    "LanguageRecipe",
    "TrainEvent",
    "changed",
    "plan_of",
    "read_recipe",
    "sizes_of",
    "to_document",
    "train",
]
