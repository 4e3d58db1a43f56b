"""Recipes: what a TOML file may say, checked with the key's name in the message."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lwm_core.config import VQConfig
from lwm_core.data.lessons import Stage
from lwm_core.errors import ConfigError
from lwm_core.train.optimizer import OptimizerConfig

T = TypeVar("T")


@dataclass(frozen=True)
class ImageRecipe:
    """Training of an image tokenizer on pictures of the world.

    Over the first `free_steps` ever fewer pictures bypass the codebook.
    """

    steps: int
    batch: int
    model: VQConfig
    optimizer: OptimizerConfig
    seed: int = 0
    save_every: int = 500
    free_steps: int = 0


@dataclass(frozen=True)
class TransformerSize:
    """The sizes of a transformer that its data does not decide."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    max_length: int
    kv_heads: int = 0
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden % (2 * self.heads):
            raise ConfigError(
                f"model.heads: {self.heads} do not share {self.hidden} evenly, in even sizes"
            )


@dataclass(frozen=True)
class LanguageRecipe:
    """Training of a transformer, from fresh weights (`model`) or from a model (`start_from`).

    `image_tokenizer` is a directory with a `vqgan/` (without it the model reads text only) and
    `tokenizer` the size of a vocabulary to train. `prose` are text files; without any it is the
    package's own novel. `defaults` are habits of sampling that the model directory will carry.
    """

    stages: tuple[Stage, ...]
    optimizer: OptimizerConfig
    model: TransformerSize | None = None
    start_from: str | None = None
    image_tokenizer: str | None = None
    tokenizer: int = 2048
    prose: tuple[str, ...] = ()
    dtype: str = "float32"
    seed: int = 0
    save_every: int = 100
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.start_from is None):
            raise ConfigError("model, start_from: give exactly one of them")
        if not self.stages:
            raise ConfigError("stages: at least one [[stages]] table is needed")

    @property
    def steps(self) -> int:
        """Updates in all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that update number `step` (from 0) belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


RECIPES = {"image": ImageRecipe, "language": LanguageRecipe}


def read_recipe(values: Mapping[str, Any]) -> ImageRecipe | LanguageRecipe:
    """A recipe from a TOML document; `kind` says which. Raises ConfigError naming the key."""
    values = dict(values)
    kind = values.pop("kind", None)
    if kind not in RECIPES:
        raise ConfigError(f"kind is {kind!r}; choose one of {', '.join(map(repr, RECIPES))}")
    return _build(RECIPES[kind], values, "")


def _build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: no such key; known are {', '.join(fields)}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name}: missing")
    return cls(**{k: _convert(hints[k], v, f"{prefix}{k}") for k, v in values.items()})


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _convert(next(t for t in get_args(hint) if t is not type(None)), value, name)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: a table is needed, not {value!r}")
        return _build(hint, value, f"{name}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}: a list is needed, not {value!r}")
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ConfigError(f"{name}: {len(kinds)} values are needed, not {len(value)}")
        return tuple(
            _convert(kind, one, f"{name}[{index}]")
            for index, (kind, one) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: a table is needed, not {value!r}")
        kind = get_args(hint)[1]
        return {k: _convert(kind, v, f"{name}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or not isinstance(hint, type):
        return value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name}: {hint.__name__} is needed, not {value!r}")
    return value
