"""Recipes: what a TOML file may say, checked with the key's name in the message.

Every value out of its bounds is a ConfigError, raised when the recipe is made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, Literal, NamedTuple

from lwm_core.config import LoraConfig, VQConfig
from lwm_core.data.lessons import KINDS, Stage
from lwm_core.data.pieces import TooLong, Weigh
from lwm_core.errors import ConfigError, UsageError
from lwm_core.sampling import Sampling
from lwm_core.train.document import build
from lwm_core.train.optimizer import EVERYTHING, LanguageOptimizerConfig, OptimizerConfig
from lwm_core.train.samples import Prompt

TASKS = ("chat", "see", "draw", "film")
"""What a model can have habits of sampling for."""
ADJUSTABLE = frozenset(
    {
        "steps",
        "drawing_steps",
        "stages",
        "save_every",
        "keep",
        "keep_every",
        "export_every",
        "evaluation",
        "evaluate_every",
        "evaluate_batches",
        "sample_every",
        "samples",
        "max_skipped",
        "defaults",
        "optimizer.rate",
        "optimizer.end_rate",
        "optimizer.matrix_rate",
        "optimizer.accumulate",
        "data.*.path",
    }
)
"""Keys that may change when a run goes on: how long, on what, how fast it learns, what is kept, and
what depends on the machine. `*` is any name."""


def _at_least(least: int, table: object, *names: str) -> None:
    """Raise ConfigError unless these values of a table are `least` or more."""
    for name in names:
        value = getattr(table, name)
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What recipes have in common: randomness, and what is written how often.

    Of the checkpoints, one every `save_every` steps, the newest `keep` stay, and every one at a
    multiple of `keep_every` steps (0: none). The model directory is written every `export_every`
    steps (0: at no such times), at the end and on demand (SIGUSR1). So many skipped steps in a row
    as `max_skipped` end the run.
    """

    seed: int = 0
    save_every: int = 100
    keep: int = 2
    keep_every: int = 0
    export_every: int = 0
    max_skipped: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:  # numpy and jax take no other
            raise ConfigError(f"seed is {self.seed}; it must be at least 0 and below 2^63")
        _at_least(1, self, "save_every", "keep", "max_skipped")
        _at_least(0, self, "keep_every", "export_every")


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(_Run):
    """Training of an image tokenizer on pictures of the world.

    Over the first `free_steps` ever fewer pictures bypass the codebook; in the last
    `drawing_steps` the decoder alone learns, to draw what will be made.
    """

    steps: int
    batch: int
    model: VQConfig
    optimizer: OptimizerConfig
    free_steps: int = 0
    drawing_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, self, "steps", "batch")
        _at_least(0, self, "free_steps", "drawing_steps")
        if self.drawing_steps >= self.steps:
            raise ConfigError(
                f"drawing_steps is {self.drawing_steps}; it must be below steps, {self.steps}"
            )


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
class Extension:
    """What a model to start from is made to have: a longer context, and the base of its angles."""

    max_length: int
    rope_theta: float

    def __post_init__(self) -> None:
        _at_least(1, self, "max_length")
        if not 0 < self.rope_theta < math.inf:
            raise ConfigError(f"rope_theta is {self.rope_theta}; it must be above 0")


