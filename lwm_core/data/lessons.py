"""What the embedded model learns from, as weighted tokens: the world's examples and plain prose.

Batch `index` of a stage is a function of the seed and the index alone, so a stream resumes
anywhere by its number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from lwm_core import world
from lwm_core.data.alike import stand_ins
from lwm_core.data.packing import Weighted, fill_rows, to_batch, weigh
from lwm_core.errors import ConfigError
from lwm_core.tokenizer import Tokenizer
from lwm_core.tokens import (
    SYSTEM,
    FrameLayout,
    Message,
    answer_ids,
    make_prompt,
    unconditional_prompt,
    user_ids,
)
from lwm_core.types import Batch
from lwm_core.world.stream import MIX

Encode = Callable[[np.ndarray], np.ndarray]
"""Pixels, uint8 `[F, S, S, 3]`, to codes, int32 `[F, frame_codes]`."""

KINDS = (*MIX, "prose")
"""What a stage can be mixed of."""
SEEN_FRAMES = 0.3
"""Weight of the frames that are asked about, as targets; frames to make count one."""
PROSE = 0.2
"""Weight of plain prose as a target."""
RESTING = 0.2
"""Weight of what in a clip to make stays as it was in the frame before, and of its first frame.

Which way a thing goes shows in few of the patches; first frames are learned as pictures.
"""
SEARCHED = 0.05
"""Weight of the text that hides a number, as a target: it is read anyway."""
FIRST_ONLY = 0.25
"""Share of the clips to make that become their first frame alone, a picture that begins one."""
DROPPED_PROMPTS = 0.1
"""Share of the pictures and clips to make that come without a wish, for guidance."""


@dataclass(frozen=True)
class Stage:
    """One stretch of training: its steps, the shape of a batch, and the range of the examples.

    `mix` says what share each kind of lesson has, or each source of data. Raises ConfigError,
    naming the key, for values that can't be meant.
    """

    steps: int
    length: int
    rows: int
    frames: tuple[int, int] = (1, 4)
    characters: tuple[int, int] = (100, 400)
    mix: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("length", 1), ("rows", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("frames", "characters"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ConfigError(f"{name}: {low} to {high} is no range from 1 upwards")
        for kind, share in self.mix.items():
            if not 0 <= share < math.inf:
                raise ConfigError(f"mix.{kind}: {share} is no share")
        if self.mix and not sum(self.mix.values()):
            raise ConfigError("mix: at least one share above 0 is needed")


class Lessons:
    """Batches of one tokenizer, frame layout and image tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, layout: FrameLayout, encode: Encode, size: int, prose: str
    ):
        self.tokenizer, self.layout, self.encode = tokenizer, layout, encode
        self.size, self.prose = size, prose

    def batch(self, stage: Stage, seed: int, index: int) -> Batch:
        """Batch number `index` of a stage: `[rows, length]`.

        Raises ConfigError when none of the examples is short enough for a row.
        """
        rng = np.random.default_rng((seed, index))
        waiting = _Waiting(self.layout)
        lessons = self._examples(stage, seed, index, rng, waiting.stand_in)
        rows = fill_rows(lessons, stage.rows, stage.length)
        if not any(rows):
            raise ConfigError(
                f"stages.length: no example fits {stage.length} tokens; raise it, or lower "
                "stages.frames and stages.characters"
            )
        batch = to_batch(rows, stage.length)
        ids = np.asarray(batch.inputs), np.asarray(batch.targets)
        inputs, targets = waiting.replaced(ids, self.encode)
        return batch._replace(inputs=inputs, targets=targets)

    def _examples(
        self, stage: Stage, seed: int, index: int, rng: np.random.Generator, encode: Encode
    ) -> Iterator[Weighted]:
        numbered = world.stream(
            int(np.random.SeedSequence((seed, index)).generate_state(1)[0]),
            self.prose,
            size=self.size,
            frames=stage.frames,
            characters=stage.characters,
            mix={kind: share for kind, share in stage.mix.items() if kind != "prose"},
        )
        prose = stage.mix.get("prose", 0.0) / sum(stage.mix.values())
        while True:
            if rng.random() < prose:
                yield self._prose(rng)
            else:
                yield self._lesson(next(numbered), rng, encode)

    def _lesson(self, example: world.Example, rng: np.random.Generator, encode: Encode) -> Weighted:
        """One example of the world as it is asked and answered."""
        if example.kind == "retrieval":
            prompt, answer = example.exchanges[0]
            asked = weigh(self.tokenizer.encode(prompt), SEARCHED)
            return asked + weigh(answer_ids(self.tokenizer, answer), 1.0)
        if example.kind in ("make", "move") and example.frames is not None:
            first_only = example.kind == "make" and rng.random() < FIRST_ONLY
            frames = example.frames[:1] if first_only else example.frames
            return self._make(example.exchanges[0][0], frames, rng, encode)
        media = () if example.frames is None else (encode(example.frames),)
        whole = Weighted([], [])
        for turn, (question, answer) in enumerate(example.exchanges):
            message = Message("user", question, () if turn else media)
            system = None if turn else SYSTEM
            ids = user_ids(self.tokenizer, self.layout, message, system)
            seen = [SEEN_FRAMES if token >= self.layout.offset else 0.0 for token in ids]
            whole += Weighted(ids, seen) + weigh(answer_ids(self.tokenizer, answer), 1.0)
        return whole

    def _make(
        self, prompt: str, frames: np.ndarray, rng: np.random.Generator, encode: Encode
    ) -> Weighted:
        """A wish and its frames."""
        video = len(frames) > 1
        grid = math.isqrt(self.layout.frame_codes)
        codes = encode(frames).reshape(-1)[stand_ins(frames, grid)]
        dropped = rng.random() < DROPPED_PROMPTS
        wish = (
            unconditional_prompt(self.tokenizer)
            if dropped
            else make_prompt(self.tokenizer, prompt, "video" if video else "image")
        )
        if not video:
            return weigh(wish, 0.0) + weigh(self.layout.frames(codes), 1.0)
        weights = np.full((len(codes), self.layout.frame_tokens), RESTING)
        weights[1:, :-1][codes[1:] != codes[:-1]] = 1.0
        made = Weighted(self.layout.frames(codes), weights.reshape(-1).tolist())
        return weigh(wish, 0.0) + made

    def _prose(self, rng: np.random.Generator) -> Weighted:
        """A stretch of the prose, to learn plain English from."""
        start = int(rng.integers(0, max(1, len(self.prose) - 600)))
        return weigh(self.tokenizer.encode(self.prose[start : start + 600]), PROSE)


