"""Training an image tokenizer: reconstruction, naming, commitment, a codebook of moving averages.

The codebook follows the encoder by exponential moving averages (van den Oord et al. 2017,
appendix A.1); a code that falls out of use is set to a latent of the present batch that its own
code serves badly, so that none stays dead. There is no adversarial loss: the pictures of the
embedded model's world are plain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lwm_core import vqgan
from lwm_core.config import VQConfig
from lwm_core.types import Array
from lwm_core.vqgan import VQGAN
from lwm_core.world.shapes import SHAPES

COMMITMENT = 0.1
SQUARED = 2.0
"""Weight of the squared error: it does not forgive small things that are missing."""
EDGES = 0.5
"""Weight of the error of edges, as it is."""
OUTLINES = 0.02
"""Weight of the error of edges in parts of a picture's own: a small star's points count as well."""
FEWEST_EDGES = 0.002
"""Added to a picture's own edges (mean difference of neighbouring pixels): some have hardly any."""
NAMING = 0.1
"""Weight of naming the shape at each patch from its code alone."""
DECAY = 0.99
DEAD = 0.02


class Pictures(NamedTuple):
    """A batch: pictures, what they should become, and the shape at each patch.

    `pixels` and `wanted` are float32 `[F, R, R, 3]` in [-1, 1]; `names` are int32
    `[F, grid, grid]`: 0 for none, else 1 + the shape's place in SHAPES.
    """

    pixels: Array
    wanted: Array
    names: Array


class ImageState(struct.PyTreeNode):
    """Weights (`model` and the `reader` of names), moments, averages behind the codebook.

    `drawing_moments` are those of the last steps (`drawing.py`).
    """

    step: jax.Array
    params: Any
    moments: optax.OptState
    drawing_moments: optax.OptState
    counts: jax.Array
    sums: jax.Array


def drawing_params(params: Any) -> Any:
    """The weights that the last steps teach: those of the decoder."""
    return {name: params["model"][name] for name in ("decoder", "post_quant_conv")}


def initial_state(
    config: VQConfig,
    optimizer: optax.GradientTransformation,
    drawing_optimizer: optax.GradientTransformation,
    seed: int,
) -> ImageState:
    """The state of a fresh model."""
    model = vqgan.create(config, seed).weights
    readings = (config.code_dim, 1 + len(SHAPES))
    params = {"model": model, "reader": jax.random.normal(jax.random.key(seed), readings)}
    # No code is in use yet, so the first batch sets them all.
    unused = jnp.zeros(config.codes, jnp.float32)
    sums = jnp.zeros_like(model["codebook"])
    moments = optimizer.init(params), drawing_optimizer.init(drawing_params(params))
    return ImageState(jnp.int32(0), params, *moments, unused, sums)


def _steepness(x: Array) -> jax.Array:
    """Mean absolute difference of neighbouring pixels, down and across, of each picture: `[F]`."""
    down, across = (jnp.abs(jnp.diff(x, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))
    return down + across


def reconstruction_loss(drawn: jax.Array, wanted: Array) -> tuple[jax.Array, jax.Array]:
    """Absolute error of pixels, of edges and of outlines, squared error; the first also alone."""
    wrong = drawn - wanted
    error, edges = jnp.abs(wrong).mean(), _steepness(wrong)
    outlines = edges / (_steepness(wanted) + FEWEST_EDGES)
    loss = error + SQUARED * jnp.square(wrong).mean()
    return loss + EDGES * edges.mean() + OUTLINES * outlines.mean(), error


def _naming_loss(logits: jax.Array, names: Array) -> jax.Array:
    """Cross-entropy of names `[F, grid, grid]`, logits `[F, grid, grid, 1 + shapes]`.

    The patches with a shape weigh half in all.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(names))
    shaped = (names > 0).astype(jnp.float32)
    rest = 1 - shaped
    weights = shaped / jnp.maximum(shaped.sum(), 1) + rest / jnp.maximum(rest.sum(), 1)
    return (losses * weights).sum() / 2


def image_loss(
    config: VQConfig, params: Any, pictures: Pictures, free: jax.Array
) -> tuple[jax.Array, tuple]:
    """Errors of reconstruction, commitment, and naming.

    The latents of pictures that are `free` (bool `[F]`) go to the decoder as they are: at first
    encoder and decoder learn faster without the codebook between them. A linear reader names the
    shape at each patch from what the decoder gets, so that the codes of a small star and of a small
    circle differ though their pixels hardly do (a tokenizer that also learns what is to be
    understood: Wu et al. 2024, VILA-U).
    Returns the loss and (metrics, latents `[n, code_dim]`, codes `[n]`).
    """
    model = VQGAN(config, params["model"])
    latents = model.latents(pictures.pixels)
    codes = model.nearest(latents)
    quantized = model.codebook[codes]
    commitment = jnp.mean(jnp.square(latents - jax.lax.stop_gradient(quantized)))
    straight_through = latents + jax.lax.stop_gradient(
        jnp.where(free[:, None, None, None], 0.0, quantized - latents)
    )
    loss, error = reconstruction_loss(model.decode_latents(straight_through), pictures.wanted)
    naming = _naming_loss(straight_through @ params["reader"], pictures.names)
    loss += COMMITMENT * commitment + NAMING * naming
    flat = latents.reshape(-1, latents.shape[-1])
    return loss, ({"error": error, "naming": naming}, flat, codes.reshape(-1))


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
    distance = jnp.square(latents - state.params["model"]["codebook"][codes]).sum(-1)
    worst = jax.random.choice(key, latents.shape[0], (size,), p=distance / distance.sum())
    fresh = latents[worst]
    counts = jnp.where(dead, 1.0, counts)
    sums = jnp.where(dead[:, None], fresh, sums)
    return counts, sums, sums / counts[:, None]


def image_step(
    config: VQConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    free_steps: int,
    state: ImageState,
    batch: Pictures,
) -> tuple[ImageState, dict[str, jax.Array]]:
    """One update from a batch; the next state and metrics. A skipped one moves no codebook either.

    The share of pictures that bypass the codebook falls from one to none over `free_steps`.
    """
    key, key_free = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    bound = jax.random.uniform(key_free, batch.pixels.shape[:1])
    free = bound * free_steps > state.step
    loss_of = jax.value_and_grad(
        lambda params: image_loss(config, params, batch, free), has_aux=True
    )
    (loss, (metrics, latents, codes)), gradients = loss_of(state.params)
    updates, moments = optimizer.update(gradients, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    averages = move_codebook(state, latents, codes, key)
    before = state.counts, state.sums, state.params["model"]["codebook"]
    counts, sums, params["model"]["codebook"] = (
        jnp.where(moments.skipped, old, new) for old, new in zip(before, averages, strict=True)
    )
    used = (jax.ops.segment_max(jnp.ones_like(codes), codes, counts.shape[0]) > 0).mean()
    norm = optax.tree.norm(gradients)
    metrics |= {"loss": loss, "codes_used": used, "gradient_norm": norm, "skipped": moments.skipped}
    new = {"params": params, "moments": moments, "counts": counts, "sums": sums}
    return state.replace(step=state.step + 1, **new), metrics
