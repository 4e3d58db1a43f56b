"""What the training of a transformer starts from: sizes, vocabulary, image tokenizer, weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

import jax
import numpy as np

from lwm_core import vqgan, weight_tree, world
from lwm_core.config import END_MARKERS, ModelConfig
from lwm_core.data.prose import read_prose
from lwm_core.distributed import on_first, put
from lwm_core.errors import ConfigError, ModelNotFound, TextOnly
from lwm_core.lora import Merged
from lwm_core.parameters import adapters, parameters
from lwm_core.source import Source, open_image, open_source
from lwm_core.tokenizer import FILE as TOKENIZER
from lwm_core.tokenizer import Tokenizer, train_tokenizer
from lwm_core.tokens import SYSTEM, FrameLayout
from lwm_core.train.language import fresh_params
from lwm_core.train.recipe import LanguageRecipe, TransformerSize
from lwm_core.train.sources import spelled_in
from lwm_core.vocabulary import AnyTokenizer
from lwm_core.weight_tree import Params
from lwm_core.weights import read_stacked

PICTURED = ("see", "make", "move")
"""Kinds of lessons with pictures."""
TABLES = ("embed", "head")
"""Parameters with a row for each id."""


@dataclass(frozen=True)
class Start:
    """A model before its first step: a `source` to go on from, or fresh weights.

    `config` may have more ids than the source, those of its image tokenizer. `prose` is what the
    lessons quote.
    """

    config: ModelConfig
    tokenizer: AnyTokenizer
    image: vqgan.VQGAN | None
    prose: str
    source: Source | None = None

    def params(self, config: ModelConfig, seed: int, shapes: Params) -> Params:
        """Weights of these names, dtypes and places; what is fresh is a function of the seed.

        `config` is that of the model, or the same with adapters.
        """
        wanted = weight_tree.flatten(shapes)
        if self.source is None:
            codebook = np.asarray(self.image.codebook[...]) if self.image else None

            def fresh() -> dict[str, jax.Array]:
                drawn = weight_tree.flatten(fresh_params(config, seed, codebook))
                return {name: drawn[name].astype(one.dtype) for name, one in wanted.items()}

            places = {name: one.sharding for name, one in wanted.items()}
            return weight_tree.nest(jax.jit(fresh, out_shardings=places)())
        factors = weight_tree.draw(adapters(config), jax.random.key(seed))
        flat = weight_tree.flatten(factors).items()
        drawn = ((name, weight) for name, weight in flat if name in wanted)
        return weight_tree.nest(
            {
                name: put(np.asarray(weight, wanted[name].dtype), wanted[name].sharding)
                for name, weight in chain(self._read(self.source, seed, wanted), drawn)
            }
        )

    def fingerprint(self) -> dict[str, str]:
        """Digests of what it is, by name: all processes must start from the same."""
        facts = {}
        if self.image:
            facts["the image tokenizer"] = vqgan.fingerprint(self.image)
        if self.source:
            state = sha256(json.dumps(self.source.config.to_json()).encode())
            for name, parameter in parameters(self.source.config).items():
                first = self.source.weights.read(name, 0 if parameter.stacked else None)
                state.update(np.asarray(first[:1], np.float32).tobytes())
            facts["the model to start from"] = state.hexdigest()[:16]
        return facts

    def _read(
        self, source: Source, seed: int, names: Container[str]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Weights of the files; rows of ids that they don't know are drawn at random."""
        more = self.config.vocab - source.config.vocab
        for name, weight in read_stacked(source.weights, source.config, names=names):
            if more and name in TABLES:
                rng = np.random.default_rng((seed, TABLES.index(name)))
                known = weight.astype(np.float32)
                rows = rng.normal(known.mean(), known.std(), (more, known.shape[1]))
                weight = np.concatenate([known, rows.astype(np.float32)])
            yield name, weight


def start_of(recipe: LanguageRecipe, output: Path, *, begins: bool) -> Start:
    """What a recipe starts from, in a run that `begins` or one that goes on.

    Raises ConfigError for an image tokenizer that is missing or does not fit, UsageError for prose
    or data that can't be read, TrainingError when these give no vocabulary, and what `open_source`
    raises for a model that can't be opened.
    """
    prose = _prose(recipe)
    if recipe.start_from:
        return _from_model(recipe, recipe.start_from, prose)
    image = _image_tokenizer(recipe.image_tokenizer) if recipe.image_tokenizer else None
    _check_pictures(recipe, image)
    assert recipe.model is not None  # the recipe has checked it
    coming = _fresh_config(recipe.model, recipe.tokenizer, image)
    tokenizer = _trained_tokenizer(recipe, FrameLayout.of(coming), output, prose, begins)
    return Start(_fresh_config(recipe.model, tokenizer.vocab_size, image), tokenizer, image, prose)


