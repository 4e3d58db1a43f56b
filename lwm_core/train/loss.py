"""The loss of each token, by blocks: logits of the whole vocabulary exist for a few tokens only.

And what each token counts in the loss of a batch.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lwm_core.collectives import DATA_AXES, sum_over
from lwm_core.config import ModelConfig
from lwm_core.costs import LOSS_BLOCK
from lwm_core.kernels.dense import MASKED
from lwm_core.layers import in_blocks, out_of_blocks, product, product_gradients
from lwm_core.types import Array, Batch

LEAST = 1e-10
"""What weights that sum up to nothing are divided by, as in the original."""


class TokenLosses(NamedTuple):
    """Of each target, float32 `[B, T]`: its negative log-likelihood, and the log-sum-exp of the
    logits that it was to be found among; 1 where it has the highest of them, otherwise 0."""

    losses: jax.Array
    lse: jax.Array
    right: jax.Array


def token_losses(
    config: ModelConfig, head: jax.Array, hidden: jax.Array, targets: Array
) -> TokenLosses:
    """How well each target is predicted within its own modality.

    A text target is predicted among the text ids, a vision target among the vision ids. `head` is
    `[V, D]`, or this device's part of it; `hidden` is `[B, T, D]`. Logits are made for LOSS_BLOCK
    tokens at a time.
    """
    matrix = head.astype(hidden.dtype)

    def one_block(parts: tuple) -> TokenLosses:
        logits, is_target = _logits(config, matrix, *parts)
        return _losses(_is_cut(config, head), logits, is_target)

    of_blocks = lax.map(one_block, (in_blocks(hidden, LOSS_BLOCK), _blocks_of(targets)))
    return jax.tree.map(lambda blocks: out_of_blocks(blocks, targets.shape), of_blocks)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_loss(
    config: ModelConfig,
    z_loss: float,
    head: jax.Array,
    hidden: jax.Array,
    targets: Array,
    weights: jax.Array,
) -> tuple[jax.Array, TokenLosses]:
    """The sum of `weights [B, T]` times `loss + z_loss * lse^2`, and what `token_losses` gives.

    Only the sum has gradients, of the head and of what is hidden. They are made in the forward
    pass, from the logits that are there: so no logits are made twice (Hsu et al. 2024, Liger).
    """
    each = token_losses(config, head, hidden, targets)
    return _total(z_loss, each, weights), each


def _loss_and_gradients(
    config: ModelConfig,
    z_loss: float,
    head: jax.Array,
    hidden: jax.Array,
    targets: Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, TokenLosses], tuple]:
    """A logit's gradient is its share of the softmax; in a loss less one if it is the target's."""
    matrix = head.astype(hidden.dtype)

    def one_block(sums: tuple, parts: tuple) -> tuple[tuple, tuple]:
        loss, d_head = sums
        rows, ids, counts = parts
        logits, is_target = _logits(config, matrix, rows, ids)
        each = _losses(_is_cut(config, head), logits, is_target)
        loss += _total(z_loss, each, counts)
        softmax = jnp.exp(logits - each.lse[:, None])
        shares = counts * (1 + 2 * z_loss * each.lse)
        d_logits = softmax * shares[:, None] - jnp.where(is_target, counts[:, None], 0.0)
        d_rows, more = product_gradients(rows, matrix, d_logits)
        return (loss, d_head + more), (each, d_rows.astype(rows.dtype))

    nothing = jnp.float32(0), jnp.zeros(head.shape, jnp.float32)
    parts = in_blocks(hidden, LOSS_BLOCK), _blocks_of(targets), _blocks_of(weights)
    (loss, d_head), (of_blocks, d_hidden) = lax.scan(one_block, nothing, parts)
    each = jax.tree.map(lambda blocks: out_of_blocks(blocks, targets.shape), of_blocks)
    d_hidden = out_of_blocks(d_hidden, hidden.shape)
    if _is_cut(config, head):
        d_hidden = sum_over(d_hidden, "tp")
    return (loss, each), (d_head.astype(head.dtype), d_hidden)


def _scaled(
    config: ModelConfig, z_loss: float, gradients: tuple, cotangents: tuple[jax.Array, TokenLosses]
) -> tuple:
    """The gradients of the sum times its own."""
    return *(part * cotangents[0].astype(part.dtype) for part in gradients), None, None


weighted_loss.defvjp(_loss_and_gradients, _scaled)


def _total(z_loss: float, each: TokenLosses, weights: jax.Array) -> jax.Array:
    return ((each.losses + z_loss * jnp.square(each.lse)) * weights).sum()


def _losses(is_cut: bool, logits: jax.Array, is_target: jax.Array) -> TokenLosses:
    """From the logits `[tokens, V]` of a block, or from this device's part of them."""
    highest = logits.max(-1)
    lse = highest + jnp.log(jnp.exp(logits - highest[:, None]).sum(-1))
    found = jnp.where(is_target, logits, 0.0).sum(-1)
    if is_cut:
        lse = jax.nn.logsumexp(lax.all_gather(lse, "tp"), axis=0)
        found = sum_over(found, "tp")
        highest = lax.pmax(highest, "tp")
    return TokenLosses(lse - found, lse, (found == highest).astype(jnp.float32))


def _logits(
    config: ModelConfig, head: jax.Array, rows: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits `[tokens, V]`, MASKED for ids of the other modality; which of them is the target's."""
    columns = jnp.arange(head.shape[0])
    if _is_cut(config, head):
        columns += lax.axis_index("tp") * head.shape[0]
    of_kind = (columns >= config.text_vocab) == (ids >= config.text_vocab)[:, None]
    return jnp.where(of_kind, product(rows, head), MASKED), columns == ids[:, None]


def _is_cut(config: ModelConfig, head: jax.Array) -> bool:
    """Whether the devices of `tp` have a part of the vocabulary each."""
    return head.shape[0] < config.vocab


def _blocks_of(numbers: Array) -> jax.Array:
    return in_blocks(jnp.asarray(numbers), LOSS_BLOCK, features=0)


def balance(config: ModelConfig, batch: Batch, average: str) -> tuple[Batch, jax.Array]:
    """A batch with weights that make sums means, and how many kinds of targets it has.

    Times these weights the losses of all text targets together sum up to their mean, and those of
    the vision targets to theirs: over all targets by their weights or, as in the original, over
    `rows` by theirs, where a row without targets counts as 0.
    """
    vision = batch.targets >= config.text_vocab
    shares, present = jnp.zeros_like(batch.weights), jnp.float32(0)
    for mask in (~vision, vision):
        weights = batch.weights * mask
        total = sum_over(weights.sum(), *DATA_AXES)
        if average == "rows":
            shares += _shares_of_rows(weights)
        else:
            shares += weights / jnp.maximum(total, LEAST)
        present += total > 0
    return batch._replace(weights=shares), jnp.maximum(present, 1.0)


def _shares_of_rows(weights: Array) -> jax.Array:
    """What each target counts in the mean of the rows' means.

    In the original any weight above 0 selects a target, and the sum of the weights divides.
    """
    rows = weights.shape[0] * lax.axis_size("dp") * lax.axis_size("fsdp")
    totals = sum_over(weights.sum(-1, keepdims=True), "sp")
    return jnp.where(weights > 0, 1 / (rows * jnp.maximum(totals, LEAST)), 0.0)
