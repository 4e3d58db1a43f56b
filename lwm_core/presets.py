"""The mesh that a text asks for: found by itself, a preset by the name of hardware, or axes.

Standard library only until a mesh is made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lwm_core.axes import MeshSizes, parse_mesh
from lwm_core.costs import Work
from lwm_core.distributed import agree
from lwm_core.errors import ConfigError
from lwm_core.hardware import Topology, parse_topology, this_cpu
from lwm_core.plan import Plan, estimate, fits, plan

if TYPE_CHECKING:
    from jax.sharding import Mesh


def plan_for(spec: str, work: Work, topology: Topology) -> Plan:
    """The plan of some work on a mesh: `auto`, a preset, or the axes that `parse_mesh` reads.

    `auto` is the best for the work on this hardware; a preset is the name of hardware, and stands
    for what is best there. Raises ConfigError where the devices are not as many, and for a mesh
    that can't cut up the model or its batch.
    """
    if spec == "auto":
        return plan(work, topology)
    return plan(work, topology, _sizes(spec, work, topology))


def _sizes(spec: str, work: Work, topology: Topology) -> MeshSizes:
    if re.fullmatch(r"[-!\d,\s]*|.*=.*", spec):
        return parse_mesh(spec, topology.count)
    preset = parse_topology(spec)
    if preset.count != topology.count:
        raise ConfigError(
            f"mesh {spec!r} is for {preset.count} devices, and there are {topology.count}; "
            "auto fits any"
        )
    return plan(work, preset).mesh


def plan_here(spec: str, work: Work) -> tuple[Plan, Mesh]:
    """The plan of some work on the devices that jax sees, and its mesh: that of the first process.

    On a CPU, whose devices are its cores, `auto` takes one, unless several processes have joined;
    in training as many as can share out the rows. Raises ConfigError as `plan_for` does.
    """
    import jax

    from lwm_core.mesh import make_mesh, this_topology

    devices = jax.devices()
    if spec == "auto" and devices[0].platform == "cpu" and jax.process_count() == 1:
        devices = devices[: _ways_on_cpu(work, len(devices))]
        spec = f"dp={len(devices)}"
    topology = this_topology(devices)
    made = plan_for(spec, work, topology)
    sizes, remat = MeshSizes(*agree(list(made.mesh))), agree(made.remat)
    made = estimate(work, topology, sizes, remat)
    return made, make_mesh(str(made.mesh), devices)


def _ways_on_cpu(work: Work, most: int) -> int:
    """Of how many devices, at most, each has work of its own, for which the memory suffices.

    One device hands every small operation from core to core. It is best for few tokens, which read
    all weights; several that each have rows of a batch do not wait for each other.
    """
    if work.job != "train":
        return 1
    possible = (n for n in range(most, 1, -1) if work.batch // work.parts % n == 0)
    here = ((n, Topology(this_cpu(n), n)) for n in possible)
    return next((n for n, topology in here if fits(work, topology, MeshSizes(dp=n))), 1)
