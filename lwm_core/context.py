"""What a model has read, kept: in memory from one answer to the next, and in a file.

A file is a safetensors file: the ids, the keys and values of each layer `[K, N, H]` (in int8 with
their scales) in the order of the N tokens, and in its metadata which model read them. So it does
not depend on the mesh, and what only pads a cache is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lwm_core.atomic import free_bytes, replacing
from lwm_core.cache import cache_specs, each_layer, empty_cache
from lwm_core.config import Quantization
from lwm_core.costs import BYTES
from lwm_core.errors import ContextTooLong, FormatError, OutputError, UsageError
from lwm_core.execution import Execution
from lwm_core.identity import digest, identify
from lwm_core.tensor_files import SafetensorsFile, Shape, bytes_of, write_header
from lwm_core.types import KVCache, Numbers, Quantized
from lwm_core.weight_tree import is_split

if TYPE_CHECKING:
    from lwm_core.load import LoadedModel

KIND = "context of lwm"
LONGEST_NAME = 4096
"""Characters of a model's name, which may be a path, that a file can tell."""

Table = Mapping[str, tuple[Shape, np.dtype]]
"""Shapes and number formats of tensors by name."""


@dataclass
class Context:
    """What a model has read of one sequence: its ids, and the cache that holds them.

    Reading on changes it: the arrays of a cache are used up by the program that adds to them.
    """

    ids: list[int] = field(default_factory=list)
    cache: KVCache | None = None

    def shared_with(self, prompt: Sequence[int]) -> int:
        """How many ids of a prompt, from its first one, need not be read; never all of them."""
        if self.cache is None or self.cache.length.is_deleted():  # stopped while it was added to
            return 0
        longest = min(len(self.ids), len(prompt) - 1)
        same = np.equal(self.ids[:longest], prompt[:longest])
        return longest if same.all() else int(same.argmin())


