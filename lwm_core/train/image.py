"""Training an image tokenizer: reconstruction, commitment, and a codebook kept by moving averages.

The codebook follows the encoder by exponential moving averages (van den Oord et al. 2017,
appendix A.1); a code that falls out of use is set to a latent of the present batch that its own
code serves badly, so that none stays dead. There is no adversarial loss: the pictures of the
embedded model's world are plain.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from lwm_core import vqgan
from lwm_core.config import VQConfig

COMMITMENT = 0.1
SQUARED = 2.0
"""Weight of the squared error: it does not forgive small things that are missing."""
DECAY = 0.99
DEAD = 0.02


class ImageState(struct.PyTreeNode):
    """Weights, optimizer moments, and the moving averages behind the codebook."""

    step: jax.Array
    params: Any
    moments: optax.OptState
    counts: jax.Array
    sums: jax.Array


def initial_state(
    config: VQConfig, optimizer: optax.GradientTransformation, seed: int
) -> tuple[nnx.GraphDef, ImageState]:
    """A fresh model's structure and state."""
    graph, weights = nnx.split(vqgan.create(config, seed), nnx.Param)
    params = nnx.to_pure_dict(weights)
    # No code is in use yet, so the first batch sets them all.
    unused = jnp.zeros(config.codes, jnp.float32)
    sums = jnp.zeros_like(params["codebook"])
    return graph, ImageState(jnp.int32(0), params, optimizer.init(params), unused, sums)


def _edges(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Differences between neighbouring pixels, `[F, H, W, 3]`, down and across."""
    return x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]


def image_loss(
    graph: nnx.GraphDef, params: Any, pixels: jax.Array, wanted: jax.Array, free: jax.Array
) -> tuple[jax.Array, tuple]:
    """Absolute error of pixels and of edges, squared error, and commitment.

    The pictures `pixels` are to be made into `wanted`, both `[F, R, R, 3]` in [-1, 1]. The
    latents of pictures that are `free` (bool `[F]`) go to the decoder as they are: at first
    encoder and decoder learn faster without the codebook between them.
    Returns the loss and (reconstruction error, latents `[n, code_dim]`, codes `[n]`).
    """
    model = nnx.merge(graph, params)
    latents = model.latents(pixels)
    codes = model.nearest(latents)
    quantized = model.codebook[...][codes]
    commitment = jnp.mean(jnp.square(latents - jax.lax.stop_gradient(quantized)))
    straight_through = latents + jax.lax.stop_gradient(
        jnp.where(free[:, None, None, None], 0.0, quantized - latents)
    )
    made = model.decode_latents(straight_through)
    error = jnp.abs(made - wanted).mean()
    edges = sum(jnp.abs(a - b).mean() for a, b in zip(_edges(made), _edges(wanted), strict=True))
    squared = jnp.square(made - wanted).mean()
    flat = latents.reshape(-1, latents.shape[-1])
    loss = error + edges + SQUARED * squared + COMMITMENT * commitment
    return loss, (error, flat, codes.reshape(-1))


def move_codebook(
    state: ImageState, latents: jax.Array, codes: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next moving averages and codebook from one batch of latents `[n, code_dim]`."""
    size = state.counts.shape[0]
    hits = jax.ops.segment_sum(jnp.ones_like(codes, jnp.float32), codes, size)
    sums = jax.ops.segment_sum(latents, codes, size)
    counts = DECAY * state.counts + (1 - DECAY) * hits
    sums = DECAY * state.sums + (1 - DECAY) * sums
    dead = counts < DEAD
    distance = jnp.square(latents - state.params["codebook"][codes]).sum(-1)
    worst = jax.random.choice(key, latents.shape[0], (size,), p=distance / distance.sum())
    fresh = latents[worst]
    counts = jnp.where(dead, 1.0, counts)
    sums = jnp.where(dead[:, None], fresh, sums)
    return counts, sums, sums / counts[:, None]


def image_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    seed: int,
    free_steps: int,
    state: ImageState,
    batch: tuple[jax.Array, jax.Array],
) -> tuple[ImageState, dict[str, jax.Array]]:
    """One update from a batch of pictures and what they should become; the next state and metrics.

    The share of pictures that bypass the codebook falls from one to none over `free_steps`.
    """
    key, key_free = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    bound = jax.random.uniform(key_free, batch[0].shape[:1])
    free = bound * free_steps > state.step
    loss_of = jax.value_and_grad(
        lambda params: image_loss(graph, params, *batch, free), has_aux=True
    )
    (loss, (error, latents, codes)), gradients = loss_of(state.params)
    updates, moments = optimizer.update(gradients, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    counts, sums, codebook = move_codebook(state, latents, codes, key)
    used = (jax.ops.segment_max(jnp.ones_like(codes), codes, counts.shape[0]) > 0).mean()
    norm = optax.tree.norm(gradients)
    metrics = {"loss": loss, "error": error, "codes_used": used, "gradient_norm": norm}
    params = {**params, "codebook": codebook}
    return ImageState(state.step + 1, params, moments, counts, sums), metrics
