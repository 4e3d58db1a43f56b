"""By which recipe and of what an output came to be: noted there, compared when its run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lwm_core.atomic import write_text
from lwm_core.distributed import is_first, wait_for_all
from lwm_core.errors import ConfigError, FormatError, UsageError
from lwm_core.source import TRAINED_BY
from lwm_core.train.recipe import (
    Change,
    ImageRecipe,
    LanguageRecipe,
    changes,
    read_recipe,
    to_document,
)

RECIPE = TRAINED_BY
ORIGIN = "origin.json"
"""The file of digests of what a run learns from."""


def note(
    recipe: ImageRecipe | LanguageRecipe, fingerprint: Mapping[str, str], output: Path
) -> None:
    """Write both to the output directory, which is made if need be.

    Raises UsageError in a process that doesn't see there what the first has written.
    """
    path = output / RECIPE
    if is_first():
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / ORIGIN, json.dumps(fingerprint, indent=2) + "\n")
        write_text(path, json.dumps(to_document(recipe), indent=2) + "\n")
    wait_for_all("the recipe")
    if not path.exists():
        raise UsageError(f"{output} is not the first process's; choose -o on a disk that all share")


def compare_recipe(recipe: ImageRecipe | LanguageRecipe, output: Path) -> None:
    """Raise ConfigError naming the first key that may not differ from the recipe noted there."""
    for change in changed(recipe, output):
        if not change.is_adjustable:
            raise ConfigError(
                f"{change.key}: differs from {output / RECIPE}, by which this run began; put it "
                "back, or choose -o"
            )


def changed(recipe: ImageRecipe | LanguageRecipe, output: Path) -> list[Change]:
    """In what a recipe differs from the one noted in an output.

    Whoever removed a damaged one goes on without; one that can't be read is a FormatError.
    """
    path = output / RECIPE
    if not path.exists():
        return []
    try:
        before = to_document(read_recipe(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError, ConfigError) as error:
        raise FormatError(f"{path}: no recipe: {error}; remove it to go on without") from error
    return list(changes(before, to_document(recipe)))


def compare_origin(fingerprint: Mapping[str, str], output: Path) -> None:
    """Raise ConfigError naming the first digest that is not the one noted there, if any is."""
    path = output / ORIGIN
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            name for name, digest in fingerprint.items() if before.get(name, digest) != digest
        ]
    except FileNotFoundError:
        return
    except (ValueError, AttributeError) as error:
        raise FormatError(f"{path} is damaged; remove it to go on without") from error
    if changed:
        raise ConfigError(
            f"{changed[0]} is not what this run began with: put it back, choose -o, or remove "
            f"{path} to go on all the same"
        )
