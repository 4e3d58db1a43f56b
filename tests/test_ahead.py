"""The TPU compiler ahead of time: it takes the product's own programs, and the estimates hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lwm_core import ahead
from lwm_core.axes import parse_mesh
from lwm_core.config import SIZES, ModelConfig, Remat
from lwm_core.costs import CacheDtype, Job, Work
from lwm_core.errors import ConfigError, DoesNotFit, UsageError
from lwm_core.hardware import GIB, parse_topology
from lwm_core.mesh import make_mesh
from lwm_core.plan import Plan, estimate

LWM = dataclasses.replace(SIZES["7b"], rope_theta=5e7)
SMALL = ModelConfig(
    text_vocab=512, hidden=256, intermediate=512, layers=2, heads=8, kv_heads=4, head_dim=64,
    max_length=8192,
)  # fmt: skip
MILLION = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A new cache of compiled programs that takes even the smallest."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}

    def use(values: dict[str, object]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(options)
    yield tmp_path
    use(before)


def planned(
    config: ModelConfig,
    job: Job,
    context: int,
    hardware: str,
    mesh: str,
    remat: Remat = "none",
    cache: CacheDtype = "bfloat16",
) -> Plan:
    topology = parse_topology(hardware)
    work = Work(config, job, context, cache_dtype=cache)
    return estimate(work, topology, parse_mesh(mesh, topology.count), remat)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"install lwm with \[tpu\]"):
        ahead.compile_plan(planned(SMALL, "decode", 8192, "v5e-8", "sp=8"))


def test_no_tpu() -> None:
    with pytest.raises(UsageError, match="no TPUs"):
        ahead.compile_plan(planned(SMALL, "decode", 8192, "8xh100-80gb", "tp=4,sp=2"))


needs_compiler = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed; install lwm with [tpu]"
)


def test_absent_devices_never_meet_the_cache(cache: Path) -> None:
    """Though it is in use before and after."""

    def stored(number: float) -> int:
        jax.jit(lambda x: x * number).lower(1.0).compile()
        return len(list(cache.glob("*-cache")))

    assert stored(2.5) == 1
    with ahead.uncached():
        assert stored(3.5) == 1
    assert stored(4.5) == 2


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("mesh", ["sp=8", "fsdp=2,tp=2,sp=2", "tp=4,sp=2"])
@pytest.mark.parametrize("job", ["train", "prefill", "decode"])
def test_every_job_compiles(job: Job, mesh: str) -> None:
    """With what it holds between steps to the byte: the arrays that go in."""
    batch = 2 if "fsdp" in mesh else 1
    plan = planned(SMALL, job, 8192, "v5e-8", mesh, "block")
    plan = dataclasses.replace(plan, work=dataclasses.replace(plan.work, batch=batch))
    compiled = ahead.compile_plan(plan)
    memory = estimate(plan.work, plan.topology, plan.mesh, "block").memory
    kept = memory.parameters + memory.optimizer + memory.cache
    assert kept <= compiled.arguments < 1.05 * kept + 2**20
    assert jax.config.values["jax_enable_compilation_cache"]


@pytest.mark.slow
@needs_compiler
def test_keys_travel_while_the_kernel_works() -> None:
    """In the compiler's own schedule a ring's kernels stand between sending and receiving."""
    plan = planned(dataclasses.replace(SMALL, head_dim=128), "train", 8192, "v5e-8", "sp=8")
    mesh = make_mesh(str(plan.mesh), ahead._devices(plan.topology))
    function, shapes, _ = ahead._program(plan, mesh)
    with ahead.uncached():
        text = jax.jit(function).lower(*shapes).compile().as_text()
    rings = []
    for body in re.split(r"\n(?=%|ENTRY)", text):
        found = re.findall(
            r" (?:collective-permute-(start|done)\(|custom-call\(.*tpu_(custom)_call)", body
        )
        steps = ["".join(pair) for pair in found]
        if "custom" in steps:
            rings.append(steps)
    assert len(rings) >= 2  # forward and backward
    for steps in rings:
        first, last = steps.index("custom"), len(steps) - 1 - steps[::-1].index("custom")
        assert "start" in steps[:first]
        assert "done" in steps[last:]


@pytest.mark.slow
@needs_compiler
def test_what_is_too_large() -> None:
    with pytest.raises(DoesNotFit, match="exceeds available HBM"):
        ahead.compile_plan(planned(LWM, "decode", MILLION, "v5e-8", "sp=8"))
    odd = planned(SMALL, "decode", 8192, "v5e-8", "sp=8")
    odd = dataclasses.replace(odd, topology=dataclasses.replace(odd.topology, shape=(1, 8)))
    with pytest.raises(ConfigError, match="knows no slice v5e:1x8"):
        ahead.compile_plan(odd)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("hardware", "mesh", "remat", "limit"),
    [
        ("v4:4x4x4", "sp=64", "block", 11.0),
        ("v4:4x4x8", "sp=128", "block", 6.0),
        ("v5e:16x16", "sp=256", "full", 3.2),
    ],
)
def test_a_million_tokens(hardware: str, mesh: str, remat: Remat, limit: float) -> None:
    """A step of LWM-7B on rows of 1,048,576 tokens; the estimate is within a fifth."""
    plan = planned(LWM, "train", MILLION, hardware, mesh, remat)
    compiled = ahead.compile_plan(plan)
    assert compiled.peak <= limit * GIB
    assert abs(plan.memory.total / compiled.peak - 1) <= 0.2
