"""`lwm train`: train a text model, a vision-language model or an image tokenizer from a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lwm_cli import curves, options
from lwm_cli.failures import explain
from lwm_cli.live import LiveView
from lwm_cli.ui import Screen
from lwm_core.distributed import is_first
from lwm_core.errors import ConfigError, ModelNotFound, TrainingError, UsageError
from lwm_core.hardware import GIB, training_devices

LONGEST_VALUE = 60
"""Characters of a value that differs, at most."""

if TYPE_CHECKING:
    from lwm_core.train import ImageRecipe, LanguageRecipe, TrainEvent


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
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint there, if there is one."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show all settings, and what a step will take; no more."),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option("--keep", min=1, metavar="N", help="Checkpoints that stay, the newest."),
    ] = None,
    mesh: options.Mesh = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too.")
    ] = False,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Send curves to Weights & Biases too.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a model by a recipe.

    Metrics, checkpoints, a report with curves and samples, and at the end the model directory go
    to the output directory.
    """
    recipe = _changed(_read(config), settings or ())
    if keep:
        recipe["keep"] = keep
    folder = output or Path("runs") / Path(config).stem
    from lwm_core import backend

    # Before the next line brings in jax.
    backend.prepare(cpu_devices=training_devices(mesh))
    from lwm_core.train import changed, read_recipe, to_document, train

    checked = read_recipe(recipe)
    with Screen(quiet=quiet, verbose=verbose) as screen:
        if dry_run:
            typer.echo(json.dumps(to_document(checked), indent=2))
            _show_plan(checked, mesh, screen)
            return
        for change in changed(checked, folder) if resume else ():
            screen.note(f"{change.key} was {_told(change.before)} and is {_told(change.now)} now")
        events = train(recipe, output=folder, resume=resume, mesh=mesh)
        if is_first():
            logs = []
            if tensorboard:
                logs.append(curves.tensorboard(folder / "curves"))
            if wandb:
                logs.append(curves.wandb(folder, to_document(checked), resume=resume))
            events = _reported(curves.logged(events, logs), folder, screen)
            if resume:
                events = _begun(events, folder, screen)
        typer.echo(_follow(events, screen))


def _show_plan(recipe: ImageRecipe | LanguageRecipe, mesh: str, screen: Screen) -> None:
    """Say what a step of a transformer's training takes, as far as its model is here."""
    from lwm_core.train import LanguageRecipe, plan_of, sizes_of

    if not isinstance(recipe, LanguageRecipe):
        return
    try:
        config = sizes_of(recipe)
    except (ModelNotFound, ConfigError) as error:
        screen.note(f"no plan: {error}")
        return
    made, _ = plan_of(recipe, mesh, config)
    has = made.topology.chip.memory
    screen.note(
        f"{made.topology}, {made.mesh}, rematerialisation {made.remat}\n"
        f"{made.memory.total / GIB:.2f} of {has / GIB:.1f} GiB on each device"
        f"{'' if made.fits else ': it does not fit'}\n"
        f"{made.seconds:.3g} s a step by the plan, bound by {made.bound}"
    )


def _told(value: object) -> str:
    """A value of a recipe, at most as long as a line."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _begun(events: Iterable[TrainEvent], folder: Path, screen: Screen) -> Iterator[TrainEvent]:
    """The same events; where there is nothing to go on from, it is said: -o may be misspelt."""
    for event in events:
        if event.kind == "start" and not event.step:
            screen.note(f"{folder} holds no checkpoint to go on from: this run begins anew")
        yield event


def _reported(events: Iterable[TrainEvent], folder: Path, screen: Screen) -> Iterator[TrainEvent]:
    """The same events; the report is as new as the last checkpoint, and whole at the end.

    So it is where training fails, as it may show why. One that can't be made is noted, once.
    """
    begun, trouble = False, ""
    try:
        for event in events:
            begun = True
            if event.kind in ("checkpoint", "done"):
                before, trouble = trouble, _report(folder)
                if trouble and not before:
                    screen.note(f"no report: {trouble}")
            yield event
    except TrainingError:
        if begun:
            _report(folder)  # why the run failed is what must be heard, not this one's trouble
        raise


def _report(folder: Path) -> str:
    """Write the report of a run; why it can't be made, which is no reason to end the run."""
    from lwm_core.train.report import write_report

    try:
        write_report(folder)
    except Exception as error:  # of many kinds: whatever may lie in the folder
        return explain(error)[0]
    return ""


def _follow(events: Iterable[TrainEvent], screen: Screen) -> str:
    """Show the events as they come; returns the path of the model."""
    view = LiveView(screen)
    made = ""
    for event in events:
        view.show(event)
        if event.kind == "done":
            made = event.path
    view.close()
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
