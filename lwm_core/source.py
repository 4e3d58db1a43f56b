"""A model opened where it lies, in whatever format: all but its weights in memory.

Formats are model directories (ours, and any Llama of Hugging Face: safetensors or PyTorch's
`.bin`), the original's files (streamed `params`, a pickled `vqgan` and `tokenizer.model` side by
side), GGUF files, and adapters, which name a model and are merged as it is read. What a format
leaves unsaid comes from the card of the model, and is told.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lwm_core import checkpoint, download, lora, registry, vqgan
from lwm_core.chat_templates import LWM, ChatStyle, read_template, recognise
from lwm_core.config import ModelConfig, OriginalSizes, Quantization
from lwm_core.errors import FormatError, ModelNotFound, TextOnly, UsageError
from lwm_core.formats.lwm_jax import LwmJaxWeights, holds_vision
from lwm_core.formats.streaming import StreamingFile
from lwm_core.formats.torch_bin import TorchFiles
from lwm_core.formats.vqgan_names import rename_lwm_vqgan
from lwm_core.formats.vqgan_pickle import load_lwm_vqgan
from lwm_core.hub.address import is_written
from lwm_core.number_formats import rounding_of
from lwm_core.rounded import rounded, unpacked
from lwm_core.tensor_files import TensorFiles, read_json
from lwm_core.vocabulary import AnyTokenizer, load_tokenizer
from lwm_core.weights import Weights

STREAMS = ("params", "streaming_params", "streaming_train_state")
"""What the original calls its file of weights."""
ORIGINAL_IMAGE = "vqgan"
TRAINED_BY, TRAINED = "recipe.json", "model"
"""What the output of a training holds: how it came to be, and the model."""


@dataclass(frozen=True)
class Source:
    """An opened model.

    `assumed` says, a line each, what its files do not say; `rounding` is what a CPU is to round its
    matrices to if nothing is said.
    """

    path: Path
    config: ModelConfig
    weights: Weights
    tokenizer: AnyTokenizer
    image: vqgan.VQGAN | None = None
    habits: checkpoint.Habits = dataclasses.field(default_factory=dict)
    template: str | None = None
    assumed: tuple[str, ...] = ()
    rounding: Quantization | None = None

    @property
    def style(self) -> ChatStyle:
        """The wording of its conversations; that of LWM for a template that is unknown."""
        return recognise(self.template) or LWM


def find_model(name: str) -> Path:
    """Where a model lies: a path, the embedded one, one of a package, one in the hub's cache.

    Raises ModelNotFound with the nearest names, or with what to type to fetch it.
    """
    path = registry.named_path(name)
    try:
        if path and path.exists():
            return _trained(path) if (path / TRAINED_BY).is_file() else path
    except OSError as error:
        raise ModelNotFound(f"{name:.80}: can't be looked at: {error.strerror}") from error
    card = registry.find(name)
    if card and not card.repositories:
        return registry.shipped_path(card)
    if local := download.local_path(card or name):
        return local
    if card and Path(name).exists():  # as a clone of its repository is called
        return Path(name)
    if card is None and (name.startswith((".", "/", "~")) or name.endswith("/")):
        raise ModelNotFound(f"{name}: there is no such file or directory")
    wanted = name if card is None and is_written(name) else registry.get(name).aliases[0]
    raise ModelNotFound(f"{wanted} is not here yet; fetch it with: lwm download {wanted}")


def _trained(output: Path) -> Path:
    """The model in the output of a training. Raises ModelNotFound where there is none yet."""
    model = output / TRAINED
    if not model.is_dir():
        raise ModelNotFound(
            f"{output}: its training has written no model yet; it does at the end, and on SIGUSR1"
        )
    return model


def open_source(name: str, *, like: str | None = None) -> Source:
    """Open a model by name or path; an adapter is the model that it makes of another.

    `like` names a model, or is a model directory, that has the heads, rotary base and context of a
    file of the original. Raises ModelNotFound, FormatError, ConfigError, and UsageError when
    sizes are unknown.
    """
    path = find_model(name)
    if lora.is_adapter(path):
        return _adapted(path, like)
    is_directory = TensorFiles.found(path) or TorchFiles.found(path)
    if not is_directory and (stream := _stream_in(path)):
        return _original(name, stream, like)
    if like:
        raise UsageError(f"{name} says its sizes itself: leave out --like")
    if is_directory:
        return _directory(name, path)
    files = [path] if path.is_file() else list(path.glob("*.gguf"))
    if len(files) == 1:
        return _gguf(files[0])
    if files:
        raise UsageError(f"{path} holds {len(files)} GGUF files: name one of them")
    raise FormatError(
        f"{path}: no weights are there: neither model.safetensors, pytorch_model.bin, "
        "params, nor one .gguf file"
    )


def quantized(source: Source, kind: Quantization | None) -> Source:
    """A source whose matrices are rounded as they are read; one that is so already stays.

    Raises UsageError for an unknown kind, and for a source of another kind.
    """
    if kind not in (None, *get_args(Quantization)):
        known = ", ".join(get_args(Quantization))
        raise UsageError(f"quantize {kind!r} is unknown; choose one of {known}")
    if kind is None or source.config.quantized == kind:
        return source
    if source.config.quantized:
        raise UsageError(
            f"{source.path} is in {source.config.quantized}: give the model that it was made of"
        )
    config = dataclasses.replace(source.config, quantized=kind)
    return dataclasses.replace(source, config=config, weights=rounded(source.weights, config))


def _adapted(path: Path, like: str | None) -> Source:
    """The model that an adapter is for, with it merged."""
    base, _ = _find_base(path)
    source = open_source(base, like=like)
    if source.config.quantized:
        raise UsageError(f"{path} is for a quantized model: name there the one that it was made of")
    how, factors = lora.open_adapter(path, source.config)
    merged = lora.Merged(source.weights, factors, how)
    # What the base says of rounding is of its own weights.
    return dataclasses.replace(source, path=path, weights=merged, rounding=None)


def _find_base(path: Path) -> tuple[str, Path]:
    """The model that an adapter is for, as it is named and where it lies.

    Raises FormatError, and ModelNotFound with the file that names it.
    """
    base = lora.base_of(path)
    try:
        found = find_model(base)
    except ModelNotFound as error:
        raise ModelNotFound(f"{path / lora.CONFIG} names a base model: {error}") from error
    if lora.is_adapter(found):
        raise FormatError(f"{path}: {base} is itself an adapter; merge it first: lwm convert")
    return base, found


def _stream_in(path: Path) -> Path | None:
    """The original's file of weights: what `path` names, or one of its names in a directory."""
    if path.is_file():
        if path.suffix in (".safetensors", ".bin", ".json"):
            raise UsageError(f"{path} is one file of a model: give the folder that it lies in")
        return None if path.suffix == ".gguf" else path
    return next((path / name for name in STREAMS if (path / name).is_file()), None)


