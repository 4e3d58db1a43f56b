"""How a job is best laid out on some hardware, whether it fits there, and how long a step takes.

Standard library only: nothing is compiled and no device is needed. `plan` tries every mesh that can
cut up the model and every rematerialisation, and takes the fastest that fits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from lwm_core import costs
from lwm_core.axes import MeshSizes, factorisations, misfit
from lwm_core.config import REMATS, Remat
from lwm_core.costs import Memory, Sent, Work
from lwm_core.errors import ConfigError
from lwm_core.hardware import SLICES, Topology, tpu_slice

COMPUTE, BANDWIDTH, LINK = 0.5, 0.7, 0.7
"""What is reached of the peaks of products, of memory and of links, as large models do."""
FLOAT32_SLOWER = 4
"""Products in float32 instead of bfloat16 on accelerators; on a CPU, whose figures are guesses,
both are taken to be as fast."""
LAUNCH = 10e-6
"""Seconds that an operation between devices takes beyond its bytes."""
MARGIN = 0.9
"""A plan may take so much of a chip's memory: the estimate is not exact."""
SIMPLER = 1.05
"""A mesh of fewer axes may take so much longer than the fastest."""

SHORTEST, LONGEST = 8, 28
"""Contexts are searched from 2 to this power up to 2 to that."""

THETAS = ((32, 1e6), (256, 1e7), (512, 2.5e7), (1024, 5e7))
"""Rotary bases of the published models, by the thousands (1024) of tokens that each serves."""


class Times(NamedTuple):
    """Seconds of a step if only one thing counted."""

    compute: float
    memory: float
    communication: float


@dataclass(frozen=True)
class Plan:
    """A job on some hardware: the mesh, what training keeps, and what a step costs each device.

    `flops` are those of all devices together.
    """

    work: Work
    topology: Topology
    mesh: MeshSizes
    remat: Remat
    memory: Memory
    flops: float
    sent: Sent
    times: Times

    @property
    def seconds(self) -> float:
        """Of one step, at what is usually reached."""
        return max(self.times)

    @property
    def bound(self) -> str:
        """What the step waits for: compute, memory or communication."""
        return Times._fields[self.times.index(self.seconds)]

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, with a margin for what the estimate does not know."""
        return self.memory.total <= room(self.topology)

    def to_json(self) -> dict[str, Any]:
        """All figures, in bytes, seconds and FLOPs."""
        return {
            "job": self.work.job,
            "context": self.work.context,
            "batch": self.work.batch,
            "dtype": self.work.dtype,
            "cache": self.work.cache_dtype,
            "topology": str(self.topology),
            "devices": self.topology.count,
            "mesh": self.mesh._asdict(),
            "rematerialisation": self.remat,
            "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total},
            "available": self.topology.chip.memory,
            "usable": int(room(self.topology)),
            "fits": self.fits,
            "flops": self.flops,
            "communication": round(self.sent.bytes),
            "times": self.times._asdict(),
            "seconds": self.seconds,
            "bound": self.bound,
        }


def plan(work: Work, topology: Topology, mesh: MeshSizes | None = None) -> Plan:
    """The fastest way that fits, on a given mesh or on the best of all; simple ones come first.

    Where nothing fits, it is the one that needs the least memory. Raises ConfigError for a mesh
    that can't cut up the model or its batch, and when there is none that can.
    """
    if mesh and (reason := _misfit(work, mesh)):
        raise ConfigError(f"mesh {mesh}: {reason}")
    plans = [estimate(work, topology, *way) for way in _ways(work, topology, mesh)]
    if not plans:
        raise ConfigError(
            f"no mesh of {topology.count} devices divides {work.config.kv_heads} heads, "
            f"{work.batch} rows and a context of {work.context}: give a longer context, or a "
            f"multiple of {topology.count} as the batch"
        )
    fitting = [one for one in plans if one.fits]
    if not fitting:
        return min(plans, key=lambda one: one.memory.total)
    limit = SIMPLER * min(one.seconds for one in fitting)
    return min((one for one in fitting if one.seconds <= limit), key=_preference)


def _preference(plan: Plan) -> tuple[int, float, int]:
    """How many axes are in use, then the time, then the memory."""
    return sum(size > 1 for size in plan.mesh), plan.seconds, plan.memory.total


def _ways(
    work: Work, topology: Topology, mesh: MeshSizes | None
) -> Iterator[tuple[MeshSizes, Remat]]:
    """Every mesh that divides, or the given one, with everything that training may keep."""
    meshes = [mesh] if mesh else factorisations(topology.count)
    possible = (one for one in meshes if mesh or _misfit(work, one) is None)
    if work.job != "train":
        return itertools.product(possible, ("none",))
    # To write and read all that "none" keeps costs a CPU more time than "attention" does.
    lean = topology.chip.platform == "cpu"
    return itertools.product(possible, REMATS[1:] if lean else REMATS)


def _misfit(work: Work, mesh: MeshSizes) -> str | None:
    # In inference all may have all rows.
    batch = work.batch // work.parts if work.job == "train" else None
    return misfit(mesh, work.config, batch=batch, context=work.context)


def estimate(work: Work, topology: Topology, mesh: MeshSizes, remat: Remat) -> Plan:
    """What one way costs."""
    chip = topology.chip
    sent = costs.sent(work, mesh, remat)
    flops = costs.flops(work, remat)
    slower = FLOAT32_SLOWER if work.dtype == "float32" and chip.platform != "cpu" else 1
    speed = COMPUTE * chip.flops / slower
    times = Times(
        compute=flops / mesh.size / speed,
        memory=costs.read(work, mesh) / (BANDWIDTH * chip.bandwidth),
        communication=sent.bytes / (LINK * topology.link) + sent.calls * LAUNCH,
    )
    return Plan(work, topology, mesh, remat, costs.memory(work, mesh, remat), flops, sent, times)


def fits(work: Work, topology: Topology, mesh: MeshSizes | None = None) -> bool:
    """Whether there is a way that fits."""
    if mesh and _misfit(work, mesh):
        return False
    limit = room(topology)
    return any(costs.memory(work, *way).total <= limit for way in _ways(work, topology, mesh))


def room(topology: Topology) -> float:
    """Bytes of each device that a plan may take."""
    return MARGIN * topology.chip.memory


def longest_context(work: Work, topology: Topology, mesh: MeshSizes | None = None) -> int | None:
    """The longest context that fits, or None: a power of two, or 1.25, 1.5 or 1.75 of one."""
    for power in range(LONGEST, SHORTEST - 1, -1):
        quarters = range(7, 3, -1)
        for length in (quarter << (power - 2) for quarter in quarters):
            if fits(dataclasses.replace(work, context=length), topology, mesh):
                return length
    return None


def smallest_slice(work: Work, kind: str) -> Topology | None:
    """The smallest slice of a kind of TPU on which the work fits, or None."""
    slices = (tpu_slice(kind, shape) for shape in SLICES[kind])
    return next((one for one in slices if fits(work, one)), None)


def usual_theta(context: int) -> float:
    """The rotary base that the published models took for so many tokens."""
    fitting = (theta for thousands, theta in THETAS if context <= thousands << 10)
    return next(fitting, THETAS[-1][1])
