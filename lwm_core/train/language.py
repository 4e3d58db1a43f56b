"""Training the transformer: the two-part loss of text and vision, and one donated step."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec

from lwm_core import weight_tree
from lwm_core.collectives import DATA_AXES, sum_over
from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError
from lwm_core.execution import Execution
from lwm_core.ring import zigzag
from lwm_core.train.loss import balance, weighted_loss
from lwm_core.train.optimizer import EVERYTHING, LanguageOptimizerConfig
from lwm_core.transformer import head_of, hidden_states
from lwm_core.types import Batch
from lwm_core.weight_tree import Params, flatten, nest, shardings, specs

Metrics = dict[str, jax.Array]
"""Float32 scalars by name."""
DEFAULTS = LanguageOptimizerConfig()
LANES = 128
"""Tokens that make a whole block for the kernels of TPUs, at least."""


class LanguageState(struct.PyTreeNode):
    """Weights after `step` updates, and the optimizer's moments of those that learn."""

    step: jax.Array
    params: Params
    moments: Any


def fresh_params(config: ModelConfig, seed: int, codebook: np.ndarray | None = None) -> Params:
    """Float32 weights to begin with.

    Given the image tokenizer's codebook, `[codes, code_dim]`, the codes are not strangers to each
    other at first: half of the variance of their embeddings is a random projection of it, so what
    is learned of one code holds for those that look alike.
    """
    params = weight_tree.init(config, jax.random.key(seed))
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
    params: Params,
    config: ModelConfig,
    batch: Batch,
    how: Execution,
    settings: LanguageOptimizerConfig = DEFAULTS,
) -> tuple[jax.Array, Metrics]:
    """Half the mean text loss plus half the mean vision loss, as in the original.

    Each mean is over the targets' weights; without vision targets (or text) it is the other alone.
    Of one device's arrays, inside `how.spread`: the loss is this device's share, to be
    differentiated, the metrics are those of all. What z_loss adds is in the loss only. Rows go
    forward in as many parts as the settings say, as those of a step do.
    """
    balanced, kinds = balance(config, batch, settings.average)
    one_part = partial(_weighted_sums, params, config, how, settings.z_loss)
    loss, sums = _summed(one_part, balanced, settings.accumulate)
    return loss / kinds, _metrics(config, batch, kinds, sums)


def _summed(one_part: Callable[[Batch], tuple], batch: Batch, parts: int) -> tuple:
    """What a function gives of so many parts of a device's rows, summed up one after another.

    Raises ConfigError where the parts don't divide the rows.
    """
    rows, length = batch.inputs.shape
    if rows % parts:
        raise ConfigError(f"accumulate is {parts}, which does not divide a device's {rows} rows")
    if parts == 1:
        return one_part(batch)
    cut = jax.tree.map(lambda x: x.reshape(parts, rows // parts, length), batch)
    first = jax.tree.map(lambda x: x[0], cut)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one_part, first))

    def add(sums: tuple, part: Batch) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, sums, one_part(part)), None

    return lax.scan(add, zeros, cut)[0]


def _weighted_sums(
    params: Params, config: ModelConfig, how: Execution, z_loss: float, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """The losses of a batch times its weights, summed up over one device's targets.

    Also, without z_loss, those of text and vision, and in how many targets the model is right.
    """
    hidden, _ = hidden_states(params, config, batch.tokens, how)
    head = head_of(params, config, how)
    loss, each = weighted_loss(config, z_loss, head, hidden, batch.targets, batch.weights)
    vision = batch.targets >= config.text_vocab
    sums = {}
    for name, mask in (("text", ~vision), ("vision", vision)):
        weights = batch.weights * mask
        sums[f"{name}_loss"] = (each.losses * weights).sum()
        sums[f"{name}_accuracy"] = (each.right * weights).sum()
    return loss, sums


def _metrics(config: ModelConfig, batch: Batch, kinds: jax.Array, sums: Metrics) -> Metrics:
    """The metrics of all devices, from the sums of one device's targets and its batch.

    `tokens` are the targets that count, `text_tokens` and `vision_tokens` those of each kind.
    """
    counted, vision = batch.weights > 0, batch.targets >= config.text_vocab
    chosen = {
        "tokens": counted,
        "text_tokens": counted & ~vision,
        "vision_tokens": counted & vision,
    }
    local = {**sums, **{name: mask.sum().astype(jnp.float32) for name, mask in chosen.items()}}
    together = sum_over(jnp.stack(list(local.values())), *DATA_AXES)  # one message for all
    whole = dict(zip(local, together, strict=True))
    return {"loss": (whole["text_loss"] + whole["vision_loss"]) / kinds, **whole}


def language_metrics(
    config: ModelConfig,
    how: Execution,
    params: Params,
    batch: Batch,
    settings: LanguageOptimizerConfig = DEFAULTS,
) -> Metrics:
    """What a model's losses on a batch are, with nothing learned from it.

    It goes forward in parts, as that of `language_step` does: memory is needed for one. Raises
    ConfigError as that does.
    """

    def local(params: Params, batch: Batch) -> Metrics:
        return language_loss(params, config, batch, how, settings)[1]

    cuts = specs(config, how), how.spec("rows", "sequence")
    return how.spread(local, cuts, PartitionSpec())(params, batch)


def language_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    how: Execution,
    state: LanguageState,
    batch: Batch,
    settings: LanguageOptimizerConfig = DEFAULTS,
) -> tuple[LanguageState, Metrics]:
    """One update; returns the next state and metrics. The mesh must divide the batch `[B, T]`.

    `optimizer` is one of `make_optimizer`: where it leaves out the step, weights and moments stay
    what they were. Raises ConfigError when there are no tensors of the names that are to learn, or
    when a device's rows can't be cut into as many parts as `settings` says.
    """
    cut = specs(config, how)
    cut_learning, cut_fixed = parted(cut, settings.learns)
    learning, fixed = parted(state.params, settings.learns)
    local = partial(_local_gradients, config, how, settings)
    run = how.spread(
        local,
        (cut_learning, cut_fixed, how.spec("rows", "sequence")),
        (cut_learning, PartitionSpec()),
    )
    gradients, metrics = run(learning, fixed, batch)
    if settings.name == "muon":
        gradients = jax.tree.map(partial(_dealt_out, how), gradients, cut_learning)
    updates, moments = optimizer.update(gradients, state.moments, learning)
    places = jax.tree.map(how.sharding, cut_learning)
    updates = lax.with_sharding_constraint(updates, places)
    moments = lax.with_sharding_constraint(
        moments, _with_their_weights(optimizer, how, moments, places)
    )
    params = joined(optax.apply_updates(learning, updates), fixed)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    metrics["learning_rate"] = moments.rate
    metrics["skipped"] = moments.skipped.astype(jnp.float32)
    return LanguageState(state.step + 1, params, moments), metrics


