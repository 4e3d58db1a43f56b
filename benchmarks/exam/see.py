"""Does the model see? Colour, shape and motion in its answers about our clips and pictures."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from .clips import COLOURS, FRAMES, SHAPES, Scene, frames, render, scenes, write_clip
from .examinee import Examinee
from .report import Attributes, Record, counted, write_sheet

QUESTIONS = {"see": "what happens?", "pictures": "what is in the picture?"}
PARTS = {
    "direction": "which way does it move?",
    "colour": "which colour is it?",
    "shape": "which shape is it?",
}
"""Questions about one thing, each asked as the first of a conversation (task `parts`)."""
MOTION_WORDS = {
    "left": r"left(?:wards?)?",
    "right": r"right(?:wards?)?",
    "up": r"up(?:wards?)?|rises?|rising",
    "down": r"down(?:wards?)?|falls?|falling",
    "growing": r"grows?|growing|bigger|larger|expands?|expanding",
    "shrinking": r"shrinks?|shrinking|smaller",
    "still": r"still|stays?|stationary|motionless|(?:does not|doesn't|is not|isn't) mov\w+",
}


def first_word(answer: str, words: dict[str, str]) -> str | None:
    """The name whose pattern comes first in the answer as a whole word; strict: only the first."""
    found = {
        name: match.start()
        for name, pattern in words.items()
        if (match := re.search(rf"\b(?:{pattern})\b", answer.lower()))
    }
    return min(found, key=lambda name: found[name]) if found else None


def understand(answer: str) -> Attributes:
    """What an answer claims; a plural of the shape counts as the shape."""
    motion = first_word(answer, MOTION_WORDS)
    return {
        "colour": first_word(answer, {colour: colour for colour in COLOURS}),
        "shape": first_word(answer, {shape: f"{shape}s?" for shape in SHAPES}),
        "direction": motion,
        "change": motion,
    }


def examine(task: str, model: Examinee, count: int, seed: int, folder: Path) -> list[Record]:
    """Ask about `count` clips (task `see`) or pictures; the media and a sheet stay in `folder`."""
    records, cells = [], []
    for index, scene in enumerate(counted(scenes(count, seed), task)):
        path, strip, asked = _media(task, scene, folder / f"{task}_{index:03}_{scene.name}")
        answer = model.answer(path, QUESTIONS[task])
        records.append(Record(task, path.name, asked, understand(answer), answer))
        cells.append((strip, _caption(records[-1])))
    write_sheet(folder / f"{task}.png", cells)
    return records


def examine_parts(model: Examinee, count: int, seed: int, folder: Path) -> list[Record]:
    """Ask about `count` moving clips, one thing at a time, without any question before it."""
    records, cells = [], []
    for index, scene in enumerate(counted(scenes(count, seed, moving_only=True), "parts")):
        path, strip, asked = _media("see", scene, folder / f"parts_{index:03}_{scene.name}")
        answers = {part: model.answer(path, question) for part, question in PARTS.items()}
        found = {part: understand(answer)[part] for part, answer in answers.items()}
        records.append(Record("parts", path.name, asked, found, " | ".join(answers.values())))
        cells.append((strip, _caption(records[-1])))
    write_sheet(folder / "parts.png", cells)
    return records


def _caption(record: Record) -> str:
    wrong = ", ".join(record.mistakes)
    return f"{record.answer[:60]}\n{wrong and 'WRONG: ' + wrong}"


def _media(task: str, scene: Scene, stem: Path) -> tuple[Path, list[Image.Image], dict[str, str]]:
    """Write the clip or picture; with a strip of it and the truth that it shows."""
    if task == "see":
        pictures, path = frames(scene), stem.with_suffix(".mp4")
        write_clip(path, pictures)
        return path, [pictures[0], pictures[FRAMES // 2], pictures[-1]], scene.asked
    picture, path = render(scene), stem.with_suffix(".png")
    picture.save(path)
    return path, [picture], {"colour": scene.colour, "shape": scene.shape}
