"""The last steps of an image tokenizer: its decoder alone learns to draw what will be made.

A transformer writes one code for all patches that look alike (`data/alike.py`), which an encoder
never does. Encoder and codebook stay as they are, so codes keep their meaning.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from lwm_core.config import VQConfig
from lwm_core.train.image import ImageState, drawing_params, reconstruction_loss
from lwm_core.types import Array
from lwm_core.vqgan import VQGAN


class Drawings(NamedTuple):
    """A batch: pictures as float32 `[F, R, R, 3]` in [-1, 1], and whose code each patch has.

    `stand_ins` are int `[F, grid * grid]`, numbers of patches of the whole batch.
    """

    pixels: Array
    stand_ins: Array


def drawing_step(
    config: VQConfig,
    optimizer: optax.GradientTransformation,
    state: ImageState,
    batch: Drawings,
) -> tuple[ImageState, dict[str, jax.Array]]:
    """One update of the decoder from a batch; the next state and metrics."""
    model = VQGAN(config, state.params["model"])
    codes = model.encode(batch.pixels).reshape(-1)[batch.stand_ins]
    latents = model.codebook[codes].reshape(len(codes), config.grid, config.grid, -1)

    def loss_of(drawing: Any) -> tuple[jax.Array, jax.Array]:
        decoder = VQGAN(config, state.params["model"] | drawing)
        return reconstruction_loss(decoder.decode_latents(latents), batch.pixels)

    drawing = drawing_params(state.params)
    (loss, error), gradients = jax.value_and_grad(loss_of, has_aux=True)(drawing)
    updates, moments = optimizer.update(gradients, state.drawing_moments, drawing)
    learned = state.params["model"] | optax.apply_updates(drawing, updates)
    norm = optax.tree.norm(gradients)
    metrics = {"error": error, "loss": loss, "gradient_norm": norm, "skipped": moments.skipped}
    params = state.params | {"model": learned}
    return state.replace(step=state.step + 1, params=params, drawing_moments=moments), metrics
