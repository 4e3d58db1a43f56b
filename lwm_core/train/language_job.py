"""The training of a transformer: its batches, its steps, and what comes out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lwm_core import checkpoint, lora, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.costs import Work
from lwm_core.distributed import on_first, put
from lwm_core.errors import ConfigError, DoesNotFit
from lwm_core.execution import Execution
from lwm_core.hardware import GIB
from lwm_core.load import LoadedModel
from lwm_core.plan import Plan
from lwm_core.presets import plan_here
from lwm_core.train import agreement
from lwm_core.train.batches import Cursor, EvaluationBatches, Made, Placed, batches_of
from lwm_core.train.language import (
    LanguageState,
    Metrics,
    abstract_state,
    joined,
    language_metrics,
    language_step,
    lay_out,
    parted,
)
from lwm_core.train.metrics import model_flops
from lwm_core.train.optimizer import make_optimizer
from lwm_core.train.recipe import LanguageRecipe
from lwm_core.train.samples import write_samples
from lwm_core.train.shard import shard_of
from lwm_core.train.start import start_of
from lwm_core.types import Batch
from lwm_core.weight_tree import Params
from lwm_core.weights import Held

ADAPTERS = ("*_a", "*_b")
"""What learns where a model is adapted."""
KINDS = ("text", "vision")
"""Of targets, which have metrics of their own."""


class LanguageJob:
    """A transformer learns from packed rows, stage after stage.

    Its state, and so a checkpoint, holds the weights that learn; the rest stay those of the start.
    """

    def __init__(self, recipe: LanguageRecipe, output: Path, mesh: str, *, begins: bool):
        self.recipe, self.steps = recipe, recipe.steps
        self.evaluate_every, self.sample_every = recipe.evaluate_every, recipe.sample_every
        self.start = start_of(recipe, output, begins=begins)
        self.config = dataclasses.replace(self.start.config, lora=recipe.lora)
        learns = ADAPTERS if recipe.lora else recipe.optimizer.learns
        self._settings = dataclasses.replace(recipe.optimizer, learns=learns)
        self._optimizer = make_optimizer(self._settings, recipe.steps)
        self._how = _execution(recipe, self.config, mesh)
        self._shard = shard_of(self._how)
        self._batches = batches_of(recipe, self.start, self._shard)
        self._evaluation = (
            EvaluationBatches(recipe, self.start, self._shard) if recipe.evaluation else None
        )
        if self._evaluation:  # of no fingerprint, for a run may go on with another
            agreement.check(self._evaluation.fingerprint())
        self._step = jax.jit(self._update, donate_argnums=0)
        measure = partial(language_metrics, self.config, self._how, settings=self._settings)
        self._measure = jax.jit(measure)

    def initial_state(self) -> LanguageState:
        shapes = self.abstract_state()
        places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        params = self.start.params(self.config, self.recipe.seed, shapes.params)
        moments = jax.jit(self._optimizer.init, out_shardings=places.moments)(params)
        return LanguageState(put(np.int32(0), places.step), params, moments)

    def abstract_state(self) -> LanguageState:
        """Of what learns alone: a checkpoint needs no more."""
        whole = self._abstract()
        return whole.replace(params=parted(whole.params, self._settings.learns)[0])

    def batches(self, first: int, cursors: Sequence[Cursor]) -> Iterator[Placed]:
        return self._batches.after(first, cursors)

    def step(self, state: LanguageState, made: Made) -> tuple[LanguageState, dict[str, Any]]:
        state, metrics = self._step(state, self._fixed, self._placed(made.batch))
        return state, {**_present(metrics), "packed": made.packed, **made.counts}

    def size(self, made: Made) -> tuple[str, int]:
        return "tokens", int((made.batch.segments > 0).sum()) * self._shard.count

    def flops(self, made: Made) -> float:
        rows, length = made.batch.targets.shape
        return model_flops(self.config, rows * self._shard.count, length)

    def evaluate(self, state: LanguageState) -> dict[str, float]:
        """The mean metrics of the evaluation's batches: each kind's of those that have it."""
        assert self._evaluation is not None  # otherwise it is never time to
        params = self._whole(state)
        measured = [
            _present(self._measure(params, self._placed(batch))) for batch in self._evaluation
        ]
        names = dict.fromkeys(chain.from_iterable(measured))
        return {
            name: float(np.mean([one[name] for one in measured if name in one])) for name in names
        }

    def samples(self, state: LanguageState, folder: Path, step: int) -> None:
        write_samples(self._loaded(state), self.recipe.samples, folder, step)

    def export(self, state: LanguageState, directory: Path) -> None:
        exported = state.params if self.recipe.lora else self._whole(state)
        weights = Held(weight_tree.to_numpy(exported))
        if self.recipe.lora:
            base = self._base()
            write = partial(lora.write_adapter, directory, self.config, weights, base=base)
        else:
            write = partial(
                checkpoint.write_model,
                directory,
                self.config,
                weights,
                tokenizer=self.start.tokenizer,
                image=self.start.image,
                defaults=self._habits(),
                template=self.start.source.template if self.start.source else None,
            )
        on_first("the model", partial(write, force=True))

    def fingerprint(self) -> dict[str, str]:
        return {**self.start.fingerprint(), **self._batches.fingerprint()}

    @cached_property
    def _fixed(self) -> Params:
        """The weights that don't learn. No checkpoint has them: they are those of the start."""
        _, shapes = parted(self._abstract().params, self._settings.learns)
        return self.start.params(self.config, self.recipe.seed, shapes)

    def _abstract(self) -> LanguageState:
        """Shapes, dtypes and places of a state with all weights."""
        return abstract_state(self.config, self._optimizer, self._how, self._settings.learns)

    def _whole(self, state: LanguageState) -> Params:
        """All weights."""
        return joined(state.params, self._fixed)

    def _update(
        self, state: LanguageState, fixed: Params, batch: Batch
    ) -> tuple[LanguageState, Metrics]:
        """One update of a state of what learns alone."""
        whole = state.replace(params=joined(state.params, fixed))
        updated, metrics = language_step(
            self.config, self._optimizer, self._how, whole, batch, self._settings
        )
        learning, _ = parted(updated.params, self._settings.learns)
        return updated.replace(params=learning), metrics

    def _placed(self, batch: Batch) -> Batch:
        """A batch of this process's rows, zigzag and on the devices of all."""
        place = self._how.sharding(self._how.spec("rows", "sequence"))
        laid = lay_out(batch, self._how.ways)
        return jax.tree.map(lambda local: self._shard.put(local, place), laid)

    def _base(self) -> str:
        """The name of the model that adapters are for; of one on the disk where it lies."""
        assert self.recipe.start_from is not None  # the recipe has checked it
        path = Path(self.recipe.start_from).expanduser()
        return str(path.absolute()) if path.exists() else self.recipe.start_from

    def _habits(self) -> checkpoint.Habits:
        """Those of the recipe, and where it says nothing those of the model before."""
        before = self.start.source.habits if self.start.source else {}
        return {**before, **self.recipe.defaults}

    def _loaded(self, state: LanguageState) -> LoadedModel:
        """The model as it is, to write and draw with."""
        whole = self._whole(state)
        return LoadedModel(
            name="samples",
            config=self.config,
            params=weight_tree.split(whole, self._how) if self._how.splits_layers else whole,
            tokenizer=self.start.tokenizer,
            vqgan=self.start.image,
            how=self._how,
            context=self.config.max_length,
            cache_dtype=self._how.dtype,
            defaults=self._habits(),
        )


