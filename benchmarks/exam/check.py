"""Is the measurer itself right? It measures our own scenes, degraded, whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .clips import SIDE, frames, render, scenes
from .make import as_asked, caption, measured
from .measure import measure_film
from .report import Record, counted, totals, write_sheet

FILM_FRAMES = 8
NEEDED = 0.98


def degrade(picture: Image.Image, source: np.random.Generator) -> np.ndarray:
    """As a small image tokenizer would: 64 pixels wide, blurred, noisy, enlarged again."""
    small = picture.resize((64, 64), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7))
    noisy = np.asarray(small) + source.normal(0, 4, (64, 64, 3))
    small = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def check_pictures(count: int, seed: int, folder: Path) -> list[Record]:
    """Measure `count` degraded pictures; a sheet of the mistakes stays in `folder`."""
    source, records, cells = np.random.default_rng(seed), [], []
    for scene in counted(scenes(count, seed), "check pictures"):
        pixels = degrade(render(scene), source)
        asked = as_asked(scene, "colour", "shape", "ground")
        records.append(Record("check pictures", scene.name, asked, measured(pixels), scene.name))
        if records[-1].mistakes:
            cells.append(([Image.fromarray(pixels)], caption(records[-1])))
    write_sheet(folder / "check_mistakes.png", cells)
    return records


def check_films(count: int, seed: int) -> list[Record]:
    """Measure `count` degraded films of the four directions."""
    source, records = np.random.default_rng(seed), []
    for scene in counted(scenes(count, seed, moving_only=True), "check films"):
        film = [degrade(picture, source) for picture in frames(scene, FILM_FRAMES)]
        asked = as_asked(scene, "direction", "colour", "shape", "ground")
        records.append(Record("check films", scene.name, asked, measure_film(film), scene.name))
    return records


def require(records: list[Record]) -> None:
    """End the program unless every attribute was measured right often enough."""
    for attribute, rows in totals(records).items():
        right, count = rows["total"]
        if right < NEEDED * count:
            raise SystemExit(f"unfit to measure {attribute}: {right}/{count}, {NEEDED:.0%} needed")
    print(f"\nfit to measure: every attribute at least {NEEDED:.0%} right")