def _dealt_out(how: Execution, gradient: jax.Array, cut: PartitionSpec) -> jax.Array:
    """The gradient of a stack of matrices, so that each device of `dp` has those of some layers.

    They are orthogonalized where they are, and not everywhere anew.
    """
    if gradient.ndim < 3 or len(gradient) % how.mesh.shape["dp"]:
        return gradient
    return lax.with_sharding_constraint(gradient, how.sharding(PartitionSpec("dp", *cut[1:])))


def _local_gradients(
    config: ModelConfig,
    how: Execution,
    settings: LanguageOptimizerConfig,
    learning: Params,
    fixed: Params,
    batch: Batch,
) -> tuple[Params, Metrics]:
    """Gradients of what learns, and metrics, of one device's rows; summed up part by part."""
    balanced, kinds = balance(config, batch, settings.average)

    def loss(learning: Params, part: Batch) -> tuple[jax.Array, Metrics]:
        params = joined(learning, fixed)
        loss, sums = _weighted_sums(params, config, how, settings.z_loss, part)
        return loss / kinds, sums

    one_part = partial(jax.grad(loss, has_aux=True), learning)
    gradients, sums = _summed(one_part, balanced, settings.accumulate)
    return gradients, _metrics(config, batch, kinds, sums)


def parted(params: Params, patterns: tuple[str, ...]) -> tuple[Params, Params]:
    """What has a dotted name that one of the patterns matches (as in a shell), and the rest.

    Raises ConfigError for a pattern that matches nothing.
    """
    flat = flatten(params)
    for pattern in patterns:
        if not fnmatch.filter(flat, pattern):
            known = ", ".join(flat)
            raise ConfigError(f"learns: no tensor is named {pattern!r}; known are {known}")
    chosen = {name for pattern in patterns for name in fnmatch.filter(flat, pattern)}
    return (
        nest({name: leaf for name, leaf in flat.items() if name in chosen}),
        nest({name: leaf for name, leaf in flat.items() if name not in chosen}),
    )


def joined(learning: Params, fixed: Params) -> Params:
    """The inverse of `parted`."""
    return nest(flatten(learning) | flatten(fixed))


def abstract_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    how: Execution,
    learns: tuple[str, ...] = EVERYTHING,
) -> LanguageState:
    """Shapes, dtypes and places of a state, without making it: moments lie with their weights.

    What learns is float32; the rest, which has no moments, is kept in the dtype of the computation.
    """

    def fresh() -> LanguageState:
        learning, fixed = parted(fresh_params(config, 0), learns)
        fixed = jax.tree.map(lambda weight: weight.astype(how.dtype), fixed)
        return LanguageState(jnp.int32(0), joined(learning, fixed), optimizer.init(learning))

    shapes = jax.eval_shape(fresh)
    places = shardings(config, how)
    moments = _with_their_weights(optimizer, how, shapes.moments, parted(places, learns)[0])
    lies = shapes.replace(step=how.sharding(PartitionSpec()), params=places, moments=moments)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        lies,
    )


def _with_their_weights(
    optimizer: optax.GradientTransformation, how: Execution, moments: Any, places: Params
) -> Any:
    """Where moments lie whose weights have these places; what is of no weight is everywhere."""
    everywhere = how.sharding(PartitionSpec())
    return optax.tree.map_params(
        optimizer,
        lambda moment, place: moment if _is_masked(moment) else place,
        moments,
        places,
        transform_non_params=lambda _: everywhere,
        is_leaf=_is_masked,
    )


def _is_masked(moment: Any) -> bool:
    """Whether a part of an optimizer has no moments of a tensor, which is another's."""
    return isinstance(moment, optax.MaskedNode)


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
