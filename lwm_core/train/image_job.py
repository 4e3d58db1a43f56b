"""The training of an image tokenizer: its batches, its steps, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lwm_core import checkpoint, vqgan, world
from lwm_core.data.alike import stand_ins
from lwm_core.frame_batches import to_unit
from lwm_core.train.drawing import Drawings, drawing_step
from lwm_core.train.image import Pictures, image_step, initial_state
from lwm_core.train.optimizer import make_optimizer
from lwm_core.train.recipe import ImageRecipe

FRAMES_OF_A_SCENE = 2
"""So many pictures are taken from each scene that an image tokenizer learns from."""
FRAMES_OF_A_DRAWING = 4
"""So many frames of a clip, or fewer, are drawn in one batch."""
SEEN = 0.7
"""Share of the scenes to see among them: these have small shapes at any place."""


class ImageJob:
    """An image tokenizer learns from single pictures of the world, and to make them plain.

    The codes are few: none of them should be spent on grain, on the blocks of an encoder or on
    shades of red (the idea of denoising autoencoders, Vincent et al. 2008).
    """

    evaluate_every = sample_every = 0

    def __init__(self, recipe: ImageRecipe, device: jax.Device):
        self._place = jax.sharding.SingleDeviceSharding(device)
        self.recipe, self.steps = recipe, recipe.steps
        self._drawing_from = recipe.steps - recipe.drawing_steps
        optimizer = make_optimizer(recipe.optimizer, self._drawing_from)
        drawing_optimizer = make_optimizer(recipe.optimizer, max(1, recipe.drawing_steps))
        self._optimizers = optimizer, drawing_optimizer
        step = partial(image_step, recipe.model, optimizer, recipe.seed, recipe.free_steps)
        self._step = jax.jit(step, donate_argnums=0)
        drawing = partial(drawing_step, recipe.model, drawing_optimizer)
        self._drawing_step = jax.jit(drawing, donate_argnums=0)

    def initial_state(self) -> Any:
        return initial_state(self.recipe.model, *self._optimizers, self.recipe.seed)

    def abstract_state(self) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._place),
            jax.eval_shape(self.initial_state),
        )

    def step(self, state: Any, batch: Pictures | Drawings) -> tuple[Any, dict[str, jax.Array]]:
        if isinstance(batch, Drawings):
            return self._drawing_step(state, batch)
        return self._step(state, batch)

    def batches(
        self, first: int, cursors: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[Pictures | Drawings, dict[str, Any]]]:
        for index in count(first):
            yield self.batch(index), {}

    def batch(self, index: int) -> Pictures | Drawings:
        """Batch number `index`: a function of the recipe and the number alone."""
        rng = np.random.default_rng((self.recipe.seed, index))
        return self._pictures(rng) if index < self._drawing_from else self._drawings(rng)

    def _pictures(self, rng: np.random.Generator) -> Pictures:
        size, grid = self.recipe.model.resolution, self.recipe.model.grid
        parts: list[tuple[np.ndarray, ...]] = []
        while len(parts) < self.recipe.batch:
            frames = int(rng.integers(1, 9))
            purpose: world.Purpose = "see" if rng.random() < SEEN else "make"
            scene = world.sample_scene(rng, frames=frames, purpose=purpose)
            clips = scene.render(size), scene.plain().render(size), scene.shapes_at(grid)
            chosen = rng.permutation(frames)[:FRAMES_OF_A_SCENE]
            parts += zip(*(clip[chosen] for clip in clips), strict=True)
        pixels, wanted, names = map(np.stack, zip(*parts[: self.recipe.batch], strict=True))
        return Pictures(to_unit(pixels), to_unit(wanted), names)

    def _drawings(self, rng: np.random.Generator) -> Drawings:
        size, grid = self.recipe.model.resolution, self.recipe.model.grid
        clips: list[np.ndarray] = []
        codes_of: list[np.ndarray] = []
        room = self.recipe.batch
        while room:
            frames = int(rng.integers(1, min(room, FRAMES_OF_A_DRAWING) + 1))
            clip = world.sample_scene(rng, frames=frames, purpose="make").render(size)
            codes_of.append(stand_ins(clip, grid) + (self.recipe.batch - room) * grid**2)
            clips.append(clip)
            room -= frames
        return Drawings(to_unit(np.concatenate(clips)), np.concatenate(codes_of))

    def size(self, batch: Pictures | Drawings) -> tuple[str, int]:
        return "pictures", len(batch.pixels)

    def flops(self, batch: Pictures | Drawings) -> float:
        return 0.0

    def evaluate(self, state: Any) -> dict[str, float]:
        return {}

    def samples(self, state: Any, folder: Path, step: int) -> None:
        """There are none: what it makes of pictures is seen in a model that uses it."""

    def fingerprint(self) -> dict[str, str]:
        return {}

    def export(self, state: Any, directory: Path) -> None:
        model = vqgan.VQGAN(self.recipe.model, state.params["model"])
        with checkpoint.new_directory(directory, force=True) as folder:
            checkpoint.write_vqgan(folder / checkpoint.VQGAN, model)
