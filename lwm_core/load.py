"""From a name or a path to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lwm_core import backend, checkpoint, transformer
from lwm_core.attention import check_implementation
from lwm_core.chat_templates import LWM, ChatStyle
from lwm_core.config import ModelConfig
from lwm_core.errors import FormatError, TextOnly
from lwm_core.execution import Execution
from lwm_core.mesh import device_line, make_mesh, missed_gpu
from lwm_core.source import Source, open_source
from lwm_core.tokens import FrameLayout
from lwm_core.types import Progress
from lwm_core.vocabulary import AnyTokenizer
from lwm_core.vqgan import VQGAN
from lwm_core.weights import read_stacked

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: what every kind of generation takes.

    `defaults` are its habits of sampling by task (chat, see, draw, film), `style` is the wording of
    its conversations, `assumed` says, a line each, what its files did not say.
    """

    name: str
    config: ModelConfig
    params: transformer.Params
    tokenizer: AnyTokenizer
    vqgan: VQGAN | None
    how: Execution
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
    def hint(self) -> str | None:
        """A line about a GPU that is there and not used, or None."""
        return missed_gpu(self.how.mesh)


def load_model(
    name: str,
    *,
    dtype: str | None = None,
    mesh: str = "auto",
    attention: str = "auto",
    sees: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> LoadedModel:
    """Load a model by name or path, tensor by tensor, each to its place on the mesh.

    `dtype` is that of computation and of the weights in memory: float32 or bfloat16; by default
    bfloat16 on an accelerator and float32 on a CPU. With `sees` it must be one that sees.
    Raises ModelNotFound, FormatError, ConfigError, TextOnly, and UsageError for an unknown way of
    attention.
    """
    backend.prepare()
    check_implementation(attention)
    source = open_source(name)
    if sees and source.image is None:
        raise TextOnly(name)
    _check_fit(name, source)
    device_mesh = make_mesh(mesh)
    chosen = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    numpy_dtype = checkpoint.numpy_dtype(chosen)
    axes = ",".join(f"{axis}={size}" for axis, size in device_mesh.shape.items())
    LOG.info("%s in %s, on %s as %s", source.path, chosen, device_line(device_mesh), axes)
    how = Execution(device_mesh, jnp.dtype(numpy_dtype), attention)
    places = transformer.flatten(transformer.shardings(source.config, how))

    def report(done: int, total: int) -> None:
        if on_progress:
            on_progress(Progress("loading", done, total, "tensors"))

    tensors = {
        tensor: jax.device_put(weight, places[tensor])
        for tensor, weight in read_stacked(source.weights, source.config, numpy_dtype, report)
    }
    return LoadedModel(
        name=name,
        config=source.config,
        params=transformer.nest(tensors),
        tokenizer=source.tokenizer,
        vqgan=source.image,
        how=how,
        defaults=source.habits,
        style=source.style,
        assumed=source.assumed,
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
