"""Values that flow between the parts, and the one alphabet of shapes.

    B  batch (rows)           N  query heads            D  hidden size
    T  query length           K  key/value heads        F  feed-forward size
    S  key length             H  size of one head       L  layers
    V  vocabulary (text ids, then vision ids)

Positions say what is causal and segments say what belongs together: a query sees a key when both
have the same segment and the key's position is not later. Segment 0 is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Places(NamedTuple):
    """Where tokens stand: positions and segments, int32 `[B, T]`. Segment 0 is padding."""

    positions: Array
    segments: Array


class Attended(NamedTuple):
    """Output `[B, N, T, H]` and its log-sum-exp, float32 `[B, N, T]`."""

    out: jax.Array
    lse: jax.Array


class Quantized(NamedTuple):
    """Numbers in 8 bits: `values` int8 `[..., H]`, and what to multiply them by, `[...]`.

    Every run of H numbers (a head's key or value of one token) has a float32 scale of its own, so
    that tokens can be added one at a time.
    """

    values: jax.Array
    scales: jax.Array


class Tokens(NamedTuple):
    """Ids with the positions and segments that say what they can see; each int32 `[B, T]`."""

    ids: Array
    positions: Array
    segments: Array

    @property
    def places(self) -> Places:
        """What decides who sees whom."""
        return Places(self.positions, self.segments)


Numbers = jax.Array | Quantized


class KVCache(NamedTuple):
    """Keys and values of every layer, `[L, B, K, S, H]`, with their places, int32 `[B, S]`.

    Where layers are not scanned each has arrays of its own, in lists. `length` (int32 scalar)
    counts the slots in use; free slots have segment 0, which no real token sees. Devices that share
    the slots fill up their parts side by side.
    """

    keys: Numbers | list[Numbers]
    values: Numbers | list[Numbers]
    positions: jax.Array
    segments: jax.Array
    length: jax.Array

    @property
    def places(self) -> Places:
        """What decides who sees whom."""
        return Places(self.positions, self.segments)


class Batch(NamedTuple):
    """One training batch, each `[B, T]`: inputs, what should come next, its weight.

    `inputs`, `targets`, `positions`, `segments` are int32; `weights` is float32.
    """

    inputs: Array
    targets: Array
    positions: Array
    segments: Array
    weights: Array

    @property
    def tokens(self) -> Tokens:
        """The model's input."""
        return Tokens(self.inputs, self.positions, self.segments)


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work is: `done` of `total`, counted in `unit`."""

    phase: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Frame:
    """A picture as it comes: frame `index` of the film in `row`.

    `pixels` are uint8 `[height, width, 3]`, `codes` int32 `[frame_codes]`; until it is `complete`,
    codes that are still to come repeat the last.
    """

    row: int
    index: int
    pixels: np.ndarray
    complete: bool
    codes: np.ndarray
