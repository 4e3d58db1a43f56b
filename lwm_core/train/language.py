"""Training the transformer: the two-part loss of text and vision, and one donated step."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import PartitionSpec

from lwm_core import transformer
from lwm_core.collectives import DATA_AXES, sum_over
from lwm_core.config import ModelConfig
from lwm_core.execution import Execution
from lwm_core.ring import zigzag
from lwm_core.train.loss import token_losses
from lwm_core.transformer import Params, head_of, hidden_states, shardings, specs
from lwm_core.types import Batch

LANES = 128
"""Tokens that make a whole block for the kernels of TPUs, at least."""


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


def language_loss(
    params: Params, config: ModelConfig, batch: Batch, how: Execution
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the mean text loss plus half the mean vision loss, as in the original.

    Each mean is over the targets' weights; without vision targets (or text) it is the other alone.
    Of one device's arrays, inside `how.spread`: the loss is this device's share, to be
    differentiated, the metrics are those of all.
    """
    hidden, _ = hidden_states(params, config, batch.tokens, how)
    losses = token_losses(config, head_of(params, config, how), hidden, batch.targets)
    vision = batch.targets >= config.text_vocab
    shares, present, metrics = [], [], {}
    for name, mask in (("text_loss", ~vision), ("vision_loss", vision)):
        weights = batch.weights * mask
        total = sum_over(weights.sum(), *DATA_AXES)
        share = (losses * weights).sum() / jnp.maximum(total, 1e-10)
        metrics[name] = sum_over(share, *DATA_AXES)
        shares.append(share)
        present.append((total > 0).astype(jnp.float32))
    kinds = jnp.maximum(sum(present), 1.0)
    return sum(shares) / kinds, {"loss": sum(metrics.values()) / kinds, **metrics}


def language_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    how: Execution,
    state: LanguageState,
    batch: Batch,
) -> tuple[LanguageState, dict[str, jax.Array]]:
    """One update; returns the next state and metrics. The mesh must divide the batch `[B, T]`."""

    def local(params: Params, batch: Batch) -> tuple[Params, dict[str, jax.Array]]:
        return jax.grad(partial(language_loss, config=config, batch=batch, how=how), has_aux=True)(
            params
        )

    cut = specs(config, how)
    run = how.spread(local, (cut, how.spec("rows", "sequence")), (cut, PartitionSpec()))
    gradients, metrics = run(state.params, batch)
    updates, moments = optimizer.update(gradients, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    return LanguageState(state.step + 1, params, moments), metrics


def abstract_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, how: Execution
) -> LanguageState:
    """Shapes, dtypes and places of a state, without making it: moments lie with their weights."""

    def fresh() -> LanguageState:
        params = fresh_params(config, 0)
        return LanguageState(jnp.int32(0), params, optimizer.init(params))

    shapes = jax.eval_shape(fresh)
    everywhere = how.sharding(PartitionSpec())
    places = shardings(config, how)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, place: place,
        shapes.moments,
        places,
        transform_non_params=lambda _: everywhere,
    )
    lies = shapes.replace(step=everywhere, params=places, moments=moments)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        lies,
    )


def lay_out(batch: Batch, ways: int) -> Batch:
    """A batch for a ring of so many devices: filled up with padding, in zigzag order."""
    if ways == 1:
        return batch
    length = batch.inputs.shape[1]
    whole = filled_up(length, ways)
    order = zigzag(whole, ways)
    return jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, whole - length)))[:, order], batch)


def filled_up(length: int, ways: int) -> int:
    """The length of rows that so many devices share: two chunks each, and all of one size.

    Chunks that are long enough are whole blocks of a fused kernel.
    """
    if ways == 1:
        return length
    unit = 2 * ways * (LANES if length >= 2 * ways * LANES else 1)
    return -(-length // unit) * unit