def picture_size(name: str) -> int:
    """Side in pixels of the pictures that a model sees; reads no weights of the transformer.

    Raises ModelNotFound, FormatError, ConfigError, TextOnly.
    """
    path = find_model(name)
    if lora.is_adapter(path):
        _, path = _find_base(path)
    folder = path.parent if path.is_file() else path
    if (folder / checkpoint.VQGAN).is_dir():
        return checkpoint.read_image_config(folder / checkpoint.VQGAN).resolution
    if (folder / ORIGINAL_IMAGE).is_file():
        return _original_image(folder).config.resolution
    raise TextOnly(name)


def open_image(name: str) -> vqgan.VQGAN:
    """The image tokenizer of a model; nothing else of it is read.

    Raises ModelNotFound, FormatError, ConfigError, TextOnly.
    """
    path = find_model(name)
    folder = path.parent if path.is_file() else path
    if image := checkpoint.read_vqgan(folder):
        return image
    if (folder / ORIGINAL_IMAGE).is_file():
        return _original_image(folder)
    raise TextOnly(name)


def _gguf(path: Path) -> Source:
    from lwm_core.formats.gguf_llama import GGUFModel

    model = GGUFModel(path)
    template = model.chat_template
    return Source(
        path,
        model.config,
        model,
        model.tokenizer,
        template=template,
        assumed=_worded(template),
    )


def _worded(template: str | None) -> tuple[str, ...]:
    """What is assumed where the wording of conversations is unknown."""
    if recognise(template):
        return ()
    return ("the USER and ASSISTANT of LWM, for its chat template is an unknown one",)


