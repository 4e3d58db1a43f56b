"""The tree of a transformer's weights: made, cut over a mesh, and taken apart for writing.

Weights of the layers are stacked `[L, ...]`; on a CPU a model that only writes has them one by one
(`split`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lwm_core import distributed
from lwm_core.config import ModelConfig
from lwm_core.execution import Execution
from lwm_core.parameters import SCALES, Parameter, parameters

Params = dict[str, Any]

JOINED = {"wqkv": ("wq", "wk", "wv"), "w_gate_up": ("w_gate", "w_up")}
"""Matrices of one input that layers which are split have as one: memory is read in longer runs."""


def nest(flat: dict[str, Any]) -> Params:
    """Dotted names to the nested tree that the model takes."""
    tree: Params = {}
    for name, value in flat.items():
        *outer, last = name.split(".")
        branch = tree
        for key in outer:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return tree


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """The inverse of `nest`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 weights of a whole model."""
    return draw(parameters(config), key)


def draw(table: Mapping[str, Parameter], key: jax.Array) -> Params:
    """Fresh float32 weights of a table: normal with each tensor's spread, norms at one."""
    keys = jax.random.split(key, len(table))
    return nest(
        {
            name: jnp.ones(p.shape)
            if p.spread is None
            else p.spread * jax.random.normal(one, p.shape)
            for (name, p), one in zip(table.items(), keys, strict=True)
        }
    )


def count_parameters(config: ModelConfig) -> int:
    """Numbers in all tensors together."""
    return sum(math.prod(p.shape) for p in parameters(config).values())


def specs(config: ModelConfig, how: Execution, *, is_split: bool = False) -> Params:
    """How each weight is cut over the mesh: a tree of PartitionSpec like that of the parameters.

    The embedding dimension stays whole where the mesh does not divide it.
    """
    table = parameters(config).items()
    cut = nest({name: how.spec(*p.axes, shape=p.shape) for name, p in table})
    if is_split:
        cut["layers"] = [joined(of_one_layer(cut["layers"]), how, itemgetter(0))] * config.layers
    return cut


def of_one_layer(stacks: dict[str, PartitionSpec]) -> dict[str, PartitionSpec]:
    """How the weights of one layer are cut, whose stacks are cut so."""
    return {name: PartitionSpec(*spec[1:]) for name, spec in stacks.items()}


def shardings(config: ModelConfig, how: Execution, *, is_split: bool = False) -> Params:
    """Where each weight lies: a tree of NamedSharding like that of the parameters."""
    return jax.tree.map(how.sharding, specs(config, how, is_split=is_split))


def split(params: Params, how: Execution) -> Params:
    """The weights with a list of layers, each with arrays of its own, in place of stacks.

    XLA's CPU backend copies what it takes out of a stack, and a written token reads all weights.
    """
    stacks = params["layers"]
    count = len(stacks["attention_norm"])
    layers = [{name: stack[layer] for name, stack in stacks.items()} for layer in range(count)]
    return {**params, "layers": [joined(layer, how) for layer in layers]}


def joined(layer: Params, how: Execution, join: Callable[[list], Any] = jnp.concatenate) -> Params:
    """A split layer whose matrices of one input are one: all that it has, and no tp shares out.

    It gives up the parts one after the other, so that little is there twice. Matrices with adapters
    stay as they are.
    """
    if how.mesh.shape["tp"] > 1:
        return layer
    for whole, parts in JOINED.items():
        adapted = any(f"{part}_a" in layer for part in parts)
        for kind in ("", SCALES):
            if not adapted and all(part + kind in layer for part in parts):
                layer[whole + kind] = join([layer.pop(part + kind) for part in parts])
    return layer


def is_split(params: Params) -> bool:
    """Whether the weights of layers are in a list."""
    return isinstance(params["layers"], list)


def abstract_params(config: ModelConfig, how: Execution) -> Params:
    """Shapes and places of the weights, in the dtype of the computation or their own."""
    numbers = {name: p.dtype or how.dtype for name, p in parameters(config).items()}
    return jax.tree.map(
        lambda shape, number, place: jax.ShapeDtypeStruct(shape.shape, number, sharding=place),
        jax.eval_shape(partial(init, config), jax.random.key(0)),
        nest(numbers),
        shardings(config, how),
    )


def to_numpy(params: Params) -> dict[str, np.ndarray]:
    """All weights on the host, by dotted name: of several processes on that of the first.

    The others, which must ask too, get none. They are gathered layer by layer.
    """
    gathered = (
        (name, distributed.gather(value, stacked=name.startswith("layers.")))
        for name, value in flatten(params).items()
    )
    return {name: value for name, value in gathered if value is not None}
