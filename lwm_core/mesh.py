"""Devices as a mesh of four axes.

dp    whole copies of the model, each with rows of the batch of its own
fsdp  weights cut up and gathered where they are used; more rows of the batch
tp    heads, feed-forward and vocabulary cut up
sp    the sequence cut up
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import AxisType, Mesh

from lwm_core.errors import ConfigError

AXES = ("dp", "fsdp", "tp", "sp")


def make_mesh(spec: str = "auto", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (by default all) from a text like `dp=1,fsdp=4,tp=2,sp=1`.

    An axis left out is 1; one axis may be -1 and takes what the others leave. `auto` is fsdp over
    all accelerators, or a single device on a CPU. Raises ConfigError for a text that can't be
    meant and for sizes that don't fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    if spec == "auto":
        devices = devices[:1] if devices[0].platform == "cpu" else devices
        spec = "fsdp=-1"
    sizes = _fill(spec, _sizes(spec), len(devices))
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def _sizes(spec: str) -> dict[str, int]:
    """The size of every axis as the text gives it."""
    sizes = dict.fromkeys(AXES, 1)
    for part in spec.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES:
            raise ConfigError(f"mesh {spec!r}: no axis is called {name!r}; use {', '.join(AXES)}")
        if not re.fullmatch("-1|[1-9][0-9]*", size):
            raise ConfigError(f"mesh {spec!r}: {name} is {size!r}, not a count or -1")
        sizes[name] = int(size)
    return sizes


def _fill(spec: str, sizes: dict[str, int], devices: int) -> dict[str, int]:
    """The sizes with -1 replaced, so that their product is the number of devices."""
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(f"mesh {spec!r}: {' and '.join(open_axes)} are -1; only one axis can be")
    given = {name: size for name, size in sizes.items() if size != -1}
    product = math.prod(given.values())
    if devices % product or (not open_axes and devices != product):
        sums = " × ".join(f"{name} {size}" for name, size in given.items())
        wanted = "a divisor of" if open_axes else "as many as"
        raise ConfigError(
            f"mesh {spec!r}: {sums} = {product}, but it must be {wanted} the {devices} devices here"
        )
    return {name: devices // product if size == -1 else size for name, size in sizes.items()}


def device_line(mesh: Mesh) -> str:
    """What the mesh runs on, for people: `cpu, 2 cores` or `4 × NVIDIA H100 80GB HBM3`."""
    device = mesh.devices.flat[0]
    if device.platform != "cpu":
        return f"{mesh.size} × {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    line = f"cpu, {cores} cores"
    return line if mesh.size == 1 else f"{line} as {mesh.size} devices"


def missed_gpu(mesh: Mesh) -> str | None:
    """A line to show when this machine has an NVIDIA GPU that jax does not use, unasked."""
    idle = mesh.devices.flat[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS")
    if idle and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return "this machine has an NVIDIA GPU, but jax runs on the CPU: pip install 'lwm[cuda]'"
    return None
