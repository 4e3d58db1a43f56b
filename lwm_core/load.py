"""From a name or a path to a model that is ready to run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lwm_core import backend, checkpoint, costs, weight_tree
from lwm_core.attention import check_implementation
from lwm_core.chat_templates import LWM, ChatStyle
from lwm_core.config import ModelConfig, Quantization
from lwm_core.costs import CacheDtype, Dtype, Work
from lwm_core.distributed import agree, put
from lwm_core.errors import DoesNotFit, FormatError, TextOnly, UsageError
from lwm_core.execution import Execution
from lwm_core.hardware import GIB
from lwm_core.memory import free_memory
from lwm_core.mesh import device_line, missed_gpu
from lwm_core.number_formats import usual_cache, usual_dtype, usual_rounding
from lwm_core.plan import Plan, longest_context, room
from lwm_core.presets import plan_here
from lwm_core.source import Source, open_source, quantized
from lwm_core.tokens import FrameLayout
from lwm_core.types import Progress
from lwm_core.vocabulary import AnyTokenizer
from lwm_core.vqgan import VQGAN
from lwm_core.weights import read_stacked

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: what every kind of generation takes.

    It holds `context` tokens, their keys and values as numbers of `cache_dtype`. `defaults` are its
    habits of sampling by task (chat, see, draw, film), `style` is the wording of its conversations,
    `assumed` says, a line each, what its files did not say.
    """

    name: str
    config: ModelConfig
    params: weight_tree.Params
    tokenizer: AnyTokenizer
    vqgan: VQGAN | None
    how: Execution
    context: int
    cache_dtype: jnp.dtype
    defaults: checkpoint.Habits
    style: ChatStyle = LWM
    assumed: tuple[str, ...] = ()

    @property
    def layout(self) -> FrameLayout:
        """How codes become tokens."""
        return FrameLayout.of(self.config)

    @property
    def device(self) -> str:
        """What it runs on, in words."""
        return device_line(self.how.mesh)

    @property
    def numbers(self) -> str:
        """What its weights are."""
        return self.config.quantized or self.how.dtype.name

    @property
    def hint(self) -> str | None:
        """A line about a GPU that is there and not used, or None."""
        return missed_gpu(self.how.mesh)

    def reading(self, tokens: int) -> Work:
        """What it is to read a row of so many tokens, for `costs` to count."""
        dtype, cache = cast(Dtype, self.how.dtype.name), cast(CacheDtype, self.cache_dtype.name)
        return Work(self.config, "prefill", tokens, dtype=dtype, cache_dtype=cache)


