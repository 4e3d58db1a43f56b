"""The engine of generation: chunked prefill, and decoding many tokens per compiled call.

All compiled programs take sizes from a few buckets, so that a growing conversation reuses them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lwm_core import integers
from lwm_core.cache import cache_specs, empty_cache
from lwm_core.config import ModelConfig
from lwm_core.context import Context, keep, widen
from lwm_core.costs import PREFILL_CHUNK
from lwm_core.distributed import put
from lwm_core.errors import ContextTooLong
from lwm_core.execution import Execution
from lwm_core.load import LoadedModel
from lwm_core.sampling import Numbers, Sampling, draw_tokens, guide
from lwm_core.tokens import FrameLayout, pad_left
from lwm_core.transformer import read, with_head_of
from lwm_core.types import KVCache, Progress, Tokens
from lwm_core.weight_tree import Params, is_split

Modality = Literal["text", "vision"]

PREFILL_CHUNKS = (PREFILL_CHUNK, 1024, 512)
"""Prompt tokens that a device reads in a compiled call: the most that pad by a quarter, or no more
than the least do."""
DECODE_CHUNK = 32
"""New tokens per compiled call, at most: between calls they are shown."""
SMALLEST_CACHE = 256


class Room(NamedTuple):
    """Sizes that compiled programs are made for: tokens of a prompt, and of it and its answer."""

    prompt: int
    total: int


AS_NEEDED = Room(0, 0)


class DecodeState(NamedTuple):
    """Everything between two decoding calls.

    `logits` float32 `[rows, range]` are those of the next token among the ids of its modality,
    `position` int32 `[rows]` its position, `drawn` how many tokens were drawn, `done` bool `[n]`
    which rows have ended (n is half of `rows` under guidance).
    """

    cache: KVCache
    logits: jax.Array
    position: jax.Array
    drawn: jax.Array
    done: jax.Array


def id_range(config: ModelConfig, modality: Modality) -> slice:
    """The ids that tokens of a modality are drawn from."""
    if modality == "text":
        return slice(0, config.text_vocab)
    return slice(config.text_vocab, config.vocab)


def _prefill(
    params: Params,
    tokens: Tokens,
    cache: KVCache,
    *,
    config: ModelConfig,
    modality: Modality,
    how: Execution,
) -> tuple[jax.Array, KVCache]:
    """One chunk of the prompts into the cache; logits after its last column."""
    return read(params, config, tokens, cache, how, id_range(config, modality))


def _decode(
    params: Params,
    state: DecodeState,
    count: jax.Array,
    numbers: Numbers,
    *,
    config: ModelConfig,
    modality: Modality,
    codes_only: bool,
    how: Execution,
    stops: bool,
) -> tuple[DecodeState, jax.Array]:
    """Draw up to `count` tokens, ids int32 `[n, DECODE_CHUNK]`; `stops`: a row ends at its end id.

    In vision every `frame_codes + 1`-th token is the end-of-frame marker, whatever was drawn.
    """
    allowed = id_range(config, modality)
    key = jax.random.key(numbers.seed)
    layout = FrameLayout.of(config)
    rows = state.done.shape[0]
    guided = state.logits.shape[0] == 2 * rows
    of_model, read_ids = (params, config), allowed
    if how.platform == "cpu" and how.mesh.shape["tp"] == 1:
        of_model, read_ids = with_head_of(allowed, params, config), slice(None)

    def goes_on(carry: tuple) -> jax.Array:
        step, state, _ = carry
        return (step < count) & ~state.done.all()

    def body(carry: tuple) -> tuple:
        step, state, ids = carry
        logits = guide(state.logits, numbers.guidance) if guided else state.logits
        if modality == "vision" and codes_only:
            logits = logits[:, : layout.codes]
        token = draw_tokens(logits, numbers, jax.random.fold_in(key, state.drawn))
        token = token + allowed.start
        if modality == "vision":
            marks = (state.drawn + 1) % layout.frame_tokens == 0
            token = jnp.where(marks, layout.end_of_frame, token)
        token = jnp.where(state.done, 0, token)
        ids = ids.at[:, step].set(token)
        done = state.done | ((token == config.eos_id) & stops)
        fed = jnp.tile(token, 2) if guided else token
        tokens = Tokens(fed[:, None], state.position[:, None], jnp.ones_like(fed)[:, None])
        logits, cache = read(*of_model, tokens, state.cache, how, read_ids)
        drawn = state.drawn + 1
        state = DecodeState(cache, logits, state.position + 1, drawn, done)
        return step + 1, state, ids

    ids = jnp.zeros((rows, DECODE_CHUNK), jnp.int32)
    _, state, ids = jax.lax.while_loop(goes_on, body, (jnp.int32(0), state, ids))
    # Whole on every device: each process reads what its own devices have.
    whole = partial(jax.lax.with_sharding_constraint, shardings=how.sharding(PartitionSpec()))
    return state._replace(done=whole(state.done)), whole(ids)


class _Programs(NamedTuple):
    """The two that are compiled for every size."""

    prefill: Callable[..., tuple[jax.Array, KVCache]]
    decode: Callable[..., tuple[DecodeState, jax.Array]]


@functools.cache
def _compiled(in_integers: bool) -> _Programs:
    """The programs, with or without the options for sums of integers."""
    options = integers.COMPILER_OPTIONS if in_integers else None
    static = ("config", "modality", "how")
    return _Programs(
        jax.jit(_prefill, static_argnames=static, donate_argnums=2, compiler_options=options),
        jax.jit(
            _decode,
            static_argnames=(*static, "codes_only", "stops"),
            donate_argnums=1,
            compiler_options=options,
        ),
    )


def _programs(model: LoadedModel) -> _Programs:
    """Those that suit a model's numbers and its devices."""
    has_integers = model.config.quantized is not None or model.cache_dtype == jnp.int8
    return _compiled(has_integers and model.how.platform == "cpu")