def keep(cache: KVCache, known: int, ways: int) -> KVCache:
    """A cache that has forgotten all but the first `known` tokens.

    So many devices, which share its slots, have filled up their parts equally far afterwards, as a
    chunk that they share needs.
    """
    segments = jnp.where(cache.positions < known, cache.segments, 0)
    filled = np.flatnonzero(np.asarray(segments).any(axis=0))
    used = 1 + (filled % (segments.shape[1] // ways)).max(initial=-1)
    return cache._replace(segments=segments, length=jnp.int32(ways * used))


@partial(jax.jit, static_argnames=("slots", "how"))
def widen(cache: KVCache, slots: int, how: Execution) -> KVCache:
    """A cache with so many slots; every device of `sp` gets more at the end of its part."""
    more = slots // how.ways

    def longer(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, more - n if place == axis else 0) for place, n in enumerate(x.shape)]
        return jnp.pad(x, widths)

    def local(cache: KVCache) -> KVCache:
        slots_axis = 2 if isinstance(cache.keys, list) else 3
        keys, values = jax.tree.map(partial(longer, axis=slots_axis), (cache.keys, cache.values))
        positions, segments = jax.tree.map(partial(longer, axis=1), cache.places)
        return KVCache(keys, values, positions, segments, cache.length)

    specs = cache_specs(how, cache)
    return how.spread(local, (specs,), specs)(cache)


def check_space(path: Path, model: LoadedModel, tokens: int) -> None:
    """Raise OutputError where the disk has no room for a context of so many tokens."""
    table = _table(model, tokens).values()
    needed, free = sum(math.prod(shape) * one.itemsize for shape, one in table), free_bytes(path)
    if needed > free:
        raise OutputError(
            f"{path} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left; free "
            "some space, choose another disk, or give --cache int8"
        )


def save_context(path: Path, model: LoadedModel, context: Context) -> None:
    """Write what a model has read, whole or not at all, layer by layer. Raises OutputError."""
    if context.cache is None:
        raise ValueError("nothing was read yet that could be kept")
    table = _table(model, len(context.ids))
    ids = np.asarray(context.ids, np.int32)
    metadata = {"file": KIND, **identify(model), "tokens": digest(ids.tobytes())}
    tensors = _taken_out(context.cache, len(ids))
    with replacing(path) as temporary, temporary.open("wb") as file:
        write_header(file, table, metadata)
        file.write(ids.tobytes())
        for tensor in tensors:
            file.write(bytes_of(np.ascontiguousarray(tensor)))


def _table(model: LoadedModel, tokens: int) -> Table:
    """The tensors of a file, in their order."""
    config, numbers = model.config, np.dtype(model.cache_dtype)
    shape = (config.kv_heads, tokens, config.head_dim)
    table: dict[str, tuple[Shape, np.dtype]] = {"ids": ((tokens,), np.dtype(np.int32))}
    for layer in range(config.layers):
        for part in ("keys", "values"):
            table[f"layers.{layer}.{part}"] = shape, numbers
            if numbers == np.int8:
                scales = shape[:2], np.dtype(np.float32)
                table[f"layers.{layer}.{part}.scales"] = scales
    return table


def _taken_out(cache: KVCache, tokens: int) -> Iterator[np.ndarray]:
    """The keys and values of a cache of one row, `[K, N, H]` a layer, in the order of the table."""
    slots = np.flatnonzero(cache.segments[0])
    slots = slots[np.argsort(np.asarray(cache.positions[0])[slots])]
    if len(slots) != tokens:
        raise ValueError(f"the cache holds {len(slots)} tokens, and there are {tokens} ids")
    for layer in zip(each_layer(cache.keys), each_layer(cache.values), strict=True):
        for numbers in jax.tree.leaves(layer):
            yield np.asarray(numbers[0])[:, slots]


def describe_context(path: Path) -> Mapping[str, str]:
    """What a file says of the model that read it: its `name`, number formats and digests.

    The name chooses a model and is shown to people, so it can be no control characters. Raises
    UsageError when there is no such file, FormatError for one that is none of ours.
    """
    said = _opened(path).metadata
    formats = {
        "dtype": ("float32", "bfloat16"),
        "cache": BYTES,
        "quantize": ("", *get_args(Quantization)),
    }
    known = all(said.get(option) in choices for option, choices in formats.items())
    name = said.get("name", "")
    if said.get("file") != KIND or not known or not _is_name(name):
        raise _not_ours(path)
    return said


def _is_name(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()


def open_context(path: Path, model: LoadedModel) -> Context:
    """What `save_context` wrote, on the devices of a model, which need not be as many.

    Raises UsageError for a file of another model or of other number formats, ContextTooLong for
    one that leaves no room for an answer, and FormatError for one that is damaged or none of ours.
    """
    said = describe_context(path)
    _check_model(path, said, model)
    file = _opened(path)
    shape = file.shape("ids") if "ids" in file.names else ()
    tokens = shape[0] if len(shape) == 1 else 0
    table = _table(model, tokens)
    found = {name: (file.shape(name), file.dtype(name)) for name in file.names}
    if not tokens or found != {name: (shape, dtype.name) for name, (shape, dtype) in table.items()}:
        raise _not_ours(path)
    if tokens >= model.context:
        raise ContextTooLong(
            f"{path} holds {tokens} tokens, which leaves no room in the {model.context} of "
            f"{model.name}: give a longer --ctx"
        )
    ids = file.tensor("ids")
    if digest(ids.tobytes()) != said.get("tokens"):
        raise _not_ours(path)
    return Context(ids.tolist(), _put_in(file, model, tokens))


def _put_in(file: SafetensorsFile, model: LoadedModel, tokens: int) -> KVCache:
    """A cache that holds the tokens of a file, cut up as a model's mesh cuts it."""
    how, config = model.how, model.config
    slots = -(-tokens // how.ways) * how.ways
    split = is_split(model.params)
    shapes = jax.eval_shape(partial(empty_cache, config, 1, slots, model.cache_dtype, split=split))
    places = jax.tree.map(how.sharding, cache_specs(how, shapes))

    def stacked(part: str, *size: int) -> Any:  # on the host
        shape = (config.layers, 1, config.kv_heads, slots, *size)
        whole = np.zeros(shape, file.dtype(f"layers.0.{part}"))
        for layer in range(config.layers):
            whole[layer, 0, :, :tokens] = file.tensor(f"layers.{layer}.{part}")
        return whole

    def numbers(part: str) -> Numbers | list[Numbers]:
        values = stacked(part, config.head_dim)
        whole = Quantized(values, stacked(f"{part}.scales")) if values.dtype == np.int8 else values
        return jax.device_put(list(each_layer(whole)) if split else whole, places.keys)

    order = np.arange(slots, dtype=np.int32)[None]
    positions, segments = (
        jax.device_put(one, places.positions) for one in (order, (order < tokens).astype(np.int32))
    )
    return KVCache(numbers("keys"), numbers("values"), positions, segments, jnp.int32(slots))


def _check_model(path: Path, said: Mapping[str, str], model: LoadedModel) -> None:
    """Raise UsageError unless a file is of this model."""
    ours = identify(model)
    for option in ("quantize", "dtype", "cache"):  # the others' defaults follow from the first
        if said[option] != ours[option]:
            given = f"--{option} {said[option]}" if said[option] else f"--dtype {said['dtype']}"
            raise UsageError(
                f"{path} was read with {given}, not as {model.name} runs now: give that, "
                "or read it anew with --force"
            )
    if any(said.get(key) != ours[key] for key in ("config", "weights")):
        raise UsageError(
            f"{path} was read by {said['name']!a:.80}, whose weights are not those of "
            f"{model.name}: name that with -m, or read it anew with --force"
        )


def _opened(path: Path) -> SafetensorsFile:
    if not path.exists():
        raise UsageError(f"{path} is not there; save a context first")
    if not path.is_file():
        raise UsageError(f"{path} is no file; name another with --context")
    try:
        return SafetensorsFile(path)
    except FormatError as error:
        raise _not_ours(path) from error


def _not_ours(path: Path) -> FormatError:
    return FormatError(
        f"{path} is not whole, or no {KIND}; name another file, or overwrite it with --force"
    )
