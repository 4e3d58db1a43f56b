"""Can the model make what was asked? Its pictures and films, measured without the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .clips import Scene, scenes, write_clip
from .examinee import Examinee
from .measure import measure, measure_film
from .report import Attributes, Record, counted, write_sheet

BATCH = 14


def prompt(scene: Scene, *, moving: bool) -> str:
    motion = f" moving {scene.motion}" if moving else ""
    thing = f"{scene.colour} {scene.shape}{motion} on {_article(scene.ground)} background"
    return _article(thing)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def measured(picture: np.ndarray) -> Attributes:
    finding = measure(picture)
    names = ("colour", "shape", "ground")
    return {name: getattr(finding, name, None) for name in names}


def as_asked(scene: Scene, *attributes: str) -> dict[str, str]:
    truth = scene.asked | {"ground": scene.ground}
    return {name: truth[name] for name in attributes}


def examine_draw(model: Examinee, count: int, seed: int, folder: Path) -> list[Record]:
    """Ask for `count` pictures, in batches; they and a contact sheet stay in `folder`."""
    records: list[Record] = []
    cells = []
    wanted = scenes(count, seed)
    batches = [wanted[start : start + BATCH] for start in range(0, count, BATCH)]
    for number, batch in enumerate(counted(batches, "draw")):
        prompts = [prompt(scene, moving=False) for scene in batch]
        pictures = model.draw(prompts, seed + number * BATCH)
        for scene, words, pixels in zip(batch, prompts, pictures, strict=True):
            name = f"draw_{len(records):03}_{scene.colour}_{scene.shape}.png"
            picture = Image.fromarray(pixels)
            picture.save(folder / name)
            asked = as_asked(scene, "colour", "shape", "ground")
            records.append(Record("draw", name, asked, measured(pixels), words))
            cells.append(([picture], caption(records[-1])))
    write_sheet(folder / "draw.png", cells)
    return records


def examine_film(model: Examinee, count: int, seed: int, folder: Path) -> list[Record]:
    """Ask for `count` films, one by one; they and a contact sheet stay in `folder`."""
    records, cells = [], []
    for index, scene in enumerate(counted(scenes(count, seed, moving_only=True), "film")):
        words = prompt(scene, moving=True)
        film = model.film(words, seed + index)
        name = f"film_{index:03}_{scene.name}.mp4"
        pictures = [Image.fromarray(pixels) for pixels in film]
        write_clip(folder / name, pictures)
        asked = as_asked(scene, "direction", "colour", "shape", "ground")
        records.append(Record("film", name, asked, measure_film(film), words))
        cells.append((pictures[:: max(1, len(pictures) // 4)][:5], caption(records[-1])))
    write_sheet(folder / "film.png", cells)
    return records


def caption(record: Record) -> str:
    wrong = ", ".join(f"{name} {record.found.get(name)}" for name in record.mistakes)
    return f"{record.answer[:60]}\n{wrong and 'FOUND: ' + wrong}"
