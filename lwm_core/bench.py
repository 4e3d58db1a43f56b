"""How fast a model runs on this machine, and how near that is to what the machine can do.

Two limits are measured beside the model: the bytes that the devices read from their memory, which
bound the writing of tokens, and the products that they compute, which bound all else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lwm_core import costs, vqgan, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.context import Context
from lwm_core.costs import Job, Work
from lwm_core.decode import DECODE_CHUNK, generate
from lwm_core.distributed import put
from lwm_core.errors import UsageError
from lwm_core.execution import Execution
from lwm_core.frame_batches import frames_at_once
from lwm_core.load import LoadedModel
from lwm_core.memory import free_memory, mesh_sizes
from lwm_core.plan import MARGIN
from lwm_core.sampling import Sampling
from lwm_core.train.language import LanguageState, language_step
from lwm_core.train.optimizer import LanguageOptimizerConfig, make_optimizer
from lwm_core.types import Batch, Progress, Tokens

Limit = Literal["memory", "arithmetic"]
"""What bounds a job: bytes read, or products."""

SHORTEST = 4 * DECODE_CHUNK
"""Tokens of context; what is written must take more than one call, for the first is not timed."""
MATRIX = 2048
"""Rows and columns of the squares whose product shows a device's arithmetic."""
READ_BYTES = 1 << 29
"""The size of what is read to show a device's memory: more than its caches hold."""


@dataclass(frozen=True)
class Machine:
    """What one device reaches: bytes read and FLOPs, each a second."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Figure:
    """One job: `speed` in `unit` a second, and the share of the limit that it reached, if known."""

    job: str
    speed: float
    unit: str
    limit: Limit | None = None
    share: float | None = None


@dataclass(frozen=True)
class Lengths:
    """Tokens that are read, tokens before writing, tokens written, and tokens trained on."""

    read: int = 2048
    before: int = 512
    written: int = 128
    trained: int = 1024

    def within(self, context: int) -> Lengths:
        """Lengths that a model of a shorter context has room for. Raises UsageError below 128."""
        if context < SHORTEST:
            raise UsageError(
                f"{context} tokens are too few to measure; give a --ctx from {SHORTEST}"
            )
        fitting = min(self.written, context // 2)
        room = context - fitting
        return Lengths(
            min(self.read, room), min(self.before, room), fitting, min(self.trained, room)
        )


def clocked(work: Callable[[], object]) -> float:
    """Seconds until everything that `work` returns is computed."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def median(run: Callable[[], float], repeats: int) -> float:
    """Of what `run` returns so often, after a first run that compiles."""
    run()
    return statistics.median(run() for _ in range(repeats))


def measure_machine(how: Execution, *, matrix: int = MATRIX, size: int = READ_BYTES) -> Machine:
    """The limits of a device of this process, at best of several runs; FLOPs are of `how.dtype`."""
    device = how.mesh.local_devices[0]
    rows = size // 4 // matrix
    table, vector, square = (
        jax.device_put(jnp.ones(shape, dtype), device)
        for shape, dtype in (
            ((rows, matrix), jnp.float32),
            (matrix, jnp.float32),
            ((matrix, matrix), how.dtype),
        )
    )
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    product(table, vector), product(square, square)
    read = min(clocked(lambda: product(table, vector)) for _ in range(7))
    computed = min(clocked(lambda: product(square, square)) for _ in range(7))
    return Machine(table.nbytes / read, 2 * matrix**3 / computed)


def measure(
    model: LoadedModel,
    machine: Machine,
    lengths: Lengths,
    repeats: int = 3,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Figure]:
    """The speed of a model at each job that it has, one after another as it is measured.

    Training is left out where the memory does not hold it.
    """
    timers = {
        "prefill": time_prefill,
        "decode": time_decode,
        "train": time_train if _has_room_to_train(model, lengths) else None,
        "encode": time_encode if model.vqgan else None,
    }
    jobs = [(job, timer) for job, timer in timers.items() if timer]
    for done, (job, timer) in enumerate(jobs):
        if on_progress:
            on_progress(Progress(f"measuring {job}", done, len(jobs), "figures"))
        yield timer(model, machine, lengths, repeats)


def time_prefill(model: LoadedModel, machine: Machine, lengths: Lengths, repeats: int) -> Figure:
    """A prompt into the cache, chunk by chunk, and one token behind it."""
    took = median(lambda: clocked(lambda: list(written(model, lengths.read, 1))), repeats)
    return _computed(model, machine, work_of(model, "prefill", lengths.read), took)


