"""The model under examination, in this process or behind the command `lwm`: one interface."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .clips import read_frames

if TYPE_CHECKING:
    from lwm_core.sampling import Sampling

Settings = dict[str, float]  # temperature, top_k, guidance of draw and film: those that were given
Numbers = dict[str, str | None]  # dtype and quantize, None where not given


class Examinee(Protocol):
    """What the examiner needs; pictures are uint8 [H, W, 3]."""

    def answer(self, media: Path, question: str) -> str: ...
    def draw(self, prompts: Sequence[str], seed: int) -> list[np.ndarray]: ...
    def film(self, prompt: str, seed: int) -> list[np.ndarray]: ...


class InProcess:
    """The model loaded once and called through lwm_core; answers are greedy."""

    def __init__(self, name: str | None, numbers: Numbers, settings: Settings) -> None:
        from lwm_core import generate, load, media, sampling

        self.generate, self.read_media = generate, media.read_media
        self.model = load.load_model(name or "nano", **numbers)
        self.greedy = sampling.Sampling(temperature=0.0)
        self.sampling = sampling.Sampling
        self.settings = {
            task: {**self.model.defaults.get(task, {}), **settings} for task in ("draw", "film")
        }

    def _habits(self, task: str, seed: int) -> Sampling:
        return self.sampling(**self.settings[task], seed=seed)

    def answer(self, media: Path, question: str) -> str:
        codes = self.generate.encode_media(self.model, self.read_media(media).frames)
        message = self.generate.Message("user", question, (codes,))
        pieces = self.generate.reply(self.model, [message], sampling=self.greedy, max_tokens=64)
        return "".join(pieces).strip()

    def draw(self, prompts: Sequence[str], seed: int) -> list[np.ndarray]:
        events = self.generate.draw(self.model, prompts, sampling=self._habits("draw", seed))
        done = {e.row: e.pixels for e in events if getattr(e, "complete", False)}
        return [done[row] for row in range(len(prompts))]

    def film(self, prompt: str, seed: int) -> list[np.ndarray]:
        events = self.generate.film(
            self.model,
            prompt,
            frames=8,
            sampling=self._habits("film", seed),
            image_sampling=self._habits("draw", seed),
        )
        done = {e.index: e.pixels for e in events if getattr(e, "complete", False)}
        return [done[index] for index in sorted(done)]


class CommandLine:
    """The command as a user types it, one start for each task."""

    def __init__(self, name: str | None, numbers: Numbers, settings: Settings) -> None:
        here = str(Path(sys.executable).parent)
        found = shutil.which("lwm", path=os.pathsep.join((here, os.environ.get("PATH", ""))))
        if not found:
            raise SystemExit("the command lwm was not found: install the package first")
        given = {"model": name, **numbers}
        self.lwm = found
        self.model = [word for key, value in given.items() if value for word in (f"--{key}", value)]
        options = ([f"--{key.replace('_', '-')}", f"{value:g}"] for key, value in settings.items())
        self.settings = [word for option in options for word in option]

    def _run(self, *words: str) -> str:
        command = [self.lwm, *words, *self.model]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} failed: {done.stderr.strip()[-400:]}")
        return done.stdout.strip()

    def _make(self, verb: str, prompt: str, seed: int, suffix: str) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / f"made{suffix}"
            self._run(verb, prompt, "-o", str(output), "--seed", str(seed), *self.settings)
            return read_frames(output)

    def answer(self, media: Path, question: str) -> str:
        return self._run("see", str(media), question)

    def draw(self, prompts: Sequence[str], seed: int) -> list[np.ndarray]:
        return [self._make("draw", prompt, seed + i, ".png")[0] for i, prompt in enumerate(prompts)]

    def film(self, prompt: str, seed: int) -> list[np.ndarray]:
        return self._make("film", prompt, seed, ".mp4")