def _present(metrics: Metrics) -> dict[str, float]:
    """The numbers of a batch, without those of text or of vision where it has no such targets."""
    known = jax.device_get(metrics)
    absent = tuple(f"{kind}_" for kind in KINDS if not known[f"{kind}_tokens"])
    return {name: float(one) for name, one in known.items() if not name.startswith(absent)}


def plan_of(recipe: LanguageRecipe, mesh: str, config: ModelConfig) -> tuple[Plan, Mesh]:
    """The plan of a step of as many tokens as the largest, in rows that divide those of all.

    Raises ConfigError where the rows can't be taken in as many parts as the recipe says.
    """
    parts = recipe.optimizer.accumulate
    rows = math.gcd(*(stage.rows for stage in recipe.stages))
    if rows % parts:
        raise ConfigError(f"optimizer.accumulate is {parts}, which does not divide stages.rows")
    tokens = max(stage.rows * stage.length for stage in recipe.stages)
    work = Work(config, "train", tokens // rows, rows, recipe.dtype, parts=parts)
    return plan_here(mesh, work)


def _execution(recipe: LanguageRecipe, config: ModelConfig, mesh: str) -> Execution:
    """How a recipe's steps run here. Raises DoesNotFit where memory does not suffice."""
    made, devices = plan_of(recipe, mesh, config)
    if not made.fits:
        raise DoesNotFit(
            f"training takes {made.memory.total / GIB:.1f} GiB on each device, which has "
            f"{made.topology.chip.memory / GIB:.1f}: lower stages.rows or stages.length, or "
            "take more devices"
        )
    return Execution(devices, jnp.dtype(recipe.dtype), remat=made.remat, whole_weights=False)