def _directory(name: str, path: Path) -> Source:
    """A model directory."""
    values = read_json(path / checkpoint.CONFIG)
    template = read_template(path)
    assumed = list(_worded(template))
    card = registry.find(name) or registry.find(path.resolve().name)
    if not any(key.startswith("rope") for key in values):
        values["rope_theta"] = card.rope_theta if card else 10_000.0
        whose = card.name if card else "the first Llama"
        assumed.append(f"a rotary base of {values['rope_theta']:g}, as {whose} has")
    if card and "max_position_embeddings" not in values:
        values["max_position_embeddings"] = card.context
        assumed.append(f"a context of {card.context}, as {card.name} has")
    config = ModelConfig.from_json(values)
    weights = checkpoint.DirectoryWeights(path, config)
    return Source(
        path,
        config,
        unpacked(weights, config) if config.quantized == "int4" else weights,
        load_tokenizer(path),
        checkpoint.read_vqgan(path),
        checkpoint.read_habits(path),
        template,
        tuple(assumed),
        rounding_of(values),
    )


def _original(name: str, stream: Path, like: str | None) -> Source:
    """A model as the original published it, by its file of weights."""
    file = StreamingFile(stream)  # first: what is no such file can't say its sizes
    sizes, assumed = _original_sizes(name, file, like)
    weights = LwmJaxWeights(file, sizes)
    config = weights.config
    image = _original_image(stream.parent) if config.vision_vocab else None
    if sizes.heads is None:
        assumed = (*assumed, f"{config.heads} heads, as the original's models of this shape have")
    return Source(stream, config, weights, load_tokenizer(stream.parent), image, assumed=assumed)


def _original_sizes(
    name: str, file: StreamingFile, like: str | None
) -> tuple[OriginalSizes, tuple[str, ...]]:
    """Heads, rotary base and context, and what was assumed for them."""
    if said := _said_beside(file.path.parent):
        if like:
            raise UsageError(f"{checkpoint.CONFIG} beside {file.path} says its sizes: no --like")
        return said, ()
    path = registry.named_path(like) if like else None
    if path and path.is_dir():
        return _sizes_of(path), ()
    known = (registry.find(one) for one in (name, file.path.resolve().parent.name))
    card = registry.get(like) if like else next((card for card in known if card), None)
    if card:
        sizes = OriginalSizes(card.heads, card.context, card.rope_theta)
        return sizes, (
            f"{card.heads} heads, a rotary base of {card.rope_theta:g} and a context of "
            f"{card.context}, as {card.name} has",
        )
    if not holds_vision(file):
        raise UsageError(
            f"{name} does not say its rotary base and context: name the folder as the model is "
            "called (LWM-Text-1M), or give `lwm convert` a --like text-1m"
        )
    longest = max(registry.PUBLISHED, key=lambda card: (card.kind == "vision", card.context))
    return OriginalSizes(None, longest.context, longest.rope_theta), (
        f"a rotary base of {longest.rope_theta:g}, as all of the original's models that see have, "
        f"and a context of {longest.context}",
    )


def _sizes_of(directory: Path) -> OriginalSizes:
    """The sizes of another model: of a model directory, or of one of the original."""
    if TensorFiles.found(directory) or TorchFiles.found(directory):
        return OriginalSizes.of(checkpoint.read_config(directory))
    if said := _said_beside(directory):
        return said
    raise FormatError(f"{directory / checkpoint.CONFIG}: missing; it would say the sizes")


def _said_beside(folder: Path) -> OriginalSizes | None:
    """The sizes in the configuration beside a file of the original, if there is one."""
    path = folder / checkpoint.CONFIG
    return OriginalSizes.from_json(read_json(path)) if path.is_file() else None


def _original_image(folder: Path) -> vqgan.VQGAN:
    """The original's image tokenizer, whose file does not say the size of the pictures."""
    path = folder / ORIGINAL_IMAGE
    if not path.is_file():
        raise FormatError(f"{path}: missing; put it beside the weights, it comes with the model")
    said = _said_beside(folder)
    groups = said.image_groups if said else OriginalSizes.image_groups
    frame_codes = said.frame_codes if said else OriginalSizes.frame_codes
    image, weights = load_lwm_vqgan(path, groups=groups)
    resolution = math.isqrt(frame_codes) * image.resolution // image.grid
    image = dataclasses.replace(image, resolution=resolution)
    return vqgan.from_tensors(image, rename_lwm_vqgan(image, weights))
