"""The model directory: `config.json`, safetensors with Hugging Face names, tokenizer, VQGAN.

It is read and written one tensor at a time. Writing goes to a directory beside the target that
takes its name when it is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lwm_core import transformer, vqgan
from lwm_core.config import ModelConfig, VQConfig
from lwm_core.errors import FormatError, OutputError, UsageError
from lwm_core.tensor_files import TensorFiles, read_json, write_json, write_tensors

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
VQGAN = "vqgan"

Habits = Mapping[str, Mapping[str, Any]]
"""How a model likes to be sampled, by task: `{"draw": {"guidance": 3.0}}`."""

_OURS = re.compile(
    r"config\.json|tokenizer\.model|vqgan|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
"""What a model directory consists of: anything else is somebody's, and never overwritten."""

_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def read_config(directory: Path) -> ModelConfig:
    """The sizes of the model in a directory. Raises FormatError, ConfigError."""
    return ModelConfig.from_json(read_json(directory / CONFIG))


def read_habits(directory: Path) -> Habits:
    """The habits of sampling that a model directory carries. Raises FormatError."""
    habits = read_json(directory / CONFIG).get("lwm", {}).get("defaults", {})
    if not isinstance(habits, dict) or not all(isinstance(one, dict) for one in habits.values()):
        raise FormatError(f"{directory / CONFIG}: lwm.defaults is no table of tables")
    return habits


def stored_dtype(directory: Path, config: ModelConfig) -> str:
    """The number format of the weights in a directory; the first one tells for all.

    Raises FormatError.
    """
    _, first = next(read_weights(directory, config))
    return first.dtype.name


def read_weights(
    directory: Path, config: ModelConfig, on_tensor: Callable[[int, int], None] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters by dotted name as they are stored, layers stacked, one after another.

    `on_tensor(done, total)` is called after each. Raises FormatError for damaged weights.
    """
    files = TensorFiles(directory)
    table = transformer.parameters(config)
    for done, (name, parameter) in enumerate(table.items(), start=1):
        if parameter.stacked:
            yield name, _stacked(files, parameter)
        else:
            yield name, files.read(parameter.hf_name, parameter.shape)
        if on_tensor:
            on_tensor(done, len(table))


def _stacked(files: TensorFiles, parameter: transformer.Parameter) -> np.ndarray:
    """One tensor of all layers `[L, ...]`, filled layer by layer."""
    layers, *shape = parameter.shape
    parts = (files.read(parameter.hf_name.format(layer=n), tuple(shape)) for n in range(layers))
    first = next(parts)
    stack = np.empty(parameter.shape, first.dtype)
    stack[0] = first
    for layer, part in enumerate(parts, start=1):
        stack[layer] = part
    return stack


def read_image_config(folder: Path) -> VQConfig:
    """The sizes of the image tokenizer in a folder. Raises FormatError, ConfigError."""
    return VQConfig.from_json(read_json(folder / CONFIG))


def read_vqgan(directory: Path) -> vqgan.VQGAN | None:
    """The image tokenizer of a model directory, or None when it has none.

    Raises FormatError, ConfigError.
    """
    folder = directory / VQGAN
    if not folder.is_dir():
        return None
    config = read_image_config(folder)
    files = TensorFiles(folder)
    shapes = vqgan.shapes(config)
    tensors = {name: files.read(name, shape) for name, shape in shapes.items()}
    return vqgan.from_tensors(config, {k: v.astype(np.float32) for k, v in tensors.items()})


def write_model(
    directory: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    tokenizer: Path,
    image: vqgan.VQGAN | None = None,
    dtype: str = "float32",
    defaults: Habits | None = None,
    force: bool = False,
) -> None:
    """Write a model directory; `tensors` are parameters by dotted name, cast to `dtype`.

    `defaults` are this model's habits of sampling, by task. Raises UsageError when the directory
    exists (and not `force`) or `dtype` is unknown, and OutputError when it can't be written.
    """
    table = transformer.parameters(config)
    shapes = {
        name: shape for parameter in table.values() for name, shape in _stored_shapes(parameter)
    }
    number = numpy_dtype(dtype)
    with new_directory(directory, force=force) as folder:
        write_tensors(folder, shapes, number, _unstacked(table, tensors))
        values = {**config.to_json(), "torch_dtype": dtype}
        if defaults:
            values["lwm"]["defaults"] = defaults
        write_json(folder / CONFIG, values)
        shutil.copyfile(tokenizer, folder / TOKENIZER)
        if image is not None:
            write_vqgan(folder / VQGAN, image)


def _stored_shapes(parameter: transformer.Parameter) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hugging Face's names and the shapes of one parameter: one for each layer."""
    if not parameter.stacked:
        yield parameter.hf_name, parameter.shape
        return
    layers, *shape = parameter.shape
    for layer in range(layers):
        yield parameter.hf_name.format(layer=layer), tuple(shape)


def _unstacked(
    table: Mapping[str, transformer.Parameter], tensors: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors under Hugging Face's names, layer by layer."""
    for name, tensor in tensors:
        parts = tensor if table[name].stacked else [tensor]
        for (stored, _), part in zip(_stored_shapes(table[name]), parts, strict=True):
            yield stored, part


def write_vqgan(folder: Path, image: vqgan.VQGAN) -> None:
    """Write an image tokenizer into a new folder: its configuration and float32 weights."""
    folder.mkdir()
    tensors = vqgan.to_tensors(image)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(folder, shapes, np.dtype(np.float32), tensors.items())
    write_json(folder / CONFIG, image.config.to_json())


def numpy_dtype(name: str) -> np.dtype:
    """`float32`, `bfloat16` or `float16` as numpy's. Raises UsageError for another name."""
    if name not in _DTYPES:
        raise UsageError(f"dtype {name!r} is unknown; choose one of {', '.join(_DTYPES)}")
    return np.dtype(_DTYPES[name])


@contextmanager
def new_directory(directory: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder that becomes `directory` when the block ends well, and else vanishes.

    With `force` it takes the place of an older model, never of anything else (`check_new`);
    stopped at any time, it leaves the one or the other.
    """
    check_new(directory, force=force)
    holder: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        new, old = holder / "new", holder / "old"
        new.mkdir()
        yield new
        if directory.exists():
            os.replace(directory, old)
        os.replace(new, directory)
    except OSError as error:
        raise OutputError(f"{directory}: can't be written: {error.strerror or error}") from error
    finally:
        if holder is not None:
            if not directory.exists() and old.exists():  # stopped between the two
                os.replace(old, directory)
            shutil.rmtree(holder, ignore_errors=True)


def check_new(directory: Path, *, force: bool) -> None:
    """Raise UsageError unless a model may be written to `directory`."""
    if not directory.exists():
        return
    if not force:
        raise UsageError(f"{directory} exists; choose another name or overwrite it with --force")
    if not directory.is_dir():
        raise UsageError(f"{directory} is a file; choose another name")
    for entry in directory.iterdir():
        if not _OURS.fullmatch(entry.name):
            raise UsageError(
                f"{directory} holds {entry.name}, which is no part of a model; choose another name"
            )
