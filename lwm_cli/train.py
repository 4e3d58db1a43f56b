"""`lwm train`: train a text model, a vision-language model or an image tokenizer from a recipe."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lwm_cli import options
from lwm_cli.curves import drawn
from lwm_cli.ui import Screen
from lwm_core.distributed import is_first
from lwm_core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from lwm_core.train import TrainEvent

SECONDS_BETWEEN_LINES = 10.0


def complete_recipe(incomplete: str) -> list[str]:
    """Names of the package's recipes that begin with what has been typed."""
    return [name for name in _recipe_names() if name.startswith(incomplete)]


def run(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A TOML file, or the name of a recipe of the package.",
            autocompletion=complete_recipe,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one of its settings (repeatable)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Where results go; by default runs/NAME."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the settings and show them; train nothing.")
    ] = False,
    mesh: options.Mesh = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a model by a recipe.

    Metrics, checkpoints and at the end the model directory go to the output directory.
    """
    recipe = _changed(_read(config), settings or ())
    folder = output or Path("runs") / Path(config).stem
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.train import read_recipe, to_document, train

    checked = read_recipe(recipe)
    if dry_run:
        typer.echo(json.dumps(to_document(checked), indent=2))
        return
    with Screen(quiet=quiet, verbose=verbose) as screen:
        events = train(recipe, output=folder, resume=resume, mesh=mesh)
        if tensorboard and is_first():
            events = drawn(events, folder / "curves")
        typer.echo(_follow(events, screen))


def _follow(events: Iterable[TrainEvent], screen: Screen) -> str:
    """Draw the bar with the latest metrics; where there is none, now and then a line.

    Returns the path of what was made.
    """
    from lwm_core.types import Progress

    made = ""
    last_line = 0.0
    for event in events:
        metrics = "".join(f"  {name} {value:.4g}" for name, value in event.metrics.items())
        made = event.path or made
        if event.kind == "step" and screen.is_terminal:
            screen.progress(Progress("training", event.step, event.total, f"steps{metrics}"))
        elif event.kind != "step" or time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            screen.note(f"{event.kind} {event.step}/{event.total}{metrics}")
    return made


def _recipe_names() -> list[str]:
    recipes = files("lwm_core") / "recipes"
    if not recipes.is_dir():
        return []
    return sorted(Path(file.name).stem for file in recipes.iterdir() if file.name.endswith(".toml"))


def _read(config: str) -> dict[str, Any]:
    """The settings of a TOML file or of a recipe of the package. Raises UsageError, ConfigError."""
    import tomllib

    is_recipe = config in _recipe_names()  # as with models, ./nano is a file
    place = files("lwm_core") / "recipes" / f"{config}.toml" if is_recipe else Path(config)
    try:
        return tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(_recipe_names())
        raise UsageError(f"can't open {config}: {error.strerror}; recipes are {known}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{config} is no valid TOML: {error}") from error


def _changed(recipe: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The recipe with `key=value` settings, such as `steps=20` or `stages.0.rows=4`.

    Raises UsageError for what is no setting and ConfigError where the recipe has no such place.
    """
    for setting in settings:
        key, equals, value = setting.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise UsageError(f"--set {setting}: write it as key=value or table.key=value")
        try:
            _assign(recipe, parts, _value(value.strip()))
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"--set {setting}: the recipe has no such place") from error
    return recipe


def _assign(place: Any, parts: Sequence[str], value: Any) -> None:
    """Put a value into nested lists and tables; tables that are missing come to be."""
    first, *rest = parts
    key = int(first) if isinstance(place, list) else first
    if not rest:
        place[key] = value
        return
    _assign(place.setdefault(key, {}) if isinstance(place, dict) else place[key], rest, value)


def _value(text: str) -> Any:
    """A TOML value; what is none is taken as text."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
