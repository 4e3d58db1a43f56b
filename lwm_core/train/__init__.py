"""Training: a recipe in, events out; checkpoints, metrics and a model directory on the way."""

from __future__ import annotations

from lwm_core.train.events import TrainEvent
from lwm_core.train.loop import train
from lwm_core.train.recipe import ImageRecipe, LanguageRecipe, read_recipe, to_document

__all__ = ["ImageRecipe", "LanguageRecipe", "TrainEvent", "read_recipe", "to_document", "train"]
