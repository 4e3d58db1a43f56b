"""What a model runs on: chips with their figures, and how many of them make a machine or a slice.

Standard library only. Figures are peaks of the vendors' data sheets: of TPUs those in Google
Cloud's documentation of v4, v5e, v5p and v6e, of GPUs NVIDIA's (dense, not sparse; the SXM form
where there are several). Memory is what a program gets: of a TPU what its compiler names when a
program is too large, of a GPU the data sheet's less what CUDA and its libraries take. The figures
of a CPU are guesses.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lwm_core.errors import ConfigError

Platform = Literal["tpu", "gpu", "cpu"]

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """One device.

    `memory` is in bytes, `flops` the peak of bfloat16 products in FLOP/s, `bandwidth` that of its
    memory in B/s, `link` what goes to one neighbour, one way, in B/s. A TPU's slice of `NAME-N`
    has N / `cores` chips.
    """

    name: str
    platform: Platform
    memory: int
    flops: float
    bandwidth: float
    link: float
    cores: int = 1


def _tpu(name: str, gib: float, tera: float, giga: float, link: float, cores: int) -> Chip:
    return Chip(name, "tpu", int(gib * GIB), tera * 1e12, giga * 1e9, link * 1e9, cores)


_GPU_SHARE = 0.92
"""Of a GPU's memory; the rest goes to CUDA's context, its libraries and fragments."""


def _gpu(name: str, gib: int, tera: float, giga: float, link: float = 32) -> Chip:
    """A GPU; by default its neighbours are at the other end of PCIe 4.0 x16."""
    return Chip(name, "gpu", int(_GPU_SHARE * gib * GIB), tera * 1e12, giga * 1e9, link * 1e9)


TPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", 30.75, 275, 1228, 50, 2),
        _tpu("v5e", 15.75, 197, 819, 50, 1),
        _tpu("v5p", 95.74, 459, 2765, 100, 2),
        _tpu("v6e", 31.25, 918, 1638, 100, 1),
    )
}

GPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _gpu("3090-24gb", 24, 71, 936),
        _gpu("4090-24gb", 24, 165, 1008),
        _gpu("l4-24gb", 24, 121, 300),
        _gpu("a10-24gb", 24, 125, 600),
        _gpu("a100-40gb", 40, 312, 1555, 300),
        _gpu("a6000-48gb", 48, 155, 768),
        _gpu("l40s-48gb", 48, 362, 864),
        _gpu("a100-80gb", 80, 312, 2039, 300),
        _gpu("h100-80gb", 80, 989, 3350, 450),
        _gpu("h200-141gb", 141, 989, 4800, 450),
        _gpu("b200-180gb", 180, 2250, 8000, 900),
    )
}

_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8)),
    *((4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16)),
)
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))

SLICES: dict[str, tuple[tuple[int, ...], ...]] = {
    "v4": _CUBES[:-1],
    "v5e": _SQUARES,
    "v5p": _CUBES,
    "v6e": _SQUARES,
}
"""The usual shapes of slices of each kind of TPU, from the smallest to the largest."""

_HOST_OF_TPUS, _FLAT_HOST, _HOST_OF_GPUS = 4, 8, 8
"""Chips of one host; slices of v5e and v6e of up to eight chips have a host of their own."""

_NETWORK = 25e9
"""Between hosts of GPUs, in B/s for each: a port of 200 Gb/s, a guess at what people have."""

_OTHER_NAMES = {"v5litepod": "v5e"}
_OTHER_NAMES |= {
    chip.partition("-")[0]: chip
    for chip in GPUS
    if not chip.startswith("a100")  # comes in two
}

_DEVICE_KINDS = (
    (r"TPU v4", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5", "v5p"),
    (r"TPU v6", "v6e"),
    (r"A100.*80GB", "a100-80gb"),
    (r"A100", "a100-40gb"),
    (r"RTX A6000", "a6000-48gb"),
    (r"RTX 3090", "3090-24gb"),
    (r"RTX 4090", "4090-24gb"),
    (r"\bL40S", "l40s-48gb"),
    (r"\bL4\b", "l4-24gb"),
    (r"\bA10G?\b", "a10-24gb"),
    (r"\bH100", "h100-80gb"),
    (r"\bH200", "h200-141gb"),
    (r"\bB200", "b200-180gb"),
)
"""What jax calls a device, as a pattern, and the name in our tables; the first that fits counts."""


@dataclass(frozen=True)
class Topology:
    """So many chips of one kind, on so many hosts; `shape` is how those of a TPU's slice lie."""

    chip: Chip
    count: int
    hosts: int = 1
    shape: tuple[int, ...] = ()

    @property
    def link(self) -> float:
        """What a chip sends to the next, one way, in B/s: over the slowest step of a ring."""
        crosses = self.chip.platform == "gpu" and self.hosts > 1
        return min(self.chip.link, _NETWORK) if crosses else self.chip.link

    def __str__(self) -> str:
        if self.shape:
            return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return f"{self.count}x{self.chip.name}" if self.count > 1 else self.chip.name


