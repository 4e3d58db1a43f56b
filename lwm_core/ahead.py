"""What the real TPU compiler says of a plan, ahead of time and without a TPU.

The programs are those that run: the update of training, a chunk of a prompt, one more token.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from lwm_core.cache import abstract_cache
from lwm_core.decode import chunk_for
from lwm_core.errors import ConfigError, DoesNotFit, UsageError, is_out_of_memory
from lwm_core.execution import Execution
from lwm_core.hardware import Topology
from lwm_core.mesh import make_mesh
from lwm_core.plan import Plan
from lwm_core.train.language import abstract_state, filled_up, language_step
from lwm_core.train.optimizer import OptimizerConfig, make_optimizer
from lwm_core.transformer import read
from lwm_core.types import Batch, Tokens
from lwm_core.weight_tree import abstract_params

_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu looks for where there is no TPU; which one it names does not matter. And several
programs may compile at a time."""

Program = tuple[Callable, tuple, str]
"""A function, the shapes of its arguments, and the name of the one that it may overwrite."""


@dataclass(frozen=True)
class Compiled:
    """Bytes on each device: what goes in, and the most that is held at a time; seconds it took."""

    arguments: int
    peak: int
    seconds: float


def compile_plan(plan: Plan) -> Compiled:
    """Compile the program of a plan for its TPUs.

    Raises UsageError without libtpu or for hardware that is no TPU, ConfigError for a slice that
    the compiler does not know, DoesNotFit when it finds that memory does not suffice.
    """
    mesh = make_mesh(str(plan.mesh), _devices(plan.topology))
    function, shapes, overwritten = _program(plan, mesh)
    began = time.perf_counter()
    with uncached():
        lowered = jax.jit(function, donate_argnames=overwritten).lower(*shapes)
        try:
            analysis: Any = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFit(f"the compiler says: {str(error).splitlines()[0]}") from error
    return Compiled(
        analysis.argument_size_in_bytes,
        analysis.peak_memory_in_bytes,
        time.perf_counter() - began,
    )


def _devices(topology: Topology) -> list[jax.Device]:
    """The devices of a slice that need not exist."""
    chip = topology.chip
    if chip.platform != "tpu":
        raise UsageError(f"{topology} has no TPUs: only their compiler works without a device")
    if find_spec("libtpu") is None:
        raise UsageError("the compiler of TPUs is not installed; install lwm with [tpu]")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    name = f"{chip.name}:{'x'.join(map(str, topology.shape))}"
    # Of a v4 both cores are one device, as jax has it on real ones.
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"the compiler knows no slice {name}: {error}") from error


def _program(plan: Plan, mesh: Mesh) -> Program:
    """What a plan runs."""
    work, train = plan.work, plan.work.job == "train"
    config = dataclasses.replace(work.config, max_length=work.context)
    how = Execution(mesh, jnp.dtype(work.dtype), remat=plan.remat, whole_weights=not train)
    if train:
        optimizer = make_optimizer(OptimizerConfig(), steps=1000)
        ids = _tokens(how, work.batch, filled_up(work.context, how.ways))
        batch = Batch(ids, ids, ids, ids, weights=ids.update(dtype=jnp.float32))
        update = partial(language_step, config, optimizer, how)
        return update, (abstract_state(config, optimizer, how), batch), "state"
    length = 1 if work.job == "decode" else chunk_for(work.context, how.ways)
    ids = _tokens(how, work.batch, length)
    params = abstract_params(config, how)
    slots = -(-work.context // how.ways) * how.ways
    cache = abstract_cache(config, how, work.batch, slots, jnp.dtype(work.cache_dtype))

    def step(params: Any, tokens: Tokens, cache: Any) -> Any:
        return read(params, config, tokens, cache, how)

    return step, (params, Tokens(ids, ids, ids), cache), "cache"


def _tokens(how: Execution, rows: int, length: int) -> Any:
    place = how.sharding(how.token_spec(rows, shared=length > 1))
    return jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=place)


@contextmanager
def uncached() -> Iterator[None]:
    """What is compiled for devices that are not here could not be read from the cache again."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether there is one is asked once only
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
