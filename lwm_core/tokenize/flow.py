"""The pass from media to tokens: decoded in threads, encoded in batches, written in order."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lwm_core.data.records import ERRORS
from lwm_core.errors import LwmError, MediaError
from lwm_core.frame_batches import encode_frames, frames_at_once
from lwm_core.media import read_media
from lwm_core.media.choice import check_choice
from lwm_core.source import open_image
from lwm_core.tokenize.examples import Revision, examples, known_tasks, tally
from lwm_core.tokenize.folder import open_folder
from lwm_core.tokenize.manifest import Manifest
from lwm_core.tokenize.media import Failure, Medium, find_media, fingerprint
from lwm_core.types import Progress

THREADS = min(8, os.cpu_count() or 1)
"""Media that are decoded at a time; so many more wait decoded."""

Encode = Callable[[np.ndarray], np.ndarray]
"""Pixels, uint8 `[F, S, S, 3]`, to codes, int32 `[F, frame_codes]`."""
Decoded = tuple[Medium, np.ndarray | Failure]
"""A medium with its frames, uint8 `[F, S, S, 3]`, or with why there are none."""


@dataclass(frozen=True)
class Tokenized:
    """What a run has done: media and their frames, what it could not read, what was there before.

    Of `reworded` of those that were there, something else is said now; `damaged` lines were left
    out, and their media made again. `examples` counts by task what all these media are learned by;
    `wordless` of them make none and are learned by themselves. `shards` are all of the data set;
    `seconds` is how long the run took.
    """

    folder: Path
    media: int
    frames: int
    failed: int
    before: int
    reworded: int
    damaged: int
    examples: dict[str, int]
    wordless: int
    shards: int
    seconds: float


def tokenize(
    sources: Sequence[Path],
    folder: Path,
    *,
    model: str = "nano",
    frames: int | None = 8,
    fps: float | None = None,
    tasks: Sequence[str] = ("see",),
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Tokenized:
    """Make a data set of the media of some folders, files and tables (`find_media`).

    Codes are those of a model's image tokenizer; nothing else of the model is read. At most
    `frames` frames of a clip are taken, evenly spread, or those that are on view at `fps` moments
    a second; None is no bound. `tasks` are what is to be learned: see, draw. A run that was
    stopped goes on when it is called again with the same options, and a finished one takes up what
    has changed in the sources since: media that have come, files that are others, other words
    (with the codes that are there). What can't be read is left out and listed in `errors.jsonl`;
    `on_note` is told what else of the sources is not used.

    Raises UsageError, ConfigError, FormatError, ModelNotFound and TextOnly as the parts do,
    OutputError where the disk refuses, and MediaError when not one of the media can be read.
    """
    check_choice(frames, start=None, end=None, rate=fps)
    tasks = known_tasks(tasks)
    found = find_media(sources)
    if on_note:
        for note in found.notes:
            on_note(note)
    image = open_image(model)
    manifest = Manifest.of(image, model=model, frames=frames, fps=fps, tasks=tasks)
    read = partial(_read, frames=frames, fps=fps, size=image.config.resolution)
    revision = Revision(found.media, tasks, manifest.frame_codes)
    with open_folder(folder, manifest, revision) as data:
        done = [medium for medium in found.media if medium.name in revision.there]
        waiting = [medium for medium in found.media if medium.name not in revision.there]
        meter = _Meter(len(done), len(found.media) + len(found.failures), on_progress)
        refused: list[Failure] = []

        def refuse(failure: Failure) -> None:
            data.report(failure)
            refused.append(failure)
            meter.failed += 1

        for failure in found.failures:
            refuse(failure)
        encode = meter.counting(partial(encode_frames, image))
        at_once = frames_at_once(image.config)
        with closing(_decoded(waiting, read)) as clips:
            for medium, codes in _encoded(clips, encode, at_once, refuse):
                data.add(examples(medium, codes, tasks))
                done.append(medium)
                meter.media += 1
        data.finish()
    if not done:
        raise MediaError(
            f"not one of the media can be read ({refused[-1].reason}); {folder / ERRORS} lists all"
        )
    counts, wordless = tally(done, tasks)
    return Tokenized(
        folder,
        media=meter.media,
        frames=meter.frames,
        failed=meter.failed,
        before=meter.before,
        reworded=len(revision.reworded),
        damaged=data.damaged,
        examples=counts,
        wordless=wordless,
        shards=data.shards,
        seconds=meter.seconds,
    )


def _read(medium: Medium, *, frames: int | None, fps: float | None, size: int) -> Decoded:
    """Decode a medium as far as it is wanted."""
    try:
        medium = replace(medium, fingerprint=fingerprint(medium.path))
        return medium, read_media(medium.path, frames=frames, rate=fps, size=size).frames
    except LwmError as error:
        return medium, Failure(medium.name, str(error))


def _decoded(
    media: Iterable[Medium], read: Callable[[Medium], Decoded]
) -> Generator[Decoded, None, None]:
    """Media as they are read, in their order, by threads that are a little ahead."""
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        # Reading a picture does so too, but what one thread switches back ends it for the others.
        warnings.simplefilter("ignore")
        waiting: deque[Future[Decoded]] = deque()
        try:
            for medium in media:
                waiting.append(pool.submit(read, medium))
                if len(waiting) == 2 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encoded(
    clips: Iterable[Decoded], encode: Encode, at_once: int, refuse: Callable[[Failure], None]
) -> Iterator[tuple[Medium, np.ndarray]]:
    """Media with their codes, int32 `[F, frame_codes]`; frames go `at_once` at a time, whosever
    they are."""
    waiting: deque[tuple[Medium, int]] = deque()
    frames: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    for medium, pixels in clips:
        if isinstance(pixels, Failure):
            refuse(pixels)
            continue
        waiting.append((medium, len(pixels)))
        frames.extend(pixels)
        while len(frames) >= at_once:
            codes.extend(encode(np.stack(frames[:at_once])))
            del frames[:at_once]
        yield from _whole(waiting, codes)
    if frames:
        codes.extend(encode(np.stack(frames)))
    yield from _whole(waiting, codes)


def _whole(
    waiting: deque[tuple[Medium, int]], codes: list[np.ndarray]
) -> Iterator[tuple[Medium, np.ndarray]]:
    """Take the first of those that wait for so many codes, while there are enough."""
    while waiting and len(codes) >= waiting[0][1]:
        medium, count = waiting.popleft()
        yield medium, np.stack(codes[:count])
        del codes[:count]


class _Meter:
    """Counts what is done, and tells how fast it goes."""

    def __init__(self, before: int, total: int, tell: Callable[[Progress], None] | None):
        self.before, self.total, self._tell = before, total, tell
        self.media = self.frames = self.failed = 0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def counting(self, encode: Encode) -> Encode:
        """The encoder, counting frames."""

        def counted(frames: np.ndarray) -> np.ndarray:
            codes = encode(frames)
            self.frames += len(frames)
            if self._tell:
                speed = f"{self.frames / self.seconds:.1f} frames/s"
                done = self.before + self.media + self.failed
                self._tell(Progress("tokenizing", done, self.total, f"files  {speed}"))
            return codes

        return counted
