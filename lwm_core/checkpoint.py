"""The model directory: `config.json`, safetensors with Hugging Face names, tokenizer, VQGAN.

Reading maps the files into memory and copies one tensor at a time; writing goes to a directory
beside the target that takes its name when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lwm_core import transformer, vqgan
from lwm_core.config import ModelConfig, VQConfig
from lwm_core.errors import FormatError, OutputError, UsageError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Tensors = dict[str, np.ndarray]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model directory. Raises FormatError when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: missing; this is no whole model directory") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: not readable as JSON; fetch or convert it again") from error
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds no JSON object")
    return values


class TensorFiles:
    """The safetensors of one directory, one file or many with an index, read by tensor name."""

    def __init__(self, directory: Path):
        if (directory / INDEX).exists():
            places = read_json(directory / INDEX).get("weight_map", {})
            self._files = {name: directory / Path(file).name for name, file in places.items()}
        else:
            self._files = dict.fromkeys(self._names(directory / WEIGHTS), directory / WEIGHTS)
        self._open: dict[Path, Any] = {}

    def _handle(self, path: Path) -> Any:
        if not path.exists():
            raise FormatError(f"{path}: missing; fetch or convert the model again")
        try:
            return safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path}: not whole ({error}); fetch or convert it again") from error

    def _names(self, path: Path) -> list[str]:
        return list(self._handle(path).keys())

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor. Raises FormatError when it is missing or has another shape."""
        if name not in self._files:
            raise FormatError(f"{name} is missing from the weights; convert the model again")
        path = self._files[name]
        if path not in self._open:
            self._open[path] = self._handle(path)
        tensor = self._open[path].get_tensor(name)
        if tensor.shape != shape:
            raise FormatError(f"{path}: {name} has shape {tensor.shape}, config.json says {shape}")
        return tensor


def read_config(directory: Path) -> ModelConfig:
    """The sizes of the model in a directory."""
    return ModelConfig.from_json(read_json(directory / "config.json"))


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
            parts = (
                files.read(parameter.hf_name.format(layer=layer), parameter.shape[1:])
                for layer in range(config.layers)
            )
            stack = None
            for layer, part in enumerate(parts):
                if stack is None:
                    stack = np.empty(parameter.shape, part.dtype)
                stack[layer] = part
            yield name, stack
        else:
            yield name, files.read(parameter.hf_name, parameter.shape)
        if on_tensor:
            on_tensor(done, len(table))


def read_vqgan(directory: Path) -> vqgan.VQGAN | None:
    """The image tokenizer of a model directory, or None when it has none."""
    folder = directory / "vqgan"
    if not folder.is_dir():
        return None
    config = VQConfig.from_json(read_json(folder / "config.json"))
    files = TensorFiles(folder)
    shapes = vqgan.shapes(config)
    tensors = {name: files.read(name, shape) for name, shape in shapes.items()}
    return vqgan.from_tensors(config, {k: v.astype(np.float32) for k, v in tensors.items()})


def write_model(
    directory: Path,
    config: ModelConfig,
    tensors: Iterator[tuple[str, np.ndarray]],
    *,
    tokenizer: Path,
    image: vqgan.VQGAN | None = None,
    dtype: str = "float32",
    defaults: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write a model directory; `tensors` are parameters by dotted name, cast to `dtype`.

    `defaults` are this model's habits of sampling, by task. Raises UsageError when the directory
    exists (and not `force`) and OutputError when it can't be written.
    """
    table = transformer.parameters(config)
    with new_directory(directory, force=force) as folder:
        stored: Tensors = {}
        for name, tensor in tensors:
            parameter = table[name]
            cast = np.ascontiguousarray(tensor).astype(numpy_dtype(dtype))
            if parameter.stacked:
                for layer, part in enumerate(cast):
                    stored[parameter.hf_name.format(layer=layer)] = part
            else:
                stored[parameter.hf_name] = cast
        save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
        values = {**config.to_json(), "torch_dtype": dtype}
        if defaults:
            values["lwm"]["defaults"] = defaults
        _write_json(folder / "config.json", values)
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
        if image is not None:
            write_vqgan(folder / "vqgan", image)


def write_vqgan(folder: Path, image: vqgan.VQGAN) -> None:
    """Write an image tokenizer into a new folder: its configuration and float32 weights."""
    folder.mkdir()
    save_file(vqgan.to_tensors(image), folder / WEIGHTS)
    _write_json(folder / "config.json", image.config.to_json())


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def numpy_dtype(name: str) -> np.dtype:
    """`float32`, `bfloat16` or `float16` as numpy's. Raises UsageError for another name."""
    known = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    if name not in known:
        raise UsageError(f"dtype {name!r} is unknown; choose one of {', '.join(known)}")
    return np.dtype(known[name])


@contextmanager
def new_directory(directory: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder that becomes `directory` when the block ends well, and else vanishes."""
    if directory.exists() and not force:
        raise UsageError(f"{directory} exists; choose another name or overwrite it with --force")
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        yield temporary
        temporary.chmod(0o755)
        if directory.exists():
            old = temporary.with_name(temporary.name + "-old")
            os.replace(directory, old)
            os.replace(temporary, directory)
            shutil.rmtree(old)
        else:
            os.replace(temporary, directory)
    except OSError as error:
        raise OutputError(f"{directory}: can't be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
