"""From a name or a path to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lwm_core import backend, checkpoint, download, registry, transformer
from lwm_core.attention import check_implementation
from lwm_core.config import ModelConfig
from lwm_core.errors import FormatError, ModelNotFound, TextOnly
from lwm_core.mesh import device_line, make_mesh, missed_gpu, shardings
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import FrameLayout
from lwm_core.types import Progress
from lwm_core.vqgan import VQGAN

LOG = logging.getLogger(__name__)

STREAM = "params"
"""What the original calls its file of weights."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: what every kind of generation takes.

    `defaults` are its habits of sampling by task (chat, see, draw, film).
    """

    name: str
    config: ModelConfig
    params: transformer.Params
    tokenizer: Tokenizer
    vqgan: VQGAN | None
    mesh: Mesh
    dtype: jnp.dtype
    attention: str
    defaults: checkpoint.Habits

    @property
    def layout(self) -> FrameLayout:
        """How codes become tokens."""
        return FrameLayout.of(self.config)

    @property
    def device(self) -> str:
        """What it runs on, in words."""
        return device_line(self.mesh)

    @property
    def hint(self) -> str | None:
        """A line about a GPU that is there and not used, or None."""
        return missed_gpu(self.mesh)


def find_model(name: str) -> Path:
    """The directory of a model: the embedded one, a path, or one in the hub's cache.

    Raises ModelNotFound with the nearest names, or with what to type to fetch it.
    """
    path = registry.named_path(name)
    if path and path.is_dir():
        return path
    if path and path.is_file():
        raise ModelNotFound(f"{name} is a file, no model directory; `lwm convert` makes one of it")
    card = registry.find(name)
    if local := download.local_path(card or name):
        return local
    wanted = name if card is None and download.is_repository(name) else registry.get(name).name
    raise ModelNotFound(f"{wanted} is not here yet; fetch it with: lwm download {wanted}")


def picture_size(name: str) -> int:
    """Side in pixels of the pictures that a model sees, from its configuration alone.

    Raises ModelNotFound, FormatError, ConfigError, TextOnly.
    """
    folder = find_model(name) / checkpoint.VQGAN
    if not folder.is_dir():
        raise TextOnly(name)
    return checkpoint.read_image_config(folder).resolution


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
    directory = find_model(name)
    if (directory / STREAM).is_file() and not (directory / checkpoint.CONFIG).is_file():
        raise FormatError(f"{name} is in the original's format: `lwm convert {name} DIR` first")
    if sees and not (directory / checkpoint.VQGAN).is_dir():
        raise TextOnly(name)
    config = checkpoint.read_config(directory)
    tokenizer = Tokenizer.load(directory / checkpoint.TOKENIZER)
    image = checkpoint.read_vqgan(directory)
    if tokenizer.vocab_size > config.text_vocab:
        raise FormatError(
            f"{name}: {checkpoint.TOKENIZER} has {tokenizer.vocab_size} pieces, the model only "
            f"{config.text_vocab} text ids; fetch or convert it again"
        )
    if image and (reason := config.misfit(image.config)):
        raise FormatError(f"{name}: its {checkpoint.VQGAN}/ is another model's: {reason}")
    device_mesh = make_mesh(mesh)
    chosen = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    numpy_dtype = checkpoint.numpy_dtype(chosen)
    axes = ",".join(f"{axis}={size}" for axis, size in device_mesh.shape.items())
    LOG.info("%s in %s, on %s as %s", directory, chosen, device_line(device_mesh), axes)
    places = transformer.flatten(shardings(config, device_mesh))

    def report(done: int, total: int) -> None:
        if on_progress:
            on_progress(Progress("loading", done, total, "tensors"))

    tensors = {
        tensor: jax.device_put(weight.astype(numpy_dtype), places[tensor])
        for tensor, weight in checkpoint.read_weights(directory, config, report)
    }
    return LoadedModel(
        name=name,
        config=config,
        params=transformer.nest(tensors),
        tokenizer=tokenizer,
        vqgan=image,
        mesh=device_mesh,
        dtype=jnp.dtype(numpy_dtype),
        attention=attention,
        defaults=checkpoint.read_habits(directory),
    )