def time_decode(model: LoadedModel, machine: Machine, lengths: Lengths, repeats: int) -> Figure:
    """Single tokens behind a cached prompt; the clock starts after the first piece."""

    took = median(lambda: pace(written(model, lengths.before, lengths.written)), repeats)
    work = work_of(model, "decode", lengths.before + lengths.written // 2)
    share = costs.read(work, mesh_sizes(model.how.mesh)) / took / machine.bandwidth
    return Figure("decode", 1 / took, "tokens", "memory", share)


def time_train(model: LoadedModel, machine: Machine, lengths: Lengths, repeats: int) -> Figure:
    """One step of AdamW on one row for each of the devices that share them; weights are plain."""
    rows, how = mesh_sizes(model.how.mesh).rows, replace(model.how, whole_weights=False)
    work = _training_of(model, lengths)
    step = training(work.config, LanguageOptimizerConfig("adamw"), how, rows, work.context)
    return _computed(model, machine, work, median(lambda: clocked(step), repeats))


def time_encode(model: LoadedModel, machine: Machine, lengths: Lengths, repeats: int) -> Figure:
    """Pictures to codes, as many as go in one call."""
    image = model.vqgan
    assert image is not None  # the caller has looked
    count, side = frames_at_once(image.config), image.config.resolution
    pixels = np.random.default_rng(0).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)
    took = median(lambda: clocked(lambda: vqgan.encode(image, pixels)), repeats)
    return Figure("encode", count / took, "frames")


def work_of(model: LoadedModel, job: Job, tokens: int, rows: int = 1) -> Work:
    """A job on rows of so many tokens, as the model's numbers make it."""
    reading = model.reading(tokens)
    return Work(model.config, job, tokens, rows, reading.dtype, reading.cache_dtype)


def _computed(model: LoadedModel, machine: Machine, work: Work, took: float) -> Figure:
    """What is bound by arithmetic; what is computed twice counts once."""
    flops = costs.flops(work, "none") / model.how.mesh.size
    return Figure(
        work.job, work.tokens / took, "tokens", "arithmetic", flops / took / machine.flops
    )


def _training_of(model: LoadedModel, lengths: Lengths) -> Work:
    """A step of the model, or of the one that it was rounded from."""
    work = work_of(model, "train", lengths.trained, mesh_sizes(model.how.mesh).rows)
    return replace(work, config=replace(work.config, quantized=None))


def _has_room_to_train(model: LoadedModel, lengths: Lengths) -> bool:
    """Whether float32 weights, gradients and moments go beside the model."""
    mesh, free = mesh_sizes(model.how.mesh), free_memory(model.how.mesh.local_devices)
    needed = costs.memory(_training_of(model, lengths), mesh, "attention").total
    return needed <= MARGIN * free


def random_ids(config: ModelConfig, count: int) -> np.ndarray:
    """Text ids, int32 `[count]`."""
    return np.random.default_rng(0).integers(3, config.text_vocab, count, dtype=np.int32)


def one_row(ids: np.ndarray) -> Tokens:
    """Ids `[T]` as a batch of one row and one segment."""
    positions = np.arange(len(ids), dtype=np.int32)
    return Tokens(ids[None], positions[None], np.ones_like(positions)[None])


def written(
    model: LoadedModel, prompt: int, count: int, context: Context | None = None
) -> Iterator[np.ndarray]:
    """So many tokens behind a random prompt, the likeliest, in the pieces in which they come.

    What a context has of the prompt is not read again.
    """
    ids = random_ids(model.config, prompt).tolist()
    return generate(
        model,
        [ids],
        modality="text",
        sampling=Sampling(temperature=0),
        max_tokens=count,
        stops=False,
        context=context,
    )


def pace(pieces: Iterator[np.ndarray]) -> float:
    """Seconds that a token takes to be written, once the first piece is there."""
    next(pieces)
    began = time.perf_counter()
    count = sum(ids.shape[1] for ids in pieces)
    return (time.perf_counter() - began) / count


def training(
    config: ModelConfig, optimizer: LanguageOptimizerConfig, how: Execution, rows: int, length: int
) -> Callable[[], object]:
    """Something that takes one step on equal rows; weights begin anew and stay float32."""
    chain = make_optimizer(optimizer, steps=1000)
    step = jax.jit(partial(language_step, config, chain, how, settings=optimizer), donate_argnums=0)
    params = jax.tree.map(
        put, weight_tree.init(config, jax.random.key(0)), weight_tree.shardings(config, how)
    )
    state = LanguageState(jnp.int32(0), params, chain.init(params))
    row = one_row(random_ids(config, length))
    targets, weights = np.roll(row.ids, -1, axis=1), np.ones((1, length), np.float32)
    parts = row.ids, targets, row.positions, row.segments, weights
    batch = Batch(*(np.repeat(part, rows, axis=0) for part in parts))

    def one_step() -> object:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return one_step
