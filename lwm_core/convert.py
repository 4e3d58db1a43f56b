"""From any format that we read to any that we write, one layer of one tensor at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from lwm_core import checkpoint, transformer, vqgan, weight_tree
from lwm_core.atomic import free_bytes
from lwm_core.config import OriginalSizes
from lwm_core.errors import OutputError, UsageError
from lwm_core.execution import Execution
from lwm_core.formats.hf_tokenizer import write_fast_tokenizer
from lwm_core.formats.lwm_jax import stored_shapes
from lwm_core.formats.lwm_jax_writer import write_streaming, write_vqgan_pickle
from lwm_core.mesh import make_mesh
from lwm_core.parameters import stored
from lwm_core.source import ORIGINAL_IMAGE, STREAMS, Source, open_source
from lwm_core.tensor_files import write_json
from lwm_core.tokenizer import Tokenizer
from lwm_core.types import Progress, Tokens
from lwm_core.weights import read_stacked

LOG = logging.getLogger(__name__)

Format = Literal["lwm", "hf", "lwm-jax"]
"""A model directory; one with a tokenizer for transformers too; the files of the original."""

TRIED_TOKENS = 32
TOLERANCE = 1e-4
"""How much logits may differ, in parts of their spread."""


@dataclass(frozen=True)
class Plan:
    """What a conversion would write, and what it would take as given; `bytes` are its weights."""

    source: Path
    target: Path
    format: Format
    dtype: str
    tensors: int
    parameters: int
    bytes: int
    image_bytes: int
    assumed: tuple[str, ...]


def plan(
    source: Source,
    dst: Path,
    *,
    to: Format = "lwm",
    dtype: str | None = None,
    force: bool = False,
) -> Plan:
    """What `convert` would do; raises what it would raise before it writes."""
    if to not in get_args(Format):
        raise UsageError(f"format {to!r} is unknown; choose one of {', '.join(get_args(Format))}")
    if source.config.quantized and to != "lwm":
        raise UsageError(
            f"--to {to} holds no {source.config.quantized}: leave out the one or other"
        )
    checkpoint.check_new(dst, force=force)
    number = checkpoint.numpy_dtype(dtype or source.weights.dtype)
    if to == "lwm-jax":
        _check_original(source)
        tensors = [(shape, number.name) for shape in stored_shapes(source.config).values()]
    else:
        table = stored(source.config)
        tensors = list(checkpoint.stored_tensors(table, number.name).values())
    image = vqgan.shapes(source.image.config) if source.image else {}
    planned = Plan(
        source=source.path,
        target=dst,
        format=to,
        dtype=source.config.quantized or number.name,
        tensors=len(tensors),
        parameters=weight_tree.count_parameters(replace(source.config, quantized=None)),
        bytes=sum(math.prod(shape) * np.dtype(number).itemsize for shape, number in tensors),
        image_bytes=4 * sum(map(math.prod, image.values())),
        assumed=source.assumed,
    )
    _check_space(dst, planned.bytes + planned.image_bytes)
    return planned


def convert(
    source: Source,
    dst: Path,
    *,
    to: Format = "lwm",
    dtype: str | None = None,
    force: bool = False,
    verify: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """Write an opened model to the directory `dst`; returns what was done.

    `dtype` is by default that of the source. `dst` comes to be whole or not at all; what was
    written is read again and compared, with `verify` also its logits with those of the source.
    Raises UsageError when `dst` exists (and not `force`) or the format can't hold the model,
    FormatError for damaged sources, OutputError when `dst` can't be written, has no room or reads
    or computes otherwise.
    """
    planned = plan(source, dst, to=to, dtype=dtype, force=force)
    LOG.info("%s to %s as %s in %s", source.path, dst, to, planned.dtype)
    number = dtype or source.weights.dtype
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(Progress("converting", done, planned.bytes, "bytes"))

    with checkpoint.new_directory(dst, force=force) as folder:
        if to == "lwm-jax":
            _write_original(folder, source, number, report)
        else:
            checkpoint.fill_directory(
                folder,
                source.config,
                source.weights,
                tokenizer=source.tokenizer,
                image=source.image,
                dtype=number,
                defaults=source.habits,
                template=source.template,
                on_bytes=report,
            )
        if to == "hf" and isinstance(source.tokenizer, Tokenizer):  # the other kind is one already
            write_fast_tokenizer(folder, source.tokenizer, source.config)
        if verify:
            _verify(source, folder)
    return planned


def _check_original(source: Source) -> None:
    """Raise UsageError for a model that the original's files can't hold."""
    if not isinstance(source.tokenizer, Tokenizer):
        raise UsageError("the original's format has a SentencePiece vocabulary only; try --to hf")
    if source.config.vision_vocab and source.image is None:
        raise UsageError(f"{source.path}: the original's format needs the image tokenizer too")


def _write_original(
    folder: Path, source: Source, dtype: str, on_bytes: Callable[[int], None]
) -> None:
    """The files of the original, and its sizes, which it does not write itself."""
    number = checkpoint.numpy_dtype(dtype)
    write_streaming(folder / STREAMS[0], source.config, source.weights, number, on_bytes)
    groups = source.image.config.groups if source.image else 32
    write_json(folder / checkpoint.CONFIG, OriginalSizes.of(source.config, groups).to_json())
    source.tokenizer.save(folder)
    if source.image is not None:
        write_vqgan_pickle(folder / ORIGINAL_IMAGE, source.image)


def _verify(source: Source, folder: Path) -> None:
    """Raise OutputError unless a conversion computes what its source does.

    Both compute in float32 on the same ids, with weights rounded to the conversion's number format,
    and are in memory one after the other.
    """
    made = open_source(str(folder))
    rng = np.random.default_rng(0)
    ids = rng.integers(source.config.vocab, size=(1, TRIED_TOKENS), dtype=np.int32)
    rounded = checkpoint.numpy_dtype(made.weights.dtype)
    expected, found = (logits(one, ids, rounded) for one in (source, made))
    difference = float(np.abs(found - expected).max() / expected.std())
    if not difference <= TOLERANCE:  # nor NaN
        raise OutputError(
            f"the logits differ from the source's by {difference:.3g} of their spread"
        )


def logits(source: Source, ids: np.ndarray, rounded: np.dtype | None = None) -> np.ndarray:
    """Logits, float32 `[B, T, V]`, of ids int32 `[B, T]`, computed in float32.

    The weights are rounded to a number format first, or taken as they are stored.
    """
    tensors = read_stacked(source.weights, source.config, rounded)
    params = weight_tree.nest(
        {
            name: jnp.asarray(tensor, None if tensor.dtype == np.int8 else jnp.float32)
            for name, tensor in tensors
        }
    )
    tokens = Tokens(ids, np.arange(ids.shape[1], dtype=np.int32)[None], np.ones_like(ids))
    here = Execution(make_mesh())
    return np.asarray(transformer.forward(params, source.config, tokens, here))


def _check_space(dst: Path, needed: int) -> None:
    free = free_bytes(dst)
    if needed > free:
        raise OutputError(
            f"{dst} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left; "
            "free some space, or choose another disk"
        )
