"""Training the transformer: the two-part loss of text and vision, and one donated step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from lwm_core import transformer
from lwm_core.config import ModelConfig
from lwm_core.transformer import Params, hidden_states, logits_of
from lwm_core.types import Array, Batch

LOSS_BLOCK = 2048
"""At most so many tokens' logits exist at a time."""


class LanguageState(struct.PyTreeNode):
    """Weights and optimizer moments after `step` updates."""

    step: jax.Array
    params: Params
    moments: Any


def fresh_params(config: ModelConfig, seed: int, codebook: np.ndarray | None = None) -> Params:
    """Float32 weights to begin with.

    Given the image tokenizer's codebook, `[codes, code_dim]`, the codes are not strangers to each
    other at first: half of the variance of their embeddings is a random projection of it, so what
    is learned of one code holds for those that look alike.
    """
    params = transformer.init(config, jax.random.key(seed))
    if codebook is None:
        return params
    spread = params["embed"].std()
    whitened = (codebook - codebook.mean(0)) / codebook.std(0)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    projection = jax.random.normal(key, (codebook.shape[1], config.hidden))
    alike = whitened @ projection * (spread / np.sqrt(codebook.shape[1]))
    codes = slice(config.text_vocab, config.text_vocab + len(codebook))
    mixed = (params["embed"][codes] + alike) / np.sqrt(2)
    return {**params, "embed": params["embed"].at[codes].set(mixed)}


def token_losses(
    params: Params, config: ModelConfig, hidden: jax.Array, targets: Array
) -> jax.Array:
    """Negative log-likelihood of each target within its own modality, float32 `[B, T]`.

    A text target is predicted among the text ids, a vision target among the vision ids. Logits are
    made for a block of tokens at a time, and again in the backward pass.
    """
    ranges = [(0, config.text_vocab)]
    if config.vision_vocab:
        ranges.append((config.text_vocab, config.vocab))

    @jax.checkpoint
    def block(parts: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, ids = parts
        loss = jnp.zeros(ids.shape, jnp.float32)
        for low, high in ranges:
            logits = logits_of(params, rows, slice(low, high))
            inside = (ids >= low) & (ids < high)
            chosen = jnp.clip(ids - low, 0, high - low - 1)
            found = optax.softmax_cross_entropy_with_integer_labels(logits, chosen)
            loss = jnp.where(inside, found, loss)
        return loss

    # As many blocks as it takes, all of one size, so that little or nothing is filled up.
    blocks = -(-targets.size // LOSS_BLOCK)
    missing = -targets.size % blocks
    rows = jnp.pad(hidden.reshape(-1, hidden.shape[-1]), ((0, missing), (0, 0)))
    ids = jnp.pad(targets.reshape(-1), (0, missing))
    losses = jax.lax.map(block, (rows.reshape(blocks, -1, rows.shape[-1]), ids.reshape(blocks, -1)))
    return losses.reshape(-1)[: targets.size].reshape(targets.shape)


def language_loss(
    params: Params, config: ModelConfig, batch: Batch, *, dtype: jnp.dtype
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the mean text loss plus half the mean vision loss, as in the original.

    Each mean is over the targets' weights; without vision targets (or text) it is the other alone.
    """
    hidden, _ = hidden_states(params, config, batch.tokens, dtype=dtype)
    losses = token_losses(params, config, hidden, batch.targets)
    vision = batch.targets >= config.text_vocab
    metrics, parts, present = {}, [], []
    for name, mask in (("text_loss", ~vision), ("vision_loss", vision)):
        weights = batch.weights * mask
        total = weights.sum()
        mean = (losses * weights).sum() / jnp.maximum(total, 1e-10)
        metrics[name] = mean
        parts.append(mean)
        present.append((total > 0).astype(jnp.float32))
    loss = sum(parts) / jnp.maximum(sum(present), 1.0)
    return loss, {"loss": loss, **metrics}


def language_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    dtype: jnp.dtype,
    state: LanguageState,
    batch: Batch,
) -> tuple[LanguageState, dict[str, jax.Array]]:
    """One update; returns the next state and metrics."""
    loss = partial(language_loss, config=config, batch=batch, dtype=dtype)
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    updates, moments = optimizer.update(gradients, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    return LanguageState(state.step + 1, params, moments), metrics
