"""The training of a transformer: its batches, its steps, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lwm_core import checkpoint, transformer, vqgan, world
from lwm_core.config import END_MARKERS, ModelConfig
from lwm_core.costs import Dtype, Work
from lwm_core.data.lessons import Lessons
from lwm_core.data.prose import read_prose
from lwm_core.distributed import on_first, put
from lwm_core.errors import ConfigError, DoesNotFit
from lwm_core.execution import Execution
from lwm_core.hardware import GIB
from lwm_core.presets import plan_here
from lwm_core.tokenizer import FILE as TOKENIZER
from lwm_core.tokenizer import Tokenizer, train_tokenizer
from lwm_core.tokens import SYSTEM, FrameLayout
from lwm_core.train.language import (
    LanguageState,
    abstract_state,
    fresh_params,
    language_step,
    lay_out,
)
from lwm_core.train.optimizer import make_optimizer
from lwm_core.train.recipe import LanguageRecipe
from lwm_core.types import Batch
from lwm_core.weights import Held, read_stacked

ENCODE_BATCH = 16
"""Frames per compiled call of the image tokenizer."""


class LanguageJob:
    """A transformer learns from packed lessons, stage after stage."""

    def __init__(self, recipe: LanguageRecipe, output: Path, mesh: str, *, begins: bool):
        self.recipe, self.steps, self.save_every = recipe, recipe.steps, recipe.save_every
        prose = "".join(
            passage
            for path in recipe.prose or (None,)
            for passage in read_prose(Path(path) if path else None)
        )
        source = Path(recipe.start_from) if recipe.start_from else None
        seen = Path(recipe.image_tokenizer) if recipe.image_tokenizer else source
        self.image = _image_tokenizer(recipe, seen)
        self._codes = _quick_encoder(self.image) if self.image else None
        self._tokenizer = Tokenizer.load(_tokenizer(recipe, source, output, prose, begins))
        self.config = (
            checkpoint.read_config(source) if source else self._config(self._tokenizer.vocab_size)
        )
        if self.image and (reason := self.config.misfit(self.image.config)):
            raise ConfigError(f"image_tokenizer: {seen} does not fit {source}: {reason}")
        self._source = source
        self._optimizer = make_optimizer(recipe.optimizer, recipe.steps)
        self._lessons = Lessons(
            self._tokenizer,
            FrameLayout.of(self.config),
            self._encode,
            self.image.config.resolution if self.image else 0,
            prose,
        )
        made, devices = plan_here(mesh, self._work())
        if not made.fits:
            raise DoesNotFit(
                f"training takes {made.memory.total / GIB:.1f} GiB on each device, which has "
                f"{made.topology.chip.memory / GIB:.1f}: lower stages.rows or stages.length, or "
                "take more devices"
            )
        dtype = jnp.dtype(recipe.dtype)
        self._how = Execution(devices, dtype, remat=made.remat, whole_weights=False)
        step = partial(language_step, self.config, self._optimizer, self._how)
        self._step = jax.jit(step, donate_argnums=0)

    def _config(self, text_vocab: int) -> ModelConfig:
        size = self.recipe.model
        assert size is not None  # the recipe has checked it
        vision: dict[str, int] = {}
        if self.image:
            image = self.image.config
            vision = {
                "vision_vocab": image.codes + END_MARKERS,
                "vision_codes": image.codes,
                "frame_codes": image.grid**2,
            }
        return ModelConfig(
            text_vocab=text_vocab,
            hidden=size.hidden,
            intermediate=size.intermediate,
            layers=size.layers,
            heads=size.heads,
            kv_heads=size.kv_heads or size.heads,
            head_dim=size.hidden // size.heads,
            max_length=size.max_length,
            rope_theta=size.rope_theta,
            tie_embeddings=size.tie_embeddings,
            **vision,
        )

    def _work(self) -> Work:
        """A step of as many tokens as the largest, in as many rows as divide those of all."""
        rows = math.gcd(*(stage.rows for stage in self.recipe.stages))
        tokens = max(stage.rows * stage.length for stage in self.recipe.stages)
        dtype = cast(Dtype, self.recipe.dtype)
        return Work(self.config, "train", tokens // rows, rows, dtype)

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        assert self._codes is not None  # there are no frames without an image tokenizer
        return vqgan.in_batches(self._codes, vqgan.to_unit(frames), ENCODE_BATCH)

    def initial_state(self) -> LanguageState:
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        if self._source:
            weights = checkpoint.DirectoryWeights(self._source, self.config)
            tensors = read_stacked(weights, self.config, np.dtype(np.float32))
            lie = transformer.flatten(places.params)
            params = transformer.nest({name: put(w, lie[name]) for name, w in tensors})
        else:
            codebook = np.asarray(self.image.codebook[...]) if self.image else None
            fresh = partial(fresh_params, self.config, self.recipe.seed, codebook)
            params = jax.jit(fresh, out_shardings=places.params)()
        moments = jax.jit(self._optimizer.init, out_shardings=places.moments)(params)
        return LanguageState(put(np.int32(0), places.step), params, moments)

    def abstract_state(self) -> LanguageState:
        return abstract_state(self.config, self._optimizer, self._how)

    def step(
        self, state: LanguageState, batch: Batch
    ) -> tuple[LanguageState, dict[str, jax.Array]]:
        place = self._how.sharding(self._how.spec("rows", "sequence"))
        return self._step(state, jax.tree.map(partial(put, place=place), batch))

    def batch(self, index: int) -> Batch:
        batch = self._lessons.batch(self.recipe.stage_at(index), self.recipe.seed, index)
        return lay_out(batch, self._how.ways)

    def size(self, batch: Batch) -> tuple[str, int]:
        return "tokens", int((batch.segments > 0).sum())

    def export(self, state: LanguageState, directory: Path) -> None:
        weights = Held(transformer.to_numpy(state.params))
        write = partial(
            checkpoint.write_model,
            directory,
            self.config,
            weights,
            tokenizer=self._tokenizer,
            image=self.image,
            defaults=self.recipe.defaults,
            force=True,
        )
        on_first("the model", write)


def _image_tokenizer(recipe: LanguageRecipe, directory: Path | None) -> vqgan.VQGAN | None:
    """The image tokenizer of a directory. Raises ConfigError where one is needed and none is."""
    image = checkpoint.read_vqgan(directory) if directory else None
    if recipe.image_tokenizer and image is None:
        raise ConfigError(
            f"image_tokenizer: {directory} holds no vqgan/ folder; train an image tokenizer first "
            "(for nano: lwm train nano-vqgan), or name another directory"
        )
    shares = (stage.mix.get(kind) for stage in recipe.stages for kind in ("see", "make", "move"))
    if image is None and any(shares):
        raise ConfigError("stages.mix: pictures need an image_tokenizer")
    return image


def _quick_encoder(image: vqgan.VQGAN) -> Callable[[np.ndarray], jax.Array]:
    """`image.encode`, compiled over its bare arrays.

    Walking through the modules in every call would cost more than a small VQGAN does.
    """
    graph, state = nnx.split(image)
    arrays, structure = jax.tree.flatten(state)

    @jax.jit
    def encode(arrays: list[jax.Array], pixels: jax.Array) -> jax.Array:
        return nnx.merge(graph, jax.tree.unflatten(structure, arrays)).encode(pixels)

    return partial(encode, arrays)


def _tokenizer(
    recipe: LanguageRecipe, source: Path | None, output: Path, prose: str, begins: bool
) -> Path:
    """The tokenizer's file: that of the model to start from, or one trained on what is taught.

    A run that `begins` trains it anew: one that lies there may be of another recipe.
    """
    if source:
        return source / TOKENIZER
    path = output / TOKENIZER

    def write() -> None:
        output.mkdir(parents=True, exist_ok=True)
        train_tokenizer(_texts(prose), path, recipe.tokenizer)

    if begins:
        on_first("the tokenizer", write)
    return path


def _texts(prose: str) -> list[str]:
    """Texts that show how often each word will be met: the world's words and the prose."""
    texts = [line for line in prose.splitlines() if line.strip()]
    examples = world.stream(0, prose, size=8, frames=(1, 4), characters=(100, 200))
    for _ in range(4000):
        for question, answer in next(examples).exchanges:
            texts += [f"{SYSTEM} USER: {question} ASSISTANT: <vision>", answer]
            texts.append("Generate an image of a video of")
    return texts
