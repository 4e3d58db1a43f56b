"""Recipes: what a TOML file may say, checked with the key's name in the message.

Every value out of its bounds is a ConfigError, raised when the recipe is made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lwm_core.config import VQConfig
from lwm_core.data.lessons import Stage
from lwm_core.errors import ConfigError, UsageError
from lwm_core.sampling import Sampling
from lwm_core.train.optimizer import OptimizerConfig

T = TypeVar("T")

DTYPES = ("float32", "bfloat16")
"""Number formats that a transformer computes in while it learns."""
TASKS = ("chat", "see", "draw", "film")
"""What a model can have habits of sampling for."""
ADJUSTABLE = frozenset(
    {
        "steps",
        "drawing_steps",
        "stages",
        "save_every",
        "defaults",
        "optimizer.rate",
        "optimizer.end_rate",
        "optimizer.matrix_rate",
    }
)
"""Keys that may change when a run goes on: how long, on what and how fast it learns."""


def _at_least(least: int, table: object, *names: str) -> None:
    """Raise ConfigError unless these values of a table are `least` or more."""
    for name in names:
        value = getattr(table, name)
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")


def _check_seed(seed: int) -> None:
    """Raise ConfigError unless both numpy and jax take the seed."""
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"seed is {seed}; it must be at least 0 and below 2^63")


@dataclass(frozen=True)
class ImageRecipe:
    """Training of an image tokenizer on pictures of the world.

    Over the first `free_steps` ever fewer pictures bypass the codebook; in the last
    `drawing_steps` the decoder alone learns, to draw what will be made.
    """

    steps: int
    batch: int
    model: VQConfig
    optimizer: OptimizerConfig
    seed: int = 0
    save_every: int = 500
    free_steps: int = 0
    drawing_steps: int = 0

    def __post_init__(self) -> None:
        _at_least(1, self, "steps", "batch", "save_every")
        _at_least(0, self, "free_steps", "drawing_steps")
        if self.drawing_steps >= self.steps:
            raise ConfigError(
                f"drawing_steps is {self.drawing_steps}; it must be below steps, {self.steps}"
            )
        _check_seed(self.seed)


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
        _at_least(1, self, "hidden", "intermediate", "layers", "heads", "max_length")
        _at_least(0, self, "kv_heads")
        if not 0 < self.rope_theta < math.inf:
            raise ConfigError(f"rope_theta is {self.rope_theta}; it must be above 0")
        if self.hidden % (2 * self.heads):
            raise ConfigError(
                f"heads: {self.heads} do not share {self.hidden} evenly, in even sizes"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError(f"kv_heads: {self.kv_heads} do not share {self.heads} heads evenly")


@dataclass(frozen=True)
class LanguageRecipe:
    """Training of a transformer, from fresh weights (`model`) or from a model (`start_from`).

    `image_tokenizer` is a directory with a `vqgan/`, by default that of `start_from` (without one
    the model reads text only). `tokenizer` is the size of a vocabulary to train, where the model
    is fresh. `prose` are text files; without any it is the package's own novel. `defaults` are
    habits of sampling that the model directory will carry.
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
        if self.steps < 1:
            raise ConfigError("stages: at least one [[stages]] table with steps is needed")
        _at_least(1, self, "tokenizer", "save_every")
        _check_seed(self.seed)
        for index, stage in enumerate(self.stages):
            if self.model and stage.length > self.model.max_length:
                raise ConfigError(
                    f"stages[{index}].length is {stage.length}, more than model.max_length, "
                    f"{self.model.max_length}"
                )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        for task, habits in self.defaults.items():
            if task not in TASKS:
                raise ConfigError(f"defaults.{task}: no such task; known are {', '.join(TASKS)}")
            try:
                _build(Sampling, habits, "")
            except UsageError as error:
                raise ConfigError(f"defaults.{task}: {error}") from error

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
    if not isinstance(kind, str) or kind not in RECIPES:
        raise ConfigError(f"kind is {kind!r}; choose one of {', '.join(map(repr, RECIPES))}")
    return _build(RECIPES[kind], values, "")


def to_document(recipe: ImageRecipe | LanguageRecipe) -> dict[str, Any]:
    """The document that `read_recipe` reads as this recipe, with every setting that is set."""
    kind = next(kind for kind, cls in RECIPES.items() if isinstance(recipe, cls))
    # As in TOML, what is None is not there.
    values = dataclasses.asdict(
        recipe, dict_factory=lambda items: {key: value for key, value in items if value is not None}
    )
    return {"kind": kind, **values}


def first_change(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key whose values in two documents differ and that is not `ADJUSTABLE`, if any."""
    for key in {**now, **before}:
        name, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if name in ADJUSTABLE or old == new:
            continue
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            return name
        if inner := first_change(old, new, f"{name}."):
            return inner
    return None


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
    converted = {k: _convert(hints[k], v, f"{prefix}{k}") for k, v in values.items()}
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


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
