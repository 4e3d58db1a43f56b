"""Weights of the original (LWM-JAX) under our names, in our orientation.

The original keeps text and vision in tables and heads of their own, stores kernels `[in, out]`, and
turns adjacent pairs of components by the rotary embedding. Here there is one table and one head,
kernels are `[out, in]`, and the two halves of a head make the pairs (Hugging Face's layout), so
tensors are joined, transposed and reordered when they are read. Layers may be stored as one stack
or one by one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from einops import rearrange

from lwm_core.config import END_MARKERS, ModelConfig, OriginalSizes, named_heads
from lwm_core.errors import ConfigError, FormatError
from lwm_core.formats.streaming import StoredArray, StreamingFile
from lwm_core.parameters import parameters

TRAINING_STATE = ("params", "params")
"""Where a whole training state keeps the weights."""
LAYERS = "transformer/h"
STACK = f"{LAYERS}/scan_decoder"
NORMS = {"attention_norm": "attention_norm", "mlp_norm": "ffn_norm"}
KERNELS = {
    "wq": "attention/wq",
    "wk": "attention/wk",
    "wv": "attention/wv",
    "wo": "attention/wo",
    "w_gate": "feed_forward/w1",
    "w_up": "feed_forward/w3",
    "w_down": "feed_forward/w2",
}
TABLES = {
    "embed": ("transformer/wte/embedding", "transformer/vte/embedding"),
    "head": ("lm_head/kernel", "vision_head/kernel"),
}
"""Ours, and the text's and the vision's part of it."""
NORM = "transformer/ln_f/kernel"
TURNED = ("wq", "wk")
"""The kernels whose outputs the rotary embedding turns."""


class LwmJaxWeights:
    """The weights in a streaming file of the original, or in a whole training state of it.

    `sizes` is what no tensor's shape tells; without its heads, they are those of the named size
    that has this shape. `config` and `dtype` are found in the file.

    Raises FormatError when the file holds no such model, and ConfigError when the heads are unknown
    or don't divide the width of the attention.
    """

    def __init__(self, file: StreamingFile, sizes: OriginalSizes) -> None:
        self._file = file
        below = TRAINING_STATE if self._holds_training_state() else ()
        self._arrays = {
            "/".join(keys[len(below) :]): self._file[keys]
            for keys in self._file.paths
            if keys[: len(below)] == below
        }
        try:
            self.config = self._infer(sizes)
            self._check()
        except KeyError as error:
            raise _not_a_model(file.path, f"{error.args[0]} is missing") from error
        except ValueError as error:
            raise _not_a_model(file.path, error.args[0]) from error

    @property
    def dtype(self) -> str:
        """The number format that loses nothing: that of all tensors, or float32 for a mixture."""
        found = {array.dtype.name for array in self._arrays.values()}
        return found.pop() if len(found) == 1 else "float32"

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter, or one layer of a stacked one; a view of the file where that will do."""
        self._file.release()
        if name == "norm":
            return self._arrays[NORM].read()
        if name in TABLES:
            parts = [self._arrays[part].read() for part in TABLES[name] if part in self._arrays]
            joined = [part.T for part in parts] if name == "head" else parts
            return joined[0] if len(joined) == 1 else np.concatenate(joined)
        assert layer is not None  # all else is stacked
        _, kind = name.split(".")
        tensor = self._of_layer(kind, layer)
        if kind in NORMS:
            return tensor
        return to_halves(tensor.T, self.config.head_dim) if kind in TURNED else tensor.T

    def _of_layer(self, kind: str, layer: int) -> np.ndarray:
        stack, own = _places(kind, layer)
        if stack not in self._arrays:
            return self._arrays[own].read()
        if self._layer_axis:
            return self._arrays[stack].read()[:, layer]
        return self._arrays[stack].read(layer)

    def _holds_training_state(self) -> bool:
        return any(keys[: len(TRAINING_STATE)] == TRAINING_STATE for keys in self._file.paths)

    def _infer(self, sizes: OriginalSizes) -> ModelConfig:
        """The sizes of the model, by the shapes of its tensors. Raises KeyError, ValueError."""
        text_vocab, hidden = _shape(self._arrays[TABLES["embed"][0]], 2, TABLES["embed"][0])
        vision = self._arrays.get(TABLES["embed"][1])
        vision_vocab = _shape(vision, 2, TABLES["embed"][1])[0] if vision else 0
        self._layer_axis = self._find_layer_axis(hidden)
        layers = self._count_layers()
        width, keys, inner = (self._layer_shape(kind, axes=2)[1] for kind in ("wq", "wk", "w_gate"))
        if not min(text_vocab, hidden, layers, width, inner):
            raise ValueError("one of its tensors is empty")
        heads = sizes.heads or named_heads(hidden, inner, layers)
        if heads is None:
            raise ConfigError(
                f"heads: no shape tells how many share an attention {width} wide; name a model "
                "that has as many, for example --like chat-1m"
            )
        if width % (2 * heads):
            raise ConfigError(f"heads: {heads} heads do not share an attention {width} wide evenly")
        head_dim = width // heads
        if not keys or keys % head_dim or heads % (keys // head_dim):
            raise ValueError(f"its keys are no whole heads of {head_dim}")
        return ModelConfig(
            text_vocab=text_vocab,
            vision_vocab=vision_vocab,
            vision_codes=min(8192, vision_vocab - END_MARKERS) if vision_vocab else 8192,
            hidden=hidden,
            intermediate=inner,
            layers=layers,
            heads=heads,
            kv_heads=keys // head_dim,
            head_dim=head_dim,
            max_length=sizes.max_length,
            rope_theta=sizes.rope_theta,
            frame_codes=sizes.frame_codes,
            norm_eps=sizes.norm_eps,
        )

    def _find_layer_axis(self, hidden: int) -> int:
        """Where stacks count layers: mostly first; second where norms are `[D, L]`."""
        stack, _ = _places("attention_norm", 0)
        shape = self._arrays[stack].shape if stack in self._arrays else ()
        return int(shape[:1] == (hidden,) != shape[1:])

    def _count_layers(self) -> int:
        stack, _ = _places("wq", 0)
        if stack in self._arrays:
            return _shape(self._arrays[stack], 3, stack)[self._layer_axis]
        return max(1, sum(name.endswith(f"/{KERNELS['wq']}/kernel") for name in self._arrays))

    def _layer_shape(self, kind: str, axes: int) -> tuple[int, ...]:
        """The shape of the first layer's tensor of a kind, as it is stored."""
        stack, own = _places(kind, 0)
        if stack in self._arrays:
            shape = _shape(self._arrays[stack], axes + 1, stack)
            return shape[: self._layer_axis] + shape[self._layer_axis + 1 :]
        return _shape(self._arrays[own], axes, own)

    def _check(self) -> None:
        """Raise KeyError, ValueError unless the file holds all tensors in their shapes, no more."""
        expected = stored_shapes(self.config, stacked=_places("wq", 0)[0] in self._arrays)
        for name, shape in expected.items():
            found = self._arrays[name].shape
            if self._layer_axis and name.startswith(STACK):
                found = (found[1], found[0], *found[2:])
            if found != shape:
                raise ValueError(f"{name} has shape {found}, expected {shape}")
        if more := self._arrays.keys() - expected.keys():
            raise ValueError(f"it also holds {min(more)!a:.160}")


def holds_vision(file: StreamingFile) -> bool:
    """Whether the model in a file also sees."""
    return any("/".join(keys).endswith(TABLES["embed"][1]) for keys in file.paths)


def stored_shapes(config: ModelConfig, *, stacked: bool = True) -> dict[str, tuple[int, ...]]:
    """The tensors that the original stores for a model: shapes by path."""
    shapes: dict[str, tuple[int, ...]] = {NORM: (config.hidden,)}
    for table, (text, vision) in TABLES.items():
        for part, rows in ((text, config.text_vocab), (vision, config.vision_vocab)):
            if rows:
                flat = (rows, config.hidden)
                shapes[part] = flat if table == "embed" else flat[::-1]
    for name, parameter in parameters(config).items():
        if not parameter.stacked:
            continue
        kind = name.split(".")[1]
        layers, *shape = parameter.shape
        if stacked:
            shapes[_places(kind, 0)[0]] = (layers, *shape[::-1])
        else:
            shapes |= {_places(kind, layer)[1]: tuple(shape[::-1]) for layer in range(layers)}
    return shapes


def kind_at(path: str) -> str:
    """Our name of the tensor of all layers that lies at a path of the original."""
    kinds = (*NORMS, *KERNELS)
    return next(kind for kind in kinds if _places(kind, 0)[0] == path)


def to_halves(kernel: np.ndarray, head_dim: int) -> np.ndarray:
    """`[out, in]` with the rows of each head moved from pairs `2j, 2j+1` to `j, j + H/2`."""
    return rearrange(kernel, "(n h two) i -> (n two h) i", h=head_dim // 2, two=2)


def to_pairs(kernel: np.ndarray, head_dim: int) -> np.ndarray:
    """The inverse of `to_halves`."""
    return rearrange(kernel, "(n two h) i -> (n h two) i", h=head_dim // 2, two=2)


def _places(kind: str, layer: int) -> tuple[str, str]:
    """Where the tensors of a kind lie: all layers stacked, or those of one layer."""
    source = NORMS.get(kind) or KERNELS[kind]
    return f"{STACK}/{source}/kernel", f"{LAYERS}/{layer}/{source}/kernel"


def _shape(array: StoredArray, axes: int, name: str) -> tuple[int, ...]:
    if len(array.shape) != axes:
        raise ValueError(f"{name} has {len(array.shape)} axes, expected {axes}")
    return array.shape


def _not_a_model(path: str | Path, reason: str) -> FormatError:
    return FormatError(
        f"{path}: not a language model of LWM: {reason}; give the file called params of a model"
    )
