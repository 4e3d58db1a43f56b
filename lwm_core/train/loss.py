"""The loss of each token, by blocks: logits of the whole vocabulary exist for a few tokens only."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lwm_core.collectives import sum_over
from lwm_core.config import ModelConfig
from lwm_core.costs import LOSS_BLOCK
from lwm_core.kernels.dense import MASKED
from lwm_core.layers import in_blocks, out_of_blocks, product, product_gradients
from lwm_core.types import Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_losses(
    config: ModelConfig, head: jax.Array, hidden: jax.Array, targets: Array
) -> jax.Array:
    """Negative log-likelihood of each target within its own modality, float32 `[B, T]`.

    A text target is predicted among the text ids, a vision target among the vision ids. `head` is
    `[V, D]`, or this device's part of it; `hidden` is `[B, T, D]`. Logits are made for LOSS_BLOCK
    tokens at a time, and again in the backward pass.
    """
    return _forward(config, head, hidden, targets)[0]


def _forward(
    config: ModelConfig, head: jax.Array, hidden: jax.Array, targets: Array
) -> tuple[jax.Array, tuple]:
    weights = head.astype(hidden.dtype)

    def one_block(parts: tuple) -> tuple[jax.Array, jax.Array]:
        logits, is_target = _logits(config, weights, *parts)
        lse = jax.nn.logsumexp(logits, axis=-1)
        found = jnp.where(is_target, logits, 0.0).sum(-1)
        if _is_cut(config, head):
            lse = jax.nn.logsumexp(lax.all_gather(lse, "tp"), axis=0)
            found = sum_over(found, "tp")
        return lse - found, lse

    losses, lse = lax.map(one_block, (in_blocks(hidden, LOSS_BLOCK), _blocks_of(targets)))
    return out_of_blocks(losses, targets.shape), (head, hidden, targets, lse)


def _backward(config: ModelConfig, saved: tuple, cotangent: jax.Array) -> tuple:
    """Each logit's gradient is its share of the softmax, less one for the target."""
    head, hidden, targets, lse = saved
    weights = head.astype(hidden.dtype)

    def one_block(d_head: jax.Array, parts: tuple) -> tuple[jax.Array, jax.Array]:
        rows, ids, lse, d_losses = parts
        logits, is_target = _logits(config, weights, rows, ids)
        d_logits = (jnp.exp(logits - lse[:, None]) - is_target) * d_losses[:, None]
        d_rows, more = product_gradients(rows, weights, d_logits)
        return d_head + more, d_rows.astype(rows.dtype)

    parts = in_blocks(hidden, LOSS_BLOCK), _blocks_of(targets), lse, _blocks_of(cotangent)
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
