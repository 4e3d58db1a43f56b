"""From options to a loaded model and the way it draws its tokens."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lwm_core.distributed import agree
from lwm_core.errors import FormatError

if TYPE_CHECKING:
    from lwm_cli.ui import Screen
    from lwm_core.config import ModelConfig
    from lwm_core.load import LoadedModel
    from lwm_core.sampling import Sampling

# What the published models were shown with; a model's own defaults go before them.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "chat": {"temperature": 0.2, "top_k": 50},
    "see": {"temperature": 0.0},
    "draw": {"guidance": 5.0, "top_k": 8192, "temperature": 1.0},
    "film": {"guidance": 1.0, "top_k": 1000, "temperature": 1.0},
}


def picture_size(model: str) -> int:
    """Side in pixels of the pictures that a model sees; larger ones need not be kept."""
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.source import picture_size

    return picture_size(model)


def load(name: str, screen: Screen, **settings: Any) -> LoadedModel:
    """Load a model by name or path and show how far that is; `settings` as `load_model` takes."""
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.load import load_model

    model = load_model(name, on_progress=screen.progress, **settings)
    for line in model.assumed:
        screen.note(f"{model.name} does not say all; taken: {line}")
    if model.hint:
        screen.note(model.hint)
    if model.context > model.config.max_length:
        screen.note(beyond(model.name, model.config, model.context))
    if screen.verbose:
        about = (model.name, model.numbers, f"{model.context} tokens of context", model.device)
        screen.note(" · ".join(about))
    return model


def beyond(name: str, config: ModelConfig, context: int) -> str:
    """What it takes to use a model beyond the context that it was made for."""
    from lwm_core.plan import usual_theta

    theta = max(usual_theta(context), config.rope_theta)
    return (
        f"{name} was made for {config.max_length:,} tokens and a rotary base of "
        f"{config.rope_theta:g}; models of {context:,} are trained with {theta:g}"
    )


def sampling_for(task: str, model: LoadedModel, **given: Any) -> Sampling:
    """How to draw tokens for `task` (chat, see, draw, film).

    An option that was given goes first, then what the model's configuration says, then the
    habits of the published models. Options left out are None. Raises FormatError when the
    model's configuration says what sampling does not know.
    """
    from lwm_core.sampling import Sampling

    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return Sampling(**{**_DEFAULTS[task], **model.defaults.get(task, {}), **chosen})
    except TypeError as error:
        raise FormatError(f"{model.name}: its defaults for {task} are wrong: {error}") from error


def seed_or_random(seed: int | None) -> int:
    """The seed that was given, or a fresh one (the closing line names it), the same everywhere."""
    return agree(int.from_bytes(os.urandom(4)) >> 1) if seed is None else seed