def sizes_of(recipe: LanguageRecipe) -> ModelConfig:
    """The sizes of the model that a recipe trains: nothing is trained or written for it.

    A model that it starts from is opened, and an image tokenizer read whole. Raises what `start_of`
    does for these.
    """
    if recipe.start_from:
        config = _from_model(recipe, recipe.start_from, "").config
    else:
        image = _image_tokenizer(recipe.image_tokenizer) if recipe.image_tokenizer else None
        assert recipe.model is not None  # the recipe has checked it
        config = _fresh_config(recipe.model, recipe.tokenizer, image)
    return dataclasses.replace(config, lora=recipe.lora)


def _prose(recipe: LanguageRecipe) -> str:
    paths = recipe.prose or (None,)
    return "".join(
        passage for path in paths for passage in read_prose(Path(path) if path else None)
    )


def _from_model(recipe: LanguageRecipe, name: str, prose: str) -> Start:
    """A model of any form, with the context and the pictures that the recipe gives it."""
    source = open_source(name)
    if source.config.quantized:
        raise ConfigError(
            f"start_from: {name} is quantized and can't learn: give the model that it was made of"
        )
    if recipe.lora and isinstance(source.weights, Merged):
        raise ConfigError(
            f"start_from: {name} is an adapter itself; merge it first: lwm convert {name} DIR"
        )
    config, image = source.config, source.image
    if recipe.image_tokenizer:
        image = _image_tokenizer(recipe.image_tokenizer)
        if not config.vision_vocab:
            config = _seeing(config, image)
        if reason := config.misfit(image.config):
            raise ConfigError(
                f"image_tokenizer: {recipe.image_tokenizer} does not fit {name}: {reason}"
            )
    _check_pictures(recipe, image)
    if recipe.extend:
        length, theta = recipe.extend.max_length, recipe.extend.rope_theta
        config = dataclasses.replace(config, max_length=length, rope_theta=theta)
    for index, stage in enumerate(recipe.stages):
        if stage.length > config.max_length:
            raise ConfigError(
                f"stages[{index}].length is {stage.length}, and {name} was made for "
                f"{config.max_length} tokens; give it more in extend.max_length"
            )
    return Start(config, source.tokenizer, image, prose, source)


def _image_tokenizer(name: str) -> vqgan.VQGAN:
    """The image tokenizer of a model. Raises ConfigError where there is none."""
    try:
        return open_image(name)
    except (TextOnly, ModelNotFound) as error:
        raise ConfigError(
            f"image_tokenizer: {name} holds no vqgan/ folder; train an image tokenizer first "
            "(for nano: lwm train nano-vqgan), or name another model"
        ) from error


def _check_pictures(recipe: LanguageRecipe, image: vqgan.VQGAN | None) -> None:
    """Raise ConfigError for lessons with pictures where there is no image tokenizer."""
    shares = (stage.mix.get(kind) for stage in recipe.stages for kind in PICTURED)
    if image is None and not recipe.data and any(shares):
        raise ConfigError("stages.mix: pictures need an image_tokenizer")


def _seeing(config: ModelConfig, image: vqgan.VQGAN) -> ModelConfig:
    """The sizes of a model that has the ids of an image tokenizer's codes too."""
    return dataclasses.replace(
        config,
        vision_vocab=image.config.codes + END_MARKERS,
        vision_codes=image.config.codes,
        frame_codes=image.config.grid**2,
    )


def _fresh_config(size: TransformerSize, text_vocab: int, image: vqgan.VQGAN | None) -> ModelConfig:
    config = ModelConfig(
        text_vocab=text_vocab,
        hidden=size.hidden,
        intermediate=size.intermediate,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.kv_heads or size.heads,
        head_dim=size.hidden // size.heads,
        max_length=size.max_length,
        rope_theta=size.rope_theta,
        tie_embeddings=size.tie_embeddings,
    )
    return _seeing(config, image) if image else config


def _trained_tokenizer(
    recipe: LanguageRecipe, layout: FrameLayout, output: Path, prose: str, begins: bool
) -> Tokenizer:
    """A vocabulary of what is taught, the recipe's data or the lessons, in the output.

    A run that `begins` trains it anew: one that lies there may be of another recipe.
    """
    path = output / TOKENIZER

    def write() -> None:
        texts = spelled_in(recipe.data, layout) if recipe.data else _texts(prose)
        output.mkdir(parents=True, exist_ok=True)
        train_tokenizer(texts, path, recipe.tokenizer)

    if begins:
        on_first("the tokenizer", write)
    return Tokenizer.load(path)


def _texts(prose: str) -> list[str]:
    """Texts that show how often each word will be met: the world's words and the prose."""
    texts = [line for line in prose.splitlines() if line.strip()]
    examples = world.stream(0, prose, size=8, frames=(1, 4), characters=(100, 200))
    for _ in range(4000):
        for question, answer in next(examples).exchanges:
            texts += [f"{SYSTEM} USER: {question} ASSISTANT: <vision>", answer]
            texts.append("Generate an image of a video of")
    return texts