def load_model(
    name: str,
    *,
    dtype: str | None = None,
    mesh: str = "auto",
    attention: str = "auto",
    cache: str | None = None,
    quantize: Quantization | None = None,
    context: int | None = None,
    sees: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> LoadedModel:
    """Load a model by name or path, tensor by tensor, each to its place on the mesh.

    `dtype` is that of computation and of the weights in memory: float32 or bfloat16; by default
    bfloat16, but on a CPU float32 unless weights are rounded and it has instructions for bfloat16.
    With `quantize` those of matrices are rounded to that; on a CPU, if no `dtype` is given, to what
    the model says. `cache` is that of keys and values: float32, bfloat16 or int8; by default int8
    where the weights are rounded, and otherwise as `dtype`. It is to hold `context` tokens, by
    default as many as it was made for. With `sees` it must be one that sees.
    Raises ModelNotFound, FormatError, ConfigError, TextOnly, UsageError for an unknown way of
    attention, and DoesNotFit when memory can't hold such a context.
    """
    backend.prepare()
    check_implementation(attention)
    if cache not in (None, *costs.BYTES):
        raise UsageError(f"cache {cache!r} is unknown; choose one of {', '.join(costs.BYTES)}")
    source, platform = open_source(name), jax.default_backend()
    usual = usual_rounding(source.config, source.rounding, platform, dtype)
    source = quantized(source, quantize or usual)
    if sees and source.image is None:
        raise TextOnly(name)
    _check_fit(name, source)
    chosen = dtype or usual_dtype(source.config, platform)
    numpy_dtype = checkpoint.numpy_dtype(chosen)
    cache = cache or usual_cache(source.config, cast(Dtype, chosen))
    work = Work(
        source.config,
        # What a context is asked for is to be read; without, the model will mostly write.
        "prefill" if context else "decode",
        context or source.config.max_length,
        dtype=cast(Dtype, chosen),
        cache_dtype=cast(CacheDtype, cache),
    )
    made, device_mesh = plan_here(mesh, work)
    numbers = source.config.quantized or chosen
    LOG.info("%s in %s, on %s as %s", source.path, numbers, device_line(device_mesh), made.mesh)
    how = Execution(device_mesh, jnp.dtype(numpy_dtype), attention)
    if context:
        _check_memory(name, device_mesh.local_devices, made)

    def report(done: int, total: int) -> None:
        if on_progress:
            on_progress(Progress("loading", done, total, "tensors"))

    tensors = read_stacked(source.weights, source.config, numpy_dtype, report)
    return LoadedModel(
        name=name,
        config=source.config,
        params=placed(tensors, source.config, how),
        tokenizer=source.tokenizer,
        vqgan=source.image,
        how=how,
        context=context or source.config.max_length,
        cache_dtype=jnp.dtype(cache),
        defaults=source.habits,
        style=source.style,
        assumed=source.assumed,
    )


def placed(
    tensors: Iterable[tuple[str, np.ndarray]], config: ModelConfig, how: Execution
) -> weight_tree.Params:
    """The weights where the mesh has them, each put there as it comes; layers split on a CPU."""
    cut = weight_tree.flatten(weight_tree.specs(config, how))
    if not how.splits_layers:
        return weight_tree.nest(
            {name: put(weight, how.sharding(cut[name])) for name, weight in tensors}
        )
    params: weight_tree.Params = {}
    layers: list[weight_tree.Params] = [{} for _ in range(config.layers)]
    for name, weight in tensors:
        if not name.startswith("layers."):
            params[name] = put(weight, how.sharding(cut[name]))
            continue
        place = how.sharding(PartitionSpec(*cut[name][1:]))
        for layer, one in zip(layers, weight, strict=True):
            layer[name.removeprefix("layers.")] = put(one, place)
            weight_tree.joined(layer, how)
    return params | {"layers": layers}


def _check_memory(name: str, devices: list[jax.Device], made: Plan) -> None:
    """Raise DoesNotFit unless the devices have room for a model and a context."""
    chip = dataclasses.replace(made.topology.chip, memory=agree(free_memory(devices)))
    topology = dataclasses.replace(made.topology, chip=chip)
    if made.memory.total <= room(topology):
        return
    longest = longest_context(made.work, topology, made.mesh)
    fits = f"a context of {longest:,} fits" if longest else "no context fits"
    options = {
        "--quantize int8": made.work.config.quantized,
        "--cache int8": made.work.cache_dtype == "int8",
    }
    smaller = " or ".join(option for option, is_taken in options.items() if not is_taken)
    more = f", and {smaller} holds more" if smaller else ""
    raise DoesNotFit(
        f"{name} with {made.work.context:,} tokens takes {made.memory.total / GIB:.1f} GiB on each "
        f"device, where {chip.memory / GIB:.1f} are free: {fits}{more}"
    )


def _check_fit(name: str, source: Source) -> None:
    """Raise FormatError unless the parts of a model belong together."""
    config, pieces = source.config, source.tokenizer.vocab_size
    if pieces > config.text_vocab:
        raise FormatError(
            f"{name}: its tokenizer has {pieces} pieces, the model only {config.text_vocab} text "
            "ids; fetch or convert it again"
        )
    if source.image and (reason := config.misfit(source.image.config)):
        raise FormatError(f"{name}: its image tokenizer is another model's: {reason}")
