"""How many questions are answered at once: what memory holds."""

from __future__ import annotations

MOST_ROWS = 16
"""More at once are hardly faster, and a run that is killed loses what it was at."""
SHARE = 0.5
"""Of the free memory; the rest is for activations, and for what rounds a cache's size up."""


def rows_that_fit(free: int, row: int) -> int:
    """How many rows of `row` bytes are taken at once when so many bytes are free; at least one."""
    return max(1, min(MOST_ROWS, int(free * SHARE) // row))
