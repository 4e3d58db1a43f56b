"""The four axes of a mesh as numbers: read from a text, checked against devices and a model.

Standard library only. `lwm_core.mesh` says what the axes mean and makes them real.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from lwm_core.config import ModelConfig
from lwm_core.errors import ConfigError

OPEN = -1
"""Stands for the size that the other axes leave."""


class MeshSizes(NamedTuple):
    """How many devices lie along each axis."""

    dp: int = 1
    fsdp: int = 1
    tp: int = 1
    sp: int = 1

    @property
    def size(self) -> int:
        """All devices together."""
        return math.prod(self)

    @property
    def rows(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return self.dp * self.fsdp

    @property
    def weight_ways(self) -> int:
        """Into how many parts the hidden dimension of the weights is cut."""
        return self.fsdp * self.sp

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self._asdict().items())


AXES = MeshSizes._fields


def parse_mesh(spec: str, devices: int) -> MeshSizes:
    """The mesh that a text like `dp=1,fsdp=8,tp=4,sp=2` means on so many devices.

    An axis left out is 1; one may be -1 and takes what the others leave. Four bare numbers are the
    axes in this order, as the original wrote them; so is a `!` before them, which asked for devices
    in plain order. Raises ConfigError for a text that can't be meant, and for sizes that are not
    those of the devices.
    """
    numbers = spec.strip().removeprefix("!").split(",")
    if all(re.fullmatch(r"\s*-?\d+\s*", number) for number in numbers):
        if len(numbers) != len(AXES):
            raise ConfigError(
                f"mesh {spec!r}: {len(numbers)} numbers; four are {', '.join(AXES)}, in this order"
            )
        parts = [f"{name}={number}" for name, number in zip(AXES, numbers, strict=True)]
    else:
        parts = spec.split(",")
    return _filled(spec, MeshSizes(**dict(_sized(spec, part) for part in parts)), devices)


def _sized(spec: str, part: str) -> tuple[str, int]:
    """The axis and the size that `name=size` says."""
    name, _, size = (word.strip() for word in part.partition("="))
    if name not in AXES:
        raise ConfigError(f"mesh {spec!r}: no axis is called {name!r}; use {', '.join(AXES)}")
    if not re.fullmatch("-1|[1-9][0-9]*", size):
        raise ConfigError(f"mesh {spec!r}: {name} is {size!r}, not a count or -1")
    return name, int(size)


def _filled(spec: str, sizes: MeshSizes, devices: int) -> MeshSizes:
    """The sizes with -1 replaced, so that their product is the number of devices."""
    given = {name: size for name, size in sizes._asdict().items() if size != OPEN}
    free = [name for name in AXES if name not in given]
    if len(free) > 1:
        raise ConfigError(f"mesh {spec!r}: {' and '.join(free)} are -1; only one axis can be")
    product = math.prod(given.values())
    if devices % product == 0 and (free or product == devices):
        return sizes._replace(**dict.fromkeys(free, devices // product))
    sums = " × ".join(f"{name} {size}" for name, size in given.items())
    there = "is 1 device" if devices == 1 else f"are {devices} devices"
    off = f"which does not divide {devices}" if free else f"but there {there}"
    raise ConfigError(
        f"mesh {spec!r}: {sums} = {product}, {off}; {_nearest(sizes, devices)} would fit"
    )


def _nearest(wanted: MeshSizes, devices: int) -> str:
    """The axes to change, and to what, so that the mesh has as many devices as there are.

    As few as can be, those in use before those that are 1, and by as little as can be.
    """

    def distance(other: MeshSizes) -> tuple[int, int, float]:
        changed = _changes(wanted, other).values()
        fresh = sum(one == 1 for one, _ in changed)
        return len(changed), fresh, sum(abs(math.log(one / new)) for one, new in changed)

    best = min(factorisations(devices), key=distance)
    return ",".join(f"{name}={new}" for name, (_, new) in _changes(wanted, best).items())


def _changes(wanted: MeshSizes, other: MeshSizes) -> dict[str, tuple[int, int]]:
    """The axes of other sizes than wanted: both sizes of each."""
    pairs = zip(AXES, wanted, other, strict=True)
    return {name: (one, new) for name, one, new in pairs if one not in (OPEN, new)}


def factorisations(devices: int) -> Iterator[MeshSizes]:
    """Every mesh of so many devices."""
    for dp in divisors(devices):
        for fsdp in divisors(devices // dp):
            for tp in divisors(devices // dp // fsdp):
                yield MeshSizes(dp, fsdp, tp, devices // dp // fsdp // tp)


def divisors(number: int) -> list[int]:
    """All divisors, in growing order."""
    low = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return low + [number // one for one in reversed(low) if one * one != number]


def misfit(
    mesh: MeshSizes, config: ModelConfig, *, batch: int | None = None, context: int | None = None
) -> str | None:
    """Why a mesh can't cut up a model, its batch or its sequences; None if it can.

    Every device of `sp` takes two chunks of a sequence, an early and a late one; what is missing to
    make them even is filled up.
    """
    wholes = [
        ("tp", mesh.tp, config.heads, "heads of the model: {}"),
        ("tp", mesh.tp, config.kv_heads, "key and value heads of the model: {}"),
        ("tp", mesh.tp, config.intermediate, "feed-forward size of the model: {}"),
    ]
    if batch:
        wholes.append(("dp × fsdp", mesh.rows, batch, "batch of {}"))
    for name, ways, whole, what in wholes:
        if whole % ways:
            fitting = max(one for one in divisors(whole) if one < ways)
            return f"{name} = {ways} does not divide the {what.format(whole)}; {fitting} would"
    if context and 2 * mesh.sp > max(context, 2):
        return (
            f"sp = {mesh.sp} shares out a context of {context}; {max(context // 2, 1)} is the most"
        )
    return None