@dataclass(frozen=True)
class DataSource:
    """Files to learn from, what a record of them is, and how it counts.

    `path` is a file, a directory, a glob or `hf:owner/dataset`. A `text` record holds a text under
    `key`; of a `chat` record the answers are learned; `fields` and `vision` are the original's
    records, whose parts `fields` names, or the key that names them (`fields_from`). In `weigh`,
    every token counts alike, or every example, however long. Records are shuffled in blocks of
    `shuffle`.
    """

    path: str
    format: Literal["text", "chat", "fields", "vision"] = "text"
    key: str = "text"
    fields: str = ""
    fields_from: str = ""
    max_frames: int = 0
    weigh: Weigh = "token"
    shuffle: int = 1024

    def __post_init__(self) -> None:
        _at_least(1, self, "shuffle")
        _at_least(0, self, "max_frames")
        if not self.path:
            raise ConfigError("path: name a file, a directory, a glob or hf:owner/dataset")
        for name, value, formats in (
            ("key", self.key != "text", ("text",)),
            ("fields", self.fields, ("fields", "vision")),
            ("fields_from", self.fields_from, ("fields", "vision")),
            ("max_frames", self.max_frames, ("vision",)),
        ):
            if value and self.format not in formats:
                raise ConfigError(f"{name}: records of the format {self.format!r} have none")
        if self.format in ("fields", "vision") and bool(self.fields) == bool(self.fields_from):
            raise ConfigError("fields, fields_from: give exactly one of them")


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe(_Run):
    """Training of a transformer, from fresh weights (`model`) or from a model (`start_from`).

    It learns from `data`, sources by name, or else from the package's world and `prose` (text
    files; by default its own novel). Rows are packed with whole examples that do not see each other
    (`masked`) or, as the original does, with everything in one line (`concatenated`).

    `image_tokenizer` is a directory with a `vqgan/`, by default that of `start_from` (without one
    the model reads text only). `tokenizer` is the size of a vocabulary to train, where the model
    is fresh. `defaults` are habits of sampling that the model directory will carry. With `lora`,
    only small matrices beside those of the model learn.
    """

    stages: tuple[Stage, ...]
    optimizer: LanguageOptimizerConfig
    model: TransformerSize | None = None
    start_from: str | None = None
    extend: Extension | None = None
    lora: LoraConfig | None = None
    image_tokenizer: str | None = None
    tokenizer: int = 2048
    prose: tuple[str, ...] = ()
    data: dict[str, DataSource] = field(default_factory=dict)
    packing: Literal["masked", "concatenated"] = "masked"
    too_long: TooLong = "split"
    evaluation: dict[str, DataSource] = field(default_factory=dict)
    evaluate_every: int = 0
    evaluate_batches: int = 8
    samples: tuple[Prompt, ...] = ()
    sample_every: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.start_from is None):
            raise ConfigError("model, start_from: give exactly one of them")
        for name in ("extend", "lora"):
            if getattr(self, name) and self.model:
                raise ConfigError(f"{name}: only a model to start_from can have it")
        if self.start_from and self.tokenizer != LanguageRecipe.tokenizer:
            raise ConfigError("tokenizer: a model to start_from has its own")
        self._check_adapters()
        self._check_packing()
        if self.steps < 1:
            raise ConfigError("stages: at least one [[stages]] table with steps is needed")
        _at_least(1, self, "tokenizer", "evaluate_batches")
        _at_least(0, self, "evaluate_every", "sample_every")
        if self.evaluate_every and not self.evaluation:
            raise ConfigError("evaluate_every: name what to evaluate on in [evaluation.NAME]")
        if self.sample_every and not self.samples:
            raise ConfigError("sample_every: give prompts in [[samples]]")
        for index, stage in enumerate(self.stages):
            self._check_stage(f"stages[{index}]", stage)
        for task, habits in self.defaults.items():
            if task not in TASKS:
                raise ConfigError(f"defaults.{task}: no such task; known are {', '.join(TASKS)}")
            try:
                build(Sampling, habits)
            except UsageError as error:
                raise ConfigError(f"defaults.{task}: {error}") from error

    def _check_adapters(self) -> None:
        """Raise ConfigError for what the directory of an adapter could not hold."""
        changed = {
            "extend": self.extend,
            "image_tokenizer": self.image_tokenizer,
            "defaults": self.defaults,
            "optimizer.learns": self.optimizer.learns != EVERYTHING,
        }
        for name, value in changed.items():
            if self.lora and value:
                raise ConfigError(f"{name}: an adapter leaves the rest of its model as it is")

    def _check_packing(self) -> None:
        """Raise ConfigError for what concatenated rows know nothing of."""
        if self.packing == "masked":
            return
        if len(self.data) != 1 or len(self.evaluation) > 1:
            raise ConfigError("packing: concatenated rows are of one source; name one in data")
        if self.too_long != LanguageRecipe.too_long:
            raise ConfigError("too_long: concatenated rows hold everything")
        for table, sources in (("data", self.data), ("evaluation", self.evaluation)):
            for (name, source), key in product(sources.items(), ("weigh", "shuffle")):
                if getattr(source, key) != getattr(DataSource, key):
                    raise ConfigError(
                        f"{table}.{name}.{key}: concatenated rows take all as it comes"
                    )

    def _check_stage(self, name: str, stage: Stage) -> None:
        longest = self.model or self.extend
        if longest and stage.length > longest.max_length:
            table = "model" if self.model else "extend"
            raise ConfigError(
                f"{name}.length is {stage.length}, more than {table}.max_length, "
                f"{longest.max_length}"
            )
        known = tuple(self.data) or KINDS
        for kind in stage.mix:
            if kind not in known:
                raise ConfigError(f"{name}.mix.{kind}: no such kind; known are {', '.join(known)}")
        if not stage.mix and not self.data:
            raise ConfigError(f"{name}.mix: missing")

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
    return build(RECIPES[kind], values)


def to_document(recipe: ImageRecipe | LanguageRecipe) -> dict[str, Any]:
    """The document that `read_recipe` reads as this recipe, with every setting that is set."""
    kind = next(kind for kind, cls in RECIPES.items() if isinstance(recipe, cls))
    # As in TOML, what is None is not there.
    values = dataclasses.asdict(
        recipe, dict_factory=lambda items: {key: value for key, value in items if value is not None}
    )
    return {"kind": kind, **values}


class Change(NamedTuple):
    """A key whose values in two recipes differ."""

    key: str
    before: Any
    now: Any

    @property
    def is_adjustable(self) -> bool:
        """Whether a run may go on with the new value."""
        return any(fnmatchcase(self.key, pattern) for pattern in ADJUSTABLE)


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[Change]:
    """What differs between two documents; of the keys that may be adjusted whole tables."""
    for key in {**now, **before}:
        change = Change(f"{prefix}{key}", before.get(key), now.get(key))
        if change.before == change.now:
            continue
        tables = isinstance(change.before, Mapping) and isinstance(change.now, Mapping)
        if change.is_adjustable or not tables:
            yield change
        else:
            yield from changes(change.before, change.now, f"{change.key}.")
