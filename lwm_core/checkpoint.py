"""The model directory: `config.json`, safetensors with Hugging Face names, tokenizer, VQGAN.

It is read and written one tensor at a time. Writing goes to a directory beside the target that
takes its name when it is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lwm_core import chat_templates, vqgan
from lwm_core.config import ModelConfig, VQConfig
from lwm_core.errors import FormatError, OutputError, UsageError
from lwm_core.formats.torch_bin import TorchFiles
from lwm_core.parameters import Parameter, stored
from lwm_core.rounded import Rounded
from lwm_core.tensor_files import Shape, TensorFiles, read_json, write_json, write_tensors
from lwm_core.vocabulary import AnyTokenizer
from lwm_core.weights import Weights, layers_of

CONFIG = "config.json"
VQGAN = "vqgan"

Habits = Mapping[str, Mapping[str, Any]]
"""How a model likes to be sampled, by task: `{"draw": {"guidance": 3.0}}`."""

_OURS = re.compile(
    r"config\.json|tokenizer\.model|tokenizer\.json|tokenizer_config\.json|chat_template\.jinja|"
    r"vqgan|params|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|"
    r"adapter_config\.json|adapter_model\.safetensors"
)
"""What a model or an adapter consists of: anything else is somebody's, and never overwritten."""

_IMAGE_FILES = {CONFIG, "model.safetensors"}
_SURPLUS = re.compile(r"rotary_emb\.inv_freq$|^lm_head\.weight$")
"""Tensors that older exports, and models of tied tables, have besides those that count."""

_READ = ("float64", "float32", "float16", "bfloat16")
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


class StoredWeights:
    """The tensors of a table of parameters, in files of a directory by Hugging Face's names.

    Names and shapes are compared when it is made. Raises FormatError where they are not those of
    the table.
    """

    def __init__(
        self,
        directory: Path,
        files: TensorFiles | TorchFiles,
        table: Mapping[str, Parameter],
    ):
        self._files, self._table = files, table
        self._check(directory)

    @property
    def dtype(self) -> str:
        """The number format that loses nothing: that of all tensors, or float32 for a mixture.

        Those in 8 bits do not count.
        """
        expected = stored_tensors(self._table).items()
        found = {self._files.dtype(name) for name, (_, number) in expected if number is None}
        return found.pop() if len(found) == 1 and found <= _DTYPES.keys() else "float32"

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter, or one layer of a stacked one. Raises FormatError."""
        parameter = self._table[name]
        shape = parameter.shape[layer is not None :]
        return self._files.read(parameter.hf_name.format(layer=layer), shape)

    def _check(self, directory: Path) -> None:
        expected = stored_tensors(self._table)
        for name, (shape, meant) in expected.items():
            self._files.check(name, shape)
            readable = (meant,) if meant else _READ
            if (number := self._files.dtype(name)) not in readable:
                raise FormatError(
                    f"{directory}: {name} is stored as {number}; what is read is "
                    f"{', '.join(readable)}"
                )
        found = set(self._files.names)
        others = (name for name in found - expected.keys() if not _SURPLUS.search(name))
        if other := min(others, default=None):
            raise FormatError(f"{directory}: it also holds {other!a:.80}, which no plain Llama has")


class DirectoryWeights(StoredWeights):
    """The weights of a model directory: ours, or any Llama of Hugging Face."""

    def __init__(self, directory: Path, config: ModelConfig):
        files = open_tensors(directory)
        # Counted first, so that a hostile number of layers is never counted to.
        if config.layers > len(files.names):
            raise FormatError(
                f"{directory}: config.json says {config.layers} layers, and there are only "
                f"{len(files.names)} tensors"
            )
        super().__init__(directory, files, stored(config))


def open_tensors(directory: Path) -> TensorFiles | TorchFiles:
    """The tensors of a directory by Hugging Face's names. Raises FormatError."""
    if TorchFiles.found(directory) and not TensorFiles.found(directory):
        return TorchFiles(directory)
    return TensorFiles(directory)


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
    return vqgan.from_tensors(config, {k: np.asarray(v, np.float32) for k, v in tensors.items()})


def write_model(directory: Path, *args: Any, force: bool = False, **kwargs: Any) -> None:
    """Write a model directory as `fill_directory` fills a folder, whole or not at all.

    Raises UsageError when the directory exists (and not `force`).
    """
    with new_directory(directory, force=force) as folder:
        fill_directory(folder, *args, **kwargs)


def fill_directory(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    *,
    tokenizer: AnyTokenizer,
    image: vqgan.VQGAN | None = None,
    dtype: str = "float32",
    defaults: Habits | None = None,
    template: str | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Write a model into an empty folder, its weights cast to `dtype`, layer by layer.

    `defaults` are this model's habits of sampling, by task; `template` is its chat template, kept
    for programs that run such; `on_bytes(count)` is called after each tensor. What was written is
    read again and compared with what was meant.
    Raises UsageError when `dtype` is unknown, and OutputError when the disk gives other bytes back.
    """
    table = stored(config)
    if isinstance(weights, Rounded) and weights.packed:
        weights = weights.packed
    tensors = stored_tensors(table, numpy_dtype(dtype).name)
    write_tensors(folder, tensors, _stored(table, weights), on_bytes)
    values = {**config.to_json(), "torch_dtype": dtype}
    if defaults:
        values["lwm"]["defaults"] = defaults
    write_json(folder / CONFIG, values)
    tokenizer.save(folder)
    if template is not None:
        (folder / chat_templates.FILE).write_text(template, encoding="utf-8")
    if image is not None:
        write_vqgan(folder / VQGAN, image)


def stored_tensors(
    table: Mapping[str, Parameter], dtype: str | None = None
) -> dict[str, tuple[Shape, Any]]:
    """The tensors of a model directory: shape and number format by Hugging Face's names.

    Layer by layer; `dtype` is the format of those that have none of their own.
    """
    return {
        parameter.hf_name.format(layer=layer): (
            parameter.shape[layer is not None :],
            parameter.dtype or dtype,
        )
        for parameter in table.values()
        for layer in layers_of(parameter)
    }


def _stored(table: Mapping[str, Parameter], weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors under Hugging Face's names."""
    for name, parameter in table.items():
        for layer in layers_of(parameter):
            yield parameter.hf_name.format(layer=layer), weights.read(name, layer)


def write_vqgan(folder: Path, image: vqgan.VQGAN) -> None:
    """Write an image tokenizer into a new folder: its configuration and float32 weights."""
    folder.mkdir()
    tensors = vqgan.to_tensors(image)
    table = {name: (tensor.shape, "float32") for name, tensor in tensors.items()}
    write_tensors(folder, table, tensors.items())
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
        if not _is_ours(entry):
            raise UsageError(
                f"{directory} holds {entry.name}, which is no part of a model; choose another name"
            )


def _is_ours(entry: Path) -> bool:
    """Whether an entry of a directory may be part of a model: a known file, a folder `vqgan`."""
    if entry.is_dir() and not entry.is_symlink():
        return entry.name == VQGAN and {one.name for one in entry.iterdir()} <= _IMAGE_FILES
    return bool(_OURS.fullmatch(entry.name))
