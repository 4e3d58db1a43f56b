"""Devices as a mesh of four axes.

dp    whole copies of the model, each with rows of the batch of its own
fsdp  weights cut up and gathered where they are used; more rows of the batch
tp    heads, feed-forward and vocabulary cut up
sp    the sequence cut up
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh

from lwm_core.axes import AXES, parse_mesh
from lwm_core.hardware import SLICES, Chip, Topology, cores, recognise, this_cpu


def make_mesh(spec: str | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (by default all) from a text that `axes.parse_mesh` reads.

    Without a text it is the first device alone. Raises ConfigError for a text that can't be meant
    and for sizes that don't fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if spec is None:
        devices = devices[:1]
    sizes = parse_mesh("dp=1" if spec is None else spec, len(devices))
    # An axis may be longer than any side of a slice: then it winds through the slice.
    placed = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def this_topology(devices: Sequence[jax.Device] | None = None) -> Topology:
    """The hardware that jax sees as `devices` (by default all), with the memory that it may use."""
    devices = jax.devices() if devices is None else devices
    device, count = devices[0], len(devices)
    if device.platform == "cpu":
        of_one_host = sum(one.process_index == device.process_index for one in devices)
        return Topology(this_cpu(of_one_host), count, count // of_one_host)
    mine = (one for one in devices if one.process_index == jax.process_index())
    limits = [(one.memory_stats() or {}).get("bytes_limit") for one in mine]
    memory = min((limit for limit in limits if limit), default=None)
    chip = recognise(device.platform, device.device_kind, memory)
    hosts = len({device.process_index for device in devices})
    return Topology(chip, count, hosts, _slice_shape(chip, devices))


def _slice_shape(chip: Chip, devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """How TPUs lie, if they fill a box as a slice does; nothing for other devices."""
    if chip.name not in SLICES:
        return ()
    sides = len(SLICES[chip.name][0])  # a flat slice has a third coordinate too
    coordinates = zip(*(device.coords for device in devices), strict=True)
    shape = tuple(len(set(along)) for along in coordinates)[:sides]
    return shape if math.prod(shape) == len(devices) else ()


def device_line(mesh: Mesh) -> str:
    """What the mesh runs on, for people: `cpu, 2 cores` or `4 × NVIDIA H100 80GB HBM3`."""
    device = mesh.devices.flat[0]
    if device.platform != "cpu":
        return f"{mesh.size} × {device.device_kind}"
    line = f"cpu, {cores()} cores"
    return line if mesh.size == 1 else f"{line} as {mesh.size} devices"


def missed_gpu(mesh: Mesh) -> str | None:
    """A line to show when this machine has an NVIDIA GPU that jax does not use, unasked."""
    idle = mesh.devices.flat[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if idle and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return "this machine has an NVIDIA GPU, but jax runs on the CPU: install lwm with [cuda]"
    return None
