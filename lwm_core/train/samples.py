"""Samples of a model that learns: what it makes of held-out prompts, kept step by step.

samples/00000100/samples.json     what was asked, and what was answered or which file was made
                /2.png  3.webp    pictures and clips, by the number of their prompt
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from lwm_core.atomic import write_text
from lwm_core.distributed import on_first
from lwm_core.errors import ConfigError, LwmError, OutputError, TextOnly, is_out_of_memory
from lwm_core.generate import Message, complete, draw, encode_media, film, reply
from lwm_core.load import LoadedModel
from lwm_core.media import prepare, read_media, write_image, write_video
from lwm_core.sampling import Sampling
from lwm_core.train.agreement import everyone
from lwm_core.types import Frame, Progress

Task = Literal["text", "chat", "see", "draw", "film"]
FILE = "samples.json"
FPS = 4
LIKELIEST = {"temperature": 0.0}
"""How words are drawn unless the model has other habits."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked while it learns.

    The task `text` goes on with the text, `chat` answers it, `see` answers it about a file of
    `media`, `draw` makes a picture of it and `film` a clip. Of a clip there are at most `frames`,
    of an answer `max_tokens`. Raises ConfigError for what is out of bounds.
    """

    task: Task
    text: str
    media: str | None = None
    frames: int = 8
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ConfigError(f"task is {self.task!r}; choose one of {', '.join(get_args(Task))}")
        if (self.task == "see") != (self.media is not None):
            raise ConfigError("media: the task 'see' needs a file, the others take none")
        for name in ("frames", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Sample:
    """What came of a prompt: words, a picture or clip uint8 `[F, height, width, 3]`, or why not.

    Of the task `see` the frames are those that the model saw.
    """

    answer: str = ""
    frames: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class Round:
    """All samples of one step, as they lie in a folder: `task`, `text`, `answer`, `file`, …"""

    step: int
    folder: Path
    samples: list[dict[str, Any]]


def write_samples(model: LoadedModel, prompts: Sequence[Prompt], folder: Path, step: int) -> Path:
    """Ask a model each prompt and keep what it makes in a folder of the step, which is returned.

    The seed is always the same, so what changes from step to step was learned. A prompt that
    can't be met, say because the context or the memory has no room, costs its own sample and no
    other. All processes must take part; the first writes. Raises OutputError.
    """
    shown = [_shown(model, prompt) for prompt in prompts]
    # What one process can't see none is asked about: the others would wait for it.
    refusals = map(max, zip(*everyone([one.error for one in shown]), strict=True))
    samples = [
        Sample(error=refusal) if refusal else _sample(model, prompt, one.frames)
        for prompt, one, refusal in zip(prompts, shown, refusals, strict=True)
    ]
    place = folder / f"{step:08d}"
    on_first("the samples", partial(_write, place, step, prompts, samples))
    return place


def read_samples(folder: Path) -> list[Round]:
    """What `write_samples` has left in a folder, by step; what is damaged is left out."""
    rounds = []
    for path in folder.glob(f"*/{FILE}"):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            samples = [dict(one) for one in kept["samples"]]
            rounds.append(Round(int(kept["step"]), path.parent, samples))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(rounds, key=lambda one: one.step)


def _shown(model: LoadedModel, prompt: Prompt) -> Sample:
    """The frames that a prompt is about, as large as the model sees them, or why there are none."""
    if prompt.media is None:
        return Sample()
    try:
        if model.vqgan is None:
            raise TextOnly(model.name)
        frames = read_media(prompt.media, frames=prompt.frames).frames
    except LwmError as error:
        return Sample(error=str(error))
    return Sample(frames=prepare(frames, model.vqgan.config.resolution))


def _sample(model: LoadedModel, prompt: Prompt, seen: np.ndarray | None) -> Sample:
    """What comes of a prompt about frames `seen`."""
    try:
        return _asked(model, prompt, seen)
    except LwmError as error:
        return Sample(error=str(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Sample(error="out of memory; fewer frames or max_tokens need less")


def _asked(model: LoadedModel, prompt: Prompt, seen: np.ndarray | None) -> Sample:
    if prompt.task == "draw":
        return Sample(frames=_frames(draw(model, [prompt.text], sampling=_habits(model, "draw"))))
    if prompt.task == "film":
        first, others = _habits(model, "draw"), _habits(model, "film")
        events = film(
            model, prompt.text, frames=prompt.frames, sampling=others, image_sampling=first
        )
        return Sample(frames=_frames(events))
    if prompt.task == "text":
        habits = _habits(model, "chat")
        written = complete(model, [prompt.text], sampling=habits, max_tokens=prompt.max_tokens)
        return Sample(written[0])
    media = () if seen is None else (encode_media(model, seen),)
    pieces = reply(
        model,
        [Message("user", prompt.text, media)],
        sampling=_habits(model, prompt.task),
        max_tokens=prompt.max_tokens,
    )
    return Sample("".join(pieces), seen)


def _habits(model: LoadedModel, task: str) -> Sampling:
    usual = {} if task in ("draw", "film") else LIKELIEST
    return Sampling(**{**usual, **model.defaults.get(task, {}), "seed": 0})


def _frames(events: Iterable[Progress | Frame]) -> np.ndarray:
    """The whole frames of the one row that was asked for."""
    return np.stack([one.pixels for one in events if isinstance(one, Frame) and one.complete])


def _write(place: Path, step: int, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place}: can't be written: {error.strerror}") from error
    lines = []
    for number, (prompt, sample) in enumerate(zip(prompts, samples, strict=True), 1):
        made = {"answer": sample.answer, "error": sample.error}
        if sample.frames is not None:
            made["file"] = _keep(place / str(number), sample.frames)
        asked = {name: value for name, value in dataclasses.asdict(prompt).items() if value}
        lines.append(asked | {name: value for name, value in made.items() if value})
    document = {"step": step, "samples": lines}
    # Last, so that a folder without it is one that was not finished.
    write_text(place / FILE, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _keep(stem: Path, frames: np.ndarray) -> str:
    """Write a picture or a clip, one that every browser shows; returns the file's name."""
    path = stem.with_suffix(".png" if len(frames) == 1 else ".webp")
    if len(frames) == 1:
        write_image(path, frames[0], force=True)
    else:
        write_video(path, frames, FPS, force=True)
    return path.name
