"""What a training shows while it runs: a bar below its latest figures, or now and then a line."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from statistics import mean
from typing import TYPE_CHECKING

from lwm_cli.ui import Pace
from lwm_core.hardware import GIB

if TYPE_CHECKING:
    from lwm_cli.ui import Screen
    from lwm_core.train import TrainEvent

STEPS_TO_LOOK_BACK = 50
"""Steps whose mean time says how long the others will take."""
FIGURES = {
    "loss": ("loss", "{:#.4g}", 1),
    "text_loss": ("text", "{:#.4g}", 1),
    "vision_loss": ("vision", "{:#.4g}", 1),
    "evaluation_loss": ("evaluated", "{:#.4g}", 1),
    "error": ("error", "{:#.4g}", 1),
    "naming": ("naming", "{:#.4g}", 1),
    "codes_used": ("codes", "{:.0f}%", 100),
    "tokens_per_second": ("tokens/s", "{:,.0f}", 1),
    "pictures_per_second": ("pictures/s", "{:,.0f}", 1),
    "mfu": ("MFU", "{:.0f}%", 100),
    "memory": ("memory", "{:.1f} GiB", 1 / GIB),
    "packed": ("packed", "{:.1f}%", 100),
    "skipped": ("skipped", "{:.0f}", 1),
}
"""Metrics by name: heading, wording, and what they are multiplied by for it. They fit in 80
columns; all others are in the file of metrics."""


class LiveView:
    """A training as it is now: the latest of each figure, and all steps that were skipped."""

    def __init__(self, screen: Screen):
        self._screen = screen
        self._latest: dict[str, float] = {}
        self._seconds: deque[float] = deque(maxlen=STEPS_TO_LOOK_BACK)
        self._saved = 0
        self._pace = Pace()

    def show(self, event: TrainEvent) -> None:
        """Draw what an event changes."""
        skipped = self._latest.get("skipped", 0)
        self._latest |= event.metrics
        if "skipped" in event.metrics:
            self._latest["skipped"] += skipped
        if "seconds" in event.metrics:
            self._seconds.append(event.metrics["seconds"])
        if event.kind == "checkpoint":
            self._saved = event.step
        if self._screen.is_terminal:
            self._draw(event)
        elif event.kind != "step" or self._pace.is_due(time.monotonic()):
            self._write(event)

    def close(self) -> None:
        """Show the closing line."""
        figures = [f"{name} {value}" for name, value in self._figures()]
        self._screen.footer(figures or ["nothing was left to learn"])

    def _draw(self, event: TrainEvent) -> None:
        from lwm_core.types import Progress

        saved = f", {self._saved} saved" if self._saved else ""
        if figures := list(self._figures()):
            headings, values = zip(*figures, strict=True)
            self._screen.table([f"{heading}>" for heading in headings], [values])
        self._screen.progress(Progress("training", event.step, event.total, f"steps{saved}"))

    def _write(self, event: TrainEvent) -> None:
        parts = [f"{event.kind} {event.step}/{event.total}"]
        if event.kind == "step":
            parts += [f"{name} {value}" for name, value in self._figures()]
            parts += self._left(event.total - event.step)
        elif event.metrics:
            parts += [f"{name} {value:.4g}" for name, value in event.metrics.items()]
        elif event.path:
            parts.append(event.path)
        self._screen.note("  ".join(parts))

    def _figures(self) -> Iterator[tuple[str, str]]:
        """Headings and values of the metrics that there are."""
        for name, (heading, wording, factor) in FIGURES.items():
            if name in self._latest:
                yield heading, wording.format(self._latest[name] * factor)

    def _left(self, steps: int) -> list[str]:
        """How long so many steps will take, where it is known."""
        from lwm_core.train.report import duration

        return [f"left {duration(steps * mean(self._seconds))}"] if self._seconds else []
