"""Hardware by name and by what jax reports, against the vendors' figures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from lwm_core.errors import ConfigError
from lwm_core.hardware import (
    GIB,
    GPUS,
    SLICES,
    TPUS,
    multiplies_bfloat16,
    parse_topology,
    recognise,
    this_cpu,
)

MEMORY = Path("/proc/meminfo")


@pytest.mark.parametrize(
    ("text", "chips", "hosts", "shape"),
    [
        # The table of v5p slices in Google Cloud's documentation: cores, chips, hosts.
        ("v5p-8", 4, 1, (2, 2, 1)),
        ("v5p-16", 8, 2, (2, 2, 2)),
        ("v5p-128", 64, 16, (4, 4, 4)),
        ("v5p-8192", 4096, 1024, (16, 16, 16)),
        ("v4-4096", 2048, 512, (8, 16, 16)),
        ("v4:4x4x8", 128, 32, (4, 4, 8)),
        ("v4-4x4x12", 192, 48, (4, 4, 12)),
        ("v5e-8", 8, 1, (2, 4)),
        ("V5litepod-256", 256, 64, (16, 16)),
        (" v6e:4x8 ", 32, 8, (4, 8)),
        ("8xh100-80gb", 8, 1, ()),
        ("h100", 1, 1, ()),
        ("12xa100-40gb", 12, 2, ()),
        ("4x24gb", 4, 1, ()),
    ],
)
def test_names(text: str, chips: int, hosts: int, shape: tuple[int, ...]) -> None:
    topology = parse_topology(text)
    assert (topology.count, topology.hosts, topology.shape) == (chips, hosts, shape)
    assert parse_topology(str(topology)) == topology


@pytest.mark.parametrize("kind", TPUS)
def test_slices_grow_and_are_named_in_both_ways(kind: str) -> None:
    counts = [math.prod(shape) for shape in SLICES[kind]]
    assert counts == sorted(set(counts))
    for shape, count in zip(SLICES[kind], counts, strict=True):
        topology = parse_topology(f"{kind}-{count * TPUS[kind].cores}")
        assert (topology.shape, topology.chip) == (shape, TPUS[kind])


def test_figures_of_whole_pods() -> None:
    """Google Cloud names the bfloat16 peak of pods of 256 chips in PFLOP/s."""
    assert 256 * TPUS["v5e"].flops == pytest.approx(50.63e15, rel=0.01)
    assert 256 * TPUS["v6e"].flops == pytest.approx(234.9e15, rel=0.01)


@pytest.mark.parametrize("chip", GPUS.values(), ids=lambda chip: chip.name)
def test_memory_of_gpus_is_a_little_less_than_their_names_say(chip) -> None:
    marked = int(chip.name.rpartition("-")[2].removesuffix("gb"))
    assert 0.9 * marked < chip.memory / GIB < 0.95 * marked


def test_gpus_by_memory_are_as_slow_as_any_of_theirs() -> None:
    chip = parse_topology("24gb").chip
    of_24 = [one for name, one in GPUS.items() if name.endswith("-24gb")]
    assert chip.memory == of_24[0].memory
    assert chip.flops == min(one.flops for one in of_24)
    assert chip.bandwidth == min(one.bandwidth for one in of_24)
    assert parse_topology("16gb").chip.memory < chip.memory < parse_topology("32gb").chip.memory


def test_hosts_of_gpus_are_farther_apart_than_gpus() -> None:
    near, far = parse_topology("8xh100"), parse_topology("16xh100")
    assert near.link == near.chip.link > far.link
    assert parse_topology("v4-8").link == parse_topology("v4-128").link


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v5p-100", "v5p slices have 8, 16, 32, .* cores; .* v5p:4x4x4"),
        ("v6e-3", "v6e slices have 1, 4, 8, .* chips"),
        ("v4:3x3x3", "no v4 slice is 3x3x3; there are 2x2x1, .* multiples of 4"),
        ("v4:16x16x32", "no v4 slice is"),
        ("v4:4x4", "no v4 slice is 4x4"),
        ("v5e:2x3", "no v5e slice is 2x3; there are 1x1, .*, 16x16$"),
        ("v7-8", "no hardware is called 'v7-8'; known are slices of TPUs .v4, v5e, v5p, v6e"),
        ("8xh10", "did you mean h100"),
        ("0xh100", "no hardware"),
        ("a100", "no hardware"),
        ("", "no hardware is called ''"),
        ("0gb", "no hardware"),
        ("9999999999999999xh100", "no hardware"),
    ],
)
def test_names_of_nothing(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_topology(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("platform", "kind", "name"),
    [
        ("tpu", "TPU v4", "v4"),
        ("tpu", "TPU v5 lite", "v5e"),
        ("tpu", "TPU v5e", "v5e"),
        ("tpu", "TPU v5", "v5p"),
        ("tpu", "TPU v5p", "v5p"),
        ("tpu", "TPU v6 lite", "v6e"),
        ("gpu", "NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("gpu", "NVIDIA H200", "h200-141gb"),
        ("gpu", "NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("gpu", "NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("gpu", "NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("gpu", "NVIDIA A10G", "a10-24gb"),
        ("gpu", "NVIDIA L4", "l4-24gb"),
        ("gpu", "NVIDIA L40S", "l40s-48gb"),
        ("gpu", "NVIDIA RTX A6000", "a6000-48gb"),
        ("gpu", "NVIDIA GeForce RTX 3090", "3090-24gb"),
        ("gpu", "NVIDIA GeForce RTX 4090", "4090-24gb"),
    ],
)
def test_devices_that_jax_names(platform: str, kind: str, name: str) -> None:
    chip = recognise(platform, kind)
    assert chip == (TPUS | GPUS)[name]
    assert recognise(platform, kind, 5 * GIB).memory == 5 * GIB


def test_unknown_devices_have_their_memory_and_modest_figures() -> None:
    chip = recognise("gpu", "NVIDIA Future", 60 * GIB)
    assert (chip.name, chip.memory) == ("NVIDIA Future", 60 * GIB)
    assert chip.flops == GPUS["a6000-48gb"].flops
    assert recognise("tpu", "TPU v9", 90 * GIB).platform == "tpu"
    assert recognise("gpu", "old", GIB).flops == min(one.flops for one in GPUS.values())


def test_this_machine() -> None:
    chip = recognise("cpu", "cpu")
    assert chip == this_cpu() == parse_topology("cpu").chip
    assert this_cpu(4).memory == chip.memory // 4


@pytest.mark.skipif(not MEMORY.exists(), reason="this is no Linux")
def test_memory_of_this_machine() -> None:
    total = int(re.search(r"MemTotal: +(\d+) kB", MEMORY.read_text())[1]) * 1024
    assert this_cpu().memory == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", True),  # Xeon of 2023
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_vnni", True),  # Zen 4
        ("Features\t: fp asimd i8mm bf16 dgh", True),  # Neoverse V1
        ("flags\t\t: fpu avx avx2 fma sha_ni", False),  # Zen 3
        ("flags\t\t: fpu avx512f avx512bw avx512_vnni", False),  # Cascade Lake
    ],
)
def test_processors_that_multiply_bfloat16(tmp_path: Path, said: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{said}\nbogomips\t: 4890.80\n")
    assert multiplies_bfloat16(tmp_path / "cpuinfo") == expected
    assert not multiplies_bfloat16(tmp_path / "missing")