class _Waiting:
    """Frames whose codes are wanted, if their example finds room: most of the time goes there.

    Until then numbers beyond all ids stand in for them.
    """

    FIRST = 1 << 24

    def __init__(self, layout: FrameLayout):
        self.layout = layout
        self.frames: list[np.ndarray] = []

    def stand_in(self, frames: np.ndarray) -> np.ndarray:
        """Stand-ins for the codes of frames uint8 `[F, S, S, 3]`: int32 `[F, frame_codes]`."""
        shape = len(frames), self.layout.frame_codes
        first = self.FIRST + len(self.frames) * self.layout.frame_codes
        self.frames.extend(frames)
        return np.arange(first, first + shape[0] * shape[1], dtype=np.int32).reshape(shape)

    def replaced(self, ids: tuple[np.ndarray, ...], encode: Encode) -> tuple[np.ndarray, ...]:
        """The same ids with the codes in their places; all frames are encoded in one call."""
        first = self.FIRST + self.layout.offset
        numbers = [np.unique(x[x >= first] - first) // self.layout.frame_codes for x in ids]
        used = np.unique(np.concatenate(numbers))
        if not len(used):
            return ids
        codes = np.zeros((len(self.frames), self.layout.frame_codes), np.int32)
        codes[used] = encode(np.stack([self.frames[i] for i in used]))
        tokens = codes.reshape(-1) + self.layout.offset
        return tuple(np.where(x >= first, tokens[np.maximum(x - first, 0)], x) for x in ids)
