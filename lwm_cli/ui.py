"""Everything that is drawn in a terminal: bars, pictures, figures and tables.

It goes to standard error; only a table that was asked for goes to standard output. In a pipe or a
file there are no bars, no pictures and no colours, only plain lines, and `-q` leaves those out
too. NO_COLOR is honoured.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from lwm_cli.files import is_terminal

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.progress import TaskID
    from rich.table import Table

    from lwm_core.types import Frame, Progress

PICTURE_COLUMNS = 64
LINES_OF_BARS = 3  # that stay free below a picture
PHASE_COLUMNS = 26  # more of a file's name would push the figures out of a narrow terminal
TABLE_COLUMNS_IN_A_FILE = 160
SECONDS_BETWEEN_LINES = 10.0  # where they stand for a bar


class Pace:
    """Of lines that come now and then where there is no bar; `last` is when one did, in seconds."""

    def __init__(self, last: float = -math.inf):
        self._last = last

    def is_due(self, now: float) -> bool:
        """Whether it is time for a line; then this one is the last."""
        is_late = now - self._last >= SECONDS_BETWEEN_LINES
        if is_late:
            self._last = now
        return is_late


class Screen:
    """What a command shows beside its answer. As a context manager it leaves a clean terminal."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.is_terminal = is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._board: _Board | None = None
        if verbose:
            _show_log()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *raised: object) -> None:
        self.clear()

    @property
    def has_colour(self) -> bool:
        """Whether colours may be used here."""
        return self.is_terminal and not os.environ.get("NO_COLOR")

    @property
    def shows_pictures(self) -> bool:
        """Whether a preview can be drawn here: it is nothing but colours."""
        return self.has_colour and not self.quiet

    def note(self, text: str) -> None:
        """Show one plain line."""
        if not self.quiet:
            self.clear()
            typer.echo(text, err=True)

    def progress(self, event: Progress) -> None:
        """Move the bar of the event's phase."""
        if self.is_terminal and not self.quiet:
            self._shown_board().advance(event)

    def follow(self, events: Iterable[Progress | Frame]) -> Iterator[Frame]:
        """Show progress and pictures as they come, all rows side by side; hand on the pictures
        that are complete."""
        from lwm_core.types import Frame

        latest: dict[int, np.ndarray] = {}
        for event in events:
            if not isinstance(event, Frame):
                self.progress(event)
                continue
            latest[event.row] = event.pixels
            if self.shows_pictures:
                self._shown_board().show(list(latest.values()))
            if event.complete:
                yield event

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table above the bars as it is now, as `print_table` takes it."""
        if self.is_terminal and not self.quiet:
            self._shown_board().show_table(headings, rows)

    def clear(self) -> None:
        """Take the bars away, for example because the answer begins."""
        if self._board:
            self._board.close()
            self._board = None

    def footer(self, figures: Sequence[str]) -> None:
        """Show the closing line, such as `42 tokens · 310 tok/s · cpu`."""
        if not self.quiet:
            self.clear()
            line = " · ".join(figures)
            typer.echo(typer.style(line, dim=True) if self.has_colour else line, err=True)

    def _shown_board(self) -> _Board:
        if self._board is None:
            self._board = _Board()
        return self._board


class _Board:
    """The part of the terminal that is drawn over and over: a picture above the bars."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        phase = Column(no_wrap=True, overflow="ellipsis", max_width=PHASE_COLUMNS)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=phase),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(compact=True),
            speed_estimate_period=600,  # in seconds: a step of training may take minutes
        )
        self._bar_of_phase: dict[str, TaskID] = {}
        self._picture: HalfBlocks | None = None
        self._live = Live(
            self._bars, console=Console(stderr=True), transient=True, refresh_per_second=10
        )
        self._live.start()

    def advance(self, event: Progress) -> None:
        bar = self._bar_of_phase.get(event.phase)
        if bar is None:
            bar = self._bars.add_task(event.phase, amount="")
            self._bar_of_phase[event.phase] = bar
        self._bars.update(
            bar,
            completed=event.done,
            total=event.total,
            amount=_amount(event),
            visible=event.done < event.total,
        )

    def show(self, pictures: Sequence[np.ndarray]) -> None:
        import numpy as np
        from rich.console import Group

        from lwm_core.media import grid

        self._picture = HalfBlocks(grid(np.stack(pictures)))
        self._live.update(Group(self._picture, self._bars))

    def show_table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.console import Group

        self._live.update(Group(_table(headings, rows), self._bars))

    def close(self) -> None:
        """Take the bars away; the last picture stays."""
        if self._picture:
            self._live.transient = False
            self._live.update(self._picture)
        self._live.stop()


def _amount(event: Progress) -> str:
    if event.unit == "bytes":
        return f"{event.done / 1e6:.0f}/{event.total / 1e6:.0f} MB"
    return f"{event.done}/{event.total} {event.unit}"


class HalfBlocks:
    """A picture, uint8 `[height, width, 3]`, as text.

    Each character shows two pixels: its upper half has the colour of the one, its ground that of
    the other below.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.color import Color
        from rich.segment import Segment
        from rich.style import Style

        height, width = self.pixels.shape[:2]
        most_lines = max(1, options.size.height - LINES_OF_BARS)
        columns = min(PICTURE_COLUMNS, options.max_width, 2 * most_lines * width // height)
        for upper, lower in self._line_pairs(max(1, columns)):
            for above, below in zip(upper, lower, strict=True):
                style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
                yield Segment("▀", style)
            yield Segment.line()

    def _line_pairs(self, columns: int) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
        import numpy as np
        from PIL import Image

        height, width = self.pixels.shape[:2]
        lines = max(1, round(height * columns / width / 2))
        small = Image.fromarray(self.pixels).resize((columns, 2 * lines), Image.Resampling.BOX)
        pixels: list[list[list[int]]] = np.asarray(small).tolist()
        return zip(pixels[::2], pixels[1::2], strict=True)


def four_digits(number: float) -> str:
    """Four digits, or all of a larger number: `0.1234`, `12,345`."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output; a column whose heading ends in `>` is flush right."""
    from rich.console import Console

    width = None if is_terminal(sys.stdout) else TABLE_COLUMNS_IN_A_FILE
    Console(width=width, highlight=False, markup=False).print(_table(headings, rows))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        is_right = heading.endswith(">")
        table.add_column(
            heading.removesuffix(">"), justify="right" if is_right else "left", no_wrap=True
        )
    for row in rows:
        table.add_row(*row)
    return table


def _show_log() -> None:
    """Let the core say what it chooses, for `-v`."""
    import logging

    logging.basicConfig(format="%(message)s")
    logging.getLogger("lwm_core").setLevel(logging.INFO)
