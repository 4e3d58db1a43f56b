"""From any format that we read to a model directory, tensor by tensor.

Sources are model directories (ours, or a Llama of Hugging Face with a `tokenizer.model`) and models
as the original published them: streamed `params`, a pickled `vqgan` and `tokenizer.model`, side by
side. The original's files don't say heads, rotary base and context; those come from the card of
the model, or of the model that it is like.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lwm_core import checkpoint, registry, transformer, vqgan
from lwm_core.config import ModelConfig
from lwm_core.errors import FormatError, UsageError
from lwm_core.formats.lwm_jax import load_lwm_jax
from lwm_core.formats.vqgan_names import rename_lwm_vqgan
from lwm_core.formats.vqgan_pickle import load_lwm_vqgan
from lwm_core.load import STREAM, find_model
from lwm_core.types import Progress

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A model to convert: everything but the weights, and the weights one after another."""

    config: ModelConfig
    tensors: Iterator[tuple[str, np.ndarray]]
    dtype: str
    tokenizer: Path
    image: vqgan.VQGAN | None
    habits: checkpoint.Habits


def convert(
    src: str,
    dst: Path,
    *,
    like: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Write the model `src` (a name, a directory, or a `params` file) to the directory `dst`.

    `like` names a model, or is a model directory, that has the heads, rotary base and context of a
    file of the original. `dtype` is by default that of the source. `dst` comes to be whole or not
    at all. Raises ModelNotFound, UsageError when `dst` exists (and not `force`) or sizes are
    unknown, FormatError for damaged sources, OutputError when `dst` can't be written.
    """
    checkpoint.check_new(dst, force=force)
    path = registry.named_path(src)
    if path is None or not path.is_file():
        path = find_model(src)
    if path.is_file() or not (path / checkpoint.CONFIG).is_file():
        source = _original(src, path, like)
    else:
        source = _directory(path)
    LOG.info("%s in %s to %s in %s", path, source.dtype, dst, dtype or source.dtype)
    checkpoint.write_model(
        dst,
        source.config,
        _counted(source, on_progress),
        tokenizer=source.tokenizer,
        image=source.image,
        dtype=dtype or source.dtype,
        defaults=source.habits,
        force=force,
    )


def _counted(
    source: Source, on_progress: Callable[[Progress], None] | None
) -> Iterator[tuple[str, np.ndarray]]:
    total = len(transformer.parameters(source.config))
    for done, tensor in enumerate(source.tensors, start=1):
        yield tensor
        if on_progress:
            on_progress(Progress("converting", done, total, "tensors"))


def _directory(path: Path) -> Source:
    """A model directory."""
    config = checkpoint.read_config(path)
    return Source(
        config=config,
        tensors=checkpoint.read_weights(path, config),
        dtype=checkpoint.stored_dtype(path, config),
        tokenizer=_beside(path, checkpoint.TOKENIZER),
        image=checkpoint.read_vqgan(path),
        habits=checkpoint.read_habits(path),
    )


def _original(src: str, path: Path, like: str | None) -> Source:
    """A model as the original published it; `path` is its directory or its file of weights."""
    folder, stream = (path.parent, path) if path.is_file() else (path, path / STREAM)
    if not stream.is_file():
        raise FormatError(f"{path}: neither {checkpoint.CONFIG} nor {STREAM} is there")
    heads, rope_theta, max_length = _sizes(src, like)
    config, tensors = load_lwm_jax(
        stream, heads=heads, rope_theta=rope_theta, max_length=max_length
    )
    return Source(
        config=config,
        tensors=iter(tensors.items()),
        dtype=tensors["embed"].dtype.name,
        tokenizer=_beside(folder, checkpoint.TOKENIZER),
        image=_image(folder, config) if config.vision_vocab else None,
        habits={},
    )


def _sizes(src: str, like: str | None) -> tuple[int, float, int]:
    """Heads, rotary base and context of a model of the original."""
    path = registry.named_path(like) if like else None
    if path and path.is_dir():
        config = checkpoint.read_config(path)
        return config.heads, config.rope_theta, config.max_length
    name = like or Path(src).name
    card = registry.get(like) if like else registry.find(src) or registry.find(name)
    if card is None:
        raise UsageError(
            f"{src} does not say heads, rotary base and context: name a model that shares them, "
            "for example --like chat-1m"
        )
    return card.heads, card.rope_theta, card.context


def _image(folder: Path, config: ModelConfig) -> vqgan.VQGAN:
    """The original's image tokenizer, whose file does not say the size of the pictures."""
    image, weights = load_lwm_vqgan(_beside(folder, checkpoint.VQGAN))
    side = math.isqrt(config.frame_codes)
    image = dataclasses.replace(image, resolution=side * image.resolution // image.grid)
    return vqgan.from_tensors(image, rename_lwm_vqgan(image, weights))


def _beside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FormatError(f"{path}: missing; put it beside the weights, it comes with the model")
    return path
