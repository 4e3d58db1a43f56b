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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_losses(
    config: ModelConfig, head: jax.Array, hidden: jax.Array, targets: Array
) -> TokenLosses:
    """How well each target is predicted within its own modality.

    A text target is predicted among the text ids, a vision target among the vision ids. `head` is
    `[V, D]`, or this device's part of it; `hidden` is `[B, T, D]`. Logits are made for LOSS_BLOCK
    tokens at a time, and again in the backward pass.
    """
    return _forward(config, head, hidden, targets)[0]


def _forward(
    config: ModelConfig, head: jax.Array, hidden: jax.Array, targets: Array
) -> tuple[TokenLosses, tuple]:
    weights = head.astype(hidden.dtype)

    def one_block(parts: tuple) -> TokenLosses:
        logits, is_target = _logits(config, weights, *parts)
        highest = logits.max(-1)
        lse = highest + jnp.log(jnp.exp(logits - highest[:, None]).sum(-1))
        found = jnp.where(is_target, logits, 0.0).sum(-1)
        if _is_cut(config, head):
            lse = jax.nn.logsumexp(lax.all_gather(lse, "tp"), axis=0)
            found = sum_over(found, "tp")
            highest = lax.pmax(highest, "tp")
        return TokenLosses(lse - found, lse, (found == highest).astype(jnp.float32))

    of_blocks = lax.map(one_block, (in_blocks(hidden, LOSS_BLOCK), _blocks_of(targets)))
    out = jax.tree.map(lambda blocks: out_of_blocks(blocks, targets.shape), of_blocks)
    return out, (head, hidden, targets, of_blocks.lse)


def _backward(config: ModelConfig, saved: tuple, cotangents: TokenLosses) -> tuple:
    """A logit's gradient is its share of the softmax; in a loss less one if it is the target's."""
    head, hidden, targets, lse = saved
    weights = head.astype(hidden.dtype)

    def one_block(d_head: jax.Array, parts: tuple) -> tuple[jax.Array, jax.Array]:
        rows, ids, lse, d_losses, d_lse = parts
        logits, is_target = _logits(config, weights, rows, ids)
        softmax = jnp.exp(logits - lse[:, None])
        d_logits = (softmax - is_target) * d_losses[:, None] + softmax * d_lse[:, None]
        d_rows, more = product_gradients(rows, weights, d_logits)
        return d_head + more, d_rows.astype(rows.dtype)

    d_losses, d_lse, _ = map(_blocks_of, cotangents)
    parts = in_blocks(hidden, LOSS_BLOCK), _blocks_of(targets), lse, d_losses, d_lse
    d_head, d_hidden = lax.scan(one_block, jnp.zeros(head.shape, jnp.float32), parts)
    d_hidden = out_of_blocks(d_hidden, hidden.shape)
    if _is_cut(config, head):
        d_hidden = sum_over(d_hidden, "tp")
    return d_head.astype(head.dtype), d_hidden, None


token_losses.defvjp(_forward, _backward)


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