def chunk_for(tokens: int, ways: int = 1) -> int:
    """How many of so many prompt tokens are read in one call, by so many devices together."""
    each = -(-tokens // ways)
    room = max(each // 4, -each % PREFILL_CHUNKS[-1])
    fitting = next(size for size in PREFILL_CHUNKS if -each % size <= room)
    return ways * min(fitting, 1 << (each - 1).bit_length())


def cache_slots(tokens: int, most: int, ways: int = 1) -> int:
    """The smallest bucket (a power of two, or one and a half) that holds so many tokens.

    There need not be more than `most`, but for whole blocks. Every one of so many devices has
    equally many of the slots.
    """
    size = SMALLEST_CACHE
    while size < tokens:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(_whole(size, ways), _whole(most, SMALLEST_CACHE * ways))


def _whole(size: int, unit: int) -> int:
    """The size rounded up to a multiple of the unit."""
    return -(-size // unit) * unit


def generate(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    modality: Modality,
    sampling: Sampling,
    max_tokens: int,
    stops: bool = True,
    context: Context | None = None,
    room: Room = AS_NEEDED,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[np.ndarray]:
    """Draw tokens behind the prompts; yields ids, int32 `[rows, k]`, as they come.

    Prompts are padded on the left. Under guidance the second half of them is unconditional and
    `rows` is half their number. With `stops` a row that drew the end id goes on with zeros, and
    all ends when every row has. With a `context`, of a single prompt, what it shares with the
    prompt is not read again, and it then holds all that was read and drawn. With `room` that a
    later call will need the programs of this one serve that too. Raises ContextTooLong when prompt
    and answer don't fit.
    """
    longest = max(map(len, prompts))
    if longest + max_tokens > model.context:
        raise ContextTooLong(
            f"{longest} tokens of prompt and {max_tokens} to come are more than the "
            f"{model.context} of {model.name}: shorten the prompt or ask for less"
        )
    if context is not None and len(prompts) > 1:
        raise ValueError(f"a context is that of one prompt, and there are {len(prompts)}")
    static = {
        "config": model.config,
        "modality": modality,
        "how": model.how,
    }
    cache, logits = _read(model, prompts, max_tokens, static, context, room, on_progress)
    guided = sampling.guidance != 1
    everywhere = partial(put, place=model.how.sharding(PartitionSpec()))
    state = DecodeState(
        cache=cache,
        logits=logits,
        position=everywhere(np.asarray([len(prompt) for prompt in prompts], np.int32)),
        drawn=everywhere(np.int32(0)),
        done=everywhere(np.zeros(len(prompts) // 2 if guided else len(prompts), bool)),
    )
    written = 0
    while written < max_tokens:
        count = min(DECODE_CHUNK, max_tokens - written)
        state, drawn = _programs(model).decode(
            model.params,
            state,
            np.int32(count),
            sampling.numbers,
            codes_only=sampling.codes_only,
            stops=stops,
            **static,
        )
        if context is not None:
            context.cache = state.cache  # the one before is used up, whatever comes between
        # As NumPy's: an operation on one of jax's is a program of its own.
        ids, done = np.asarray(drawn), np.asarray(state.done)
        new = int(state.drawn) - written
        written += new
        if context is not None:
            context.ids += ids[0, :new].tolist()
        if on_progress:
            on_progress(Progress("writing", written, max_tokens, "tokens"))
        yield ids[:, :new]
        if done.all():
            return


def read_context(
    model: LoadedModel,
    ids: Sequence[int],
    on_progress: Callable[[Progress], None] | None = None,
) -> Context:
    """Read ids, for prompts that begin with them. Raises ContextTooLong when they are too many."""
    if len(ids) >= model.context:
        raise ContextTooLong(
            f"{len(ids)} tokens leave no room for a question in the {model.context} of "
            f"{model.name}: shorten the text, show fewer frames (--frames), or give a longer --ctx"
        )
    context = Context()
    static = {"config": model.config, "modality": "text", "how": model.how}
    _read(model, [ids], 0, static, context, AS_NEEDED, on_progress)
    return context


def _read(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    static: dict,
    context: Context | None,
    room: Room,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[KVCache, jax.Array]:
    """Prefill the prompts in chunks, but for what a context holds of them; it then holds all.

    Returns the cache and the logits behind the prompts.
    """
    known = context.shared_with(prompts[0]) if context is not None else 0
    longest = max(map(len, prompts)) - known
    chunk = chunk_for(max(longest, room.prompt), model.how.ways)
    length = _whole(longest, chunk)
    ids, positions, segments = pad_left([prompt[known:] for prompt in prompts], length)
    padded = ids, positions + known * segments, segments
    needed = max(length + max_tokens, _whole(room.prompt, chunk) + room.total - room.prompt)
    cache = _cache_for(model, len(prompts), needed, chunk, known, context)
    for end in range(chunk, length + 1, chunk):
        tokens = Tokens(*(part[:, end - chunk : end] for part in padded))
        logits, cache = _programs(model).prefill(model.params, tokens, cache, **static)
        if context is not None:
            # Whoever stops here keeps what is read.
            read_so_far = known + max(0, end - (length - longest))
            context.ids, context.cache = list(prompts[0][:read_so_far]), cache
        if on_progress:
            jax.block_until_ready(logits)  # jax runs ahead: report what is done, not what is begun
            on_progress(Progress("reading", end, length, "tokens"))
    return cache, logits


def _cache_for(
    model: LoadedModel,
    rows: int,
    tokens: int,
    chunk: int,
    known: int,
    context: Context | None,
) -> KVCache:
    """A cache with room for so many tokens behind those `known` of a context, if there are any.

    The tokens come in chunks, of which the first is filled up.
    """
    how, most = model.how, model.context + chunk
    if context is None or context.cache is None or not known:
        if context is not None:
            context.cache = None  # not two at a time
        slots = cache_slots(tokens, most, how.ways)
        split = is_split(model.params)
        return _fresh(model.config, rows, slots, model.cache_dtype, how, split)
    cache = keep(context.cache, known, how.ways)
    slots = cache_slots(int(cache.length) + tokens, int(cache.length) + most, how.ways)
    return widen(cache, slots, how) if slots > cache.positions.shape[1] else cache


@partial(jax.jit, static_argnames=("config", "rows", "slots", "dtype", "how", "split"))
def _fresh(
    config: ModelConfig, rows: int, slots: int, dtype: jnp.dtype, how: Execution, split: bool
) -> KVCache:
    """An empty cache, every part of it made where it lies."""
    cache = empty_cache(config, rows, slots, dtype, split=split)
    places = jax.tree.map(how.sharding, cache_specs(how, cache))
    return jax.lax.with_sharding_constraint(cache, places)