def tpu_slice(kind: str, shape: tuple[int, ...]) -> Topology:
    """A slice of TPUs. Raises ConfigError for a shape that none has."""
    chip, known = TPUS[kind], SLICES[kind]
    is_whole_cubes = len(known[0]) == 3 == len(shape) and all(s and s % 4 == 0 for s in shape)
    if shape not in known and not (is_whole_cubes and math.prod(shape) <= math.prod(known[-1])):
        shapes = ", ".join("x".join(map(str, one)) for one in known)
        raise ConfigError(
            f"no {kind} slice is {'x'.join(map(str, shape))}; there are {shapes}"
            + (" and others of sides that are multiples of 4" if len(known[0]) == 3 else "")
        )
    count = math.prod(shape)
    largest_host = _FLAT_HOST if len(shape) == 2 else _HOST_OF_TPUS
    return Topology(chip, count, 1 if count <= largest_host else count // _HOST_OF_TPUS, shape)


def parse_topology(text: str) -> Topology:
    """The hardware that a text names.

    `v5p-128` (as Google Cloud counts: cores of v4 and v5p, chips of v5e and v6e), `v4:4x4x4` or
    `v4-4x4x4`, `8xh100-80gb`, `4x24gb` (GPUs by their memory), `cpu` (this machine). Raises
    ConfigError, saying what is known, for any other.
    """
    name = text.strip().lower()
    if name == "cpu":
        return Topology(this_cpu(), 1)
    if tpu := re.fullmatch(r"(v\d\w*)[-:](\d+(?:x\d+)*)", name):
        kind = _OTHER_NAMES.get(tpu[1], tpu[1])
        if kind in TPUS:
            sides = tuple(map(int, tpu[2].split("x")))
            return tpu_slice(kind, sides) if len(sides) > 1 else _by_cores(text, kind, sides[0])
    if gpus := re.fullmatch(r"(?:([1-9]\d{0,4})x)?([\w-]+)", name):
        count, chip = int(gpus[1] or 1), _gpu_called(gpus[2])
        if chip:
            return Topology(chip, count, -(-count // _HOST_OF_GPUS))
    raise ConfigError(f"no hardware is called {text!r}; {_known(name)}")


def _by_cores(text: str, kind: str, number: int) -> Topology:
    """The slice that Google Cloud calls `KIND-NUMBER`."""
    cores = TPUS[kind].cores
    for shape in SLICES[kind]:
        if math.prod(shape) * cores == number:
            return tpu_slice(kind, shape)
    numbers = ", ".join(str(math.prod(shape) * cores) for shape in SLICES[kind])
    counted = "cores" if cores > 1 else "chips"
    raise ConfigError(
        f"{text}: {kind} slices have {numbers} {counted}; name another by its shape, "
        f"such as {kind}:{'x'.join(map(str, SLICES[kind][4]))}"
    )


def _gpu_called(name: str) -> Chip | None:
    """The GPU of a name, or one of so much memory; None where there is none."""
    if chip := GPUS.get(_OTHER_NAMES.get(name, name)):
        return chip
    by_memory = re.fullmatch(r"([1-9]\d{0,3})gb", name)
    return _modest(name, "gpu", int(_GPU_SHARE * int(by_memory[1]) * GIB)) if by_memory else None


def _modest(name: str, platform: Platform, memory: int) -> Chip:
    """A chip of which the memory is known: as slow as the slowest known ones of no more memory."""
    table = (TPUS if platform == "tpu" else GPUS).values()
    least = min(chip.memory for chip in table)
    largest = max(chip.memory for chip in table if chip.memory <= max(memory, least))
    peers = [chip for chip in table if chip.memory == largest]
    return Chip(
        name,
        platform,
        memory,
        min(chip.flops for chip in peers),
        min(chip.bandwidth for chip in peers),
        min(chip.link for chip in peers),
    )


def _known(name: str) -> str:
    """What could have been meant instead, in words."""
    nearest = difflib.get_close_matches(re.sub(r"^\d+x", "", name), [*GPUS, *_OTHER_NAMES], n=2)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return (
        f"{hint}known are slices of TPUs ({', '.join(TPUS)}: write v5p-128 or v4:4x4x4), "
        f"GPUs ({', '.join(GPUS)}: write 8xh100-80gb, or 4x24gb) and cpu"
    )


def cores() -> int:
    """How many of this machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def training_devices(mesh: str) -> int | None:
    """How many devices a CPU is to be for training: each core one, unless a mesh was asked for."""
    return cores() if mesh == "auto" else None


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor has instructions for products of bfloat16.

    `cpuinfo` is what Linux says of it. Without such a file they are taken to be missing: at worst
    rounded weights then read prompts more slowly.
    """
    try:
        said = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", said) is not None


def this_cpu(devices: int = 1) -> Chip:
    """One of so many equal parts of this machine's processor and memory; its speed is a guess."""
    return Chip(
        "cpu",
        "cpu",
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // devices,
        200e9 * cores() / devices,
        30e9 / devices,
        10e9 / devices,
    )


def recognise(platform: str, kind: str, memory: int | None = None) -> Chip:
    """The chip that jax sees as a device of this platform, kind and memory limit in bytes.

    One that is in no table is taken to be as fast as known ones of its memory.
    """
    if platform == "cpu":
        return this_cpu()
    for pattern, name in _DEVICE_KINDS:
        if re.search(pattern, kind):
            chip = (TPUS | GPUS)[name]
            return dataclasses.replace(chip, memory=memory) if memory else chip
    table = TPUS if platform == "tpu" else GPUS
    least = min(chip.memory for chip in table.values())
    return _modest(kind, "tpu" if platform == "tpu" else "gpu", memory or least)
