"""What one step of a job costs each device: bytes held, bytes read, bytes sent, and FLOPs.

Standard library only, and arithmetic only: sums of named terms over the sizes of a model, a job
and a mesh. Letters are those of `lwm_core.types`, for what lies on one device: t tokens, d the
hidden size, n and k the sizes of all its query heads and of all its key heads, c the bytes of a
number that is computed with. The structure is that of the programs: layers scanned, their weights
gathered one layer at a time, attention by a ring over `sp`, feed-forward and loss by blocks of
tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lwm_core.axes import MeshSizes
from lwm_core.config import ModelConfig, Remat

Job = Literal["train", "prefill", "decode"]
Dtype = Literal["float32", "bfloat16"]
CacheDtype = Literal["float32", "bfloat16", "int8"]

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
FLOAT32 = 4

FEED_FORWARD_BLOCK = 1024
"""Tokens of one device whose inner values exist at a time."""
LOSS_BLOCK = 2048
"""Tokens of one device whose logits exist at a time."""
PREFILL_CHUNK = 2048
"""Tokens of a prompt that each device of `sp` reads in one call."""

_ATTENTION_BACKWARD = 2.5
"""Of the forward FLOPs: five products instead of two, for the scores are computed again."""

_OF_A_BLOCK = ("wq", "wk", "wv", "wo", "w_gate", "w_up")
_RECOMPUTED = {
    "none": ("w_gate", "w_up"),
    "attention": _OF_A_BLOCK,
    "block": _OF_A_BLOCK,
    "full": _OF_A_BLOCK * 2 + ("w_down",),
}
"""Products that the backward pass does again; what only the block's output needs is left out."""

_ATTENTION_AGAIN = {"none": 0, "attention": 0, "block": 1, "full": 2}
_REDUCTIONS_AGAIN = {"none": 0, "attention": 1, "block": 1, "full": 3}
_GATHERS = {"none": 1, "attention": 2, "block": 2, "full": 3}


@dataclass(frozen=True)
class Work:
    """What is to be done: a job on `batch` rows of `context` tokens.

    A step is an update (train), the reading of all prompts (prefill), or one new token in each row
    at the end of the context (decode). `dtype` is what is computed in, and what weights are kept
    in for inference; training keeps them in float32. An update can take the rows in `parts`, one
    after another.
    """

    config: ModelConfig
    job: Job
    context: int
    batch: int = 1
    dtype: Dtype = "bfloat16"
    cache_dtype: CacheDtype = "bfloat16"
    parts: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of all rows that one step computes."""
        return self.batch * (1 if self.job == "decode" else self.context)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, by part."""

    parameters: int
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    cache: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return (
            self.parameters
            + self.optimizer
            + self.gradients
            + self.activations
            + self.cache
            + self.temporary
        )


class Sent(NamedTuple):
    """Bytes that each device sends, in so many collective operations."""

    bytes: float = 0
    calls: int = 0

    def plus(self, calls: int, each: float) -> Sent:
        """With `calls` more operations of `each` bytes."""
        return Sent(self.bytes + calls * each, self.calls + calls)


class _Local(NamedTuple):
    """The sizes on one device (see above); `rows` of the batch, `slots` of a row's cache."""

    t: int
    d: int
    n: int
    k: int
    c: int
    heads: int
    rows: int
    slots: int

    @classmethod
    def of(cls, work: Work, mesh: MeshSizes) -> _Local:
        config = work.config
        rows = -(-work.batch // (work.parts * mesh.rows))
        slots = -(-work.context // mesh.sp)
        heads, kv_heads = config.heads // mesh.tp, config.kv_heads // mesh.tp
        return cls(
            t=rows if work.job == "decode" else rows * slots,
            d=config.hidden,
            n=heads * config.head_dim,
            k=kv_heads * config.head_dim,
            c=BYTES[work.dtype],
            heads=heads,
            rows=rows,
            slots=slots,
        )

    @property
    def values(self) -> int:
        """Bytes a token of one layer that are held at a time outside of the feed-forward: its
        input and output, queries and what attention gives, keys and values."""
        return (2 * self.d + 2 * self.n + 2 * self.k) * self.c


# Weights


def _layer(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices of a layer: the dimension beside the hidden one, and in how many units it is."""
    n, k, f = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.intermediate
    return {
        "wq": (n, config.heads),
        "wk": (k, config.kv_heads),
        "wv": (k, config.kv_heads),
        "wo": (n, config.heads),
        "w_gate": (f, f),
        "w_up": (f, f),
        "w_down": (f, f),
    }


def _cut(size: int, units: int, ways: int) -> int:
    """What is left of a dimension that is cut; one that can't be cut evenly stays whole."""
    return size if units % ways else size // ways


def _layer_numbers(config: ModelConfig, tp: int) -> int:
    """Numbers in the matrices of one layer, gathered."""
    return config.hidden * sum(_cut(*one, tp) for one in _layer(config).values())


def _table_numbers(config: ModelConfig, tp: int) -> int:
    """Numbers in the head, or in the table of embeddings, gathered."""
    return config.hidden * _cut(config.vocab, config.vocab, tp)


def count_parameters(
    config: ModelConfig, mesh: MeshSizes | None = None, *, whole_weights: bool = False
) -> int:
    """Numbers in all weights, or in the part of them that lies on one device of a mesh.

    With `whole_weights`, for inference, the devices of `sp` do not share them.
    """
    mesh = mesh or MeshSizes()
    ways = mesh.fsdp if whole_weights else mesh.weight_ways
    matrices = config.layers * _layer_numbers(config, mesh.tp)
    tables = (1 if config.tie_embeddings else 2) * _table_numbers(config, mesh.tp)
    norms = (2 * config.layers + 1) * config.hidden
    return _cut(matrices + tables, config.hidden, ways) + norms


def count_adapters(config: ModelConfig, mesh: MeshSizes) -> int:
    """Numbers in the part of all adapters that lies on one device of a mesh."""
    if config.lora is None:
        return 0
    inner = _cut(config.hidden, config.hidden, mesh.weight_ways)
    outer = (_cut(*_layer(config)[name], mesh.tp) for name in config.lora.matrices)
    return config.layers * config.lora.rank * sum(inner + one for one in outer)


# Memory


def memory(work: Work, mesh: MeshSizes, remat: Remat = "block") -> Memory:
    """Bytes on each device at the peak of a step."""
    local = _Local.of(work, mesh)
    if work.job == "train":
        held, adapters = count_parameters(work.config, mesh), count_adapters(work.config, mesh)
        # Beside adapters the weights do not learn, and are kept as they are computed with.
        fixed, learning = (held, adapters) if adapters else (0, held)
        layers = _layer_phase(work.config, mesh, local, remat)
        return Memory(
            parameters=local.c * fixed + FLOAT32 * learning,
            optimizer=2 * FLOAT32 * learning,
            gradients=FLOAT32 * learning * (2 if work.parts > 1 else 1),  # and their sum
            activations=_kept(work.config, mesh, local, remat),
            temporary=max(layers, _loss_phase(work.config, mesh, local)),
        )
    return Memory(
        parameters=_weight_bytes(work) * count_parameters(work.config, mesh, whole_weights=True),
        cache=_cache(work, local),
        temporary=_inference_phase(work, mesh, local),
    )


def _kept(config: ModelConfig, mesh: MeshSizes, local: _Local, remat: Remat) -> int:
    """Bytes that the forward pass of training keeps for the backward pass."""
    t, d, n, k, c = local[:5]
    layers, lse = config.layers, FLOAT32 * local.heads
    if remat == "none":
        whole = c * _layer_numbers(config, mesh.tp) if mesh.weight_ways > 1 else 0
        return layers * (t * ((4 * d + 2 * n + 2 * k) * c + lse) + whole)
    if remat == "attention":
        return layers * t * ((d + n) * c + lse)
    if remat == "block":
        return layers * t * d * c
    outer = math.ceil(math.sqrt(layers))
    return (outer + math.ceil(layers / outer)) * t * d * c


def _layer_phase(config: ModelConfig, mesh: MeshSizes, local: _Local, remat: Remat) -> int:
    """Temporary bytes of the backward pass through one layer."""
    values = local.t * local.values
    again = 0 if remat == "none" else values  # kept otherwise
    gradients = values
    return (
        again
        + gradients
        + _ring(mesh, local)
        + _feed_forward(config, mesh, local, passes=2)
        + local.c * _layer_numbers(config, mesh.tp)
        + FLOAT32 * 3 * config.hidden * _cut(config.intermediate, config.intermediate, mesh.tp)
    )


def _ring(mesh: MeshSizes, local: _Local) -> int:
    """Buffers of attention's backward pass: what travels the ring is there twice.

    Keys and values are in the format of computation, sums of outputs and gradients in float32.
    """
    buffers = 2 if mesh.sp > 1 else 1
    travelling = 2 * local.k * (local.c * (2 if mesh.sp > 1 else 0) + FLOAT32 * buffers)
    return local.t * (travelling + 2 * FLOAT32 * local.n)


def _feed_forward(config: ModelConfig, mesh: MeshSizes, local: _Local, passes: int) -> int:
    """The inner values of one block of tokens, and in training (two passes) their gradients."""
    inner = _cut(config.intermediate, config.intermediate, mesh.tp)
    return passes * 3 * min(local.t, FEED_FORWARD_BLOCK) * inner * local.c


def _loss_phase(config: ModelConfig, mesh: MeshSizes, local: _Local) -> int:
    """Temporary bytes of the loss: the head and its gradient, three blocks of logits' size, and the
    last hidden states with their gradients."""
    logits = FLOAT32 * min(local.t, LOSS_BLOCK) * _cut(config.vocab, config.vocab, mesh.tp)
    head = (local.c + FLOAT32) * _table_numbers(config, mesh.tp)
    return head + 3 * logits + 2 * local.t * local.d * local.c


def _cache(work: Work, local: _Local) -> int:
    """Keys and values of every layer, with two int32 places for each slot.

    In int8 each head of each token has a float32 scale.
    """
    config, head_dim = work.config, work.config.head_dim
    scale = FLOAT32 if work.cache_dtype == "int8" else 0
    per_head = head_dim * BYTES[work.cache_dtype] + scale
    slots = local.rows * local.slots
    return slots * (2 * config.layers * local.k // head_dim * per_head + 2 * FLOAT32)


def _inference_phase(work: Work, mesh: MeshSizes, local: _Local) -> int:
    """Temporary bytes of prefill and decoding.

    One layer's part of the cache where it has to be made plain, the values of one chunk, what it
    sends around and the sums that it gets, logits of the last token, and one layer's weights where
    these are cut up.
    """
    config = work.config
    packed = work.cache_dtype != work.dtype
    cache = 2 * local.rows * local.slots * local.k * local.c if packed else 0
    chunk = local if work.job == "decode" else local._replace(t=_chunk_tokens(local))
    travelling = chunk.t * local.n * (local.c + FLOAT32) * (2 if mesh.sp > 1 else 1)
    logits = FLOAT32 * local.rows * _cut(config.vocab, config.vocab, mesh.tp)
    weights = _weight_bytes(work) * _layer_numbers(config, mesh.tp) if mesh.fsdp > 1 else 0
    if config.quantized:  # the largest matrix, made plain
        inner = config.hidden * _cut(*_layer(config)["w_up"], mesh.tp)
        weights += local.c * max(inner, _table_numbers(config, mesh.tp))
    inner = _feed_forward(config, mesh, chunk, passes=1)
    return cache + chunk.t * chunk.values + travelling + inner + logits + weights


def _weight_bytes(work: Work) -> int:
    """Bytes of a number of the weights in inference; scales, and norms beside them, are few."""
    return 1 if work.config.quantized else BYTES[work.dtype]


def _chunk_tokens(local: _Local) -> int:
    return local.rows * min(local.slots, PREFILL_CHUNK)


def _chunks(local: _Local) -> int:
    """Calls that it takes to read the prompts."""
    return math.ceil(local.slots / PREFILL_CHUNK)


# FLOPs


def flops(work: Work, remat: Remat = "block") -> float:
    """Floating-point operations of one step on all devices together, those done again too.

    Products of T tokens with a matrix of M numbers are 2·T·M forward and twice that backward;
    attention counts each pair of a query and a key that it sees, exactly. Norms, rotations and
    the optimizer are left out.
    """
    config = work.config
    matrices = config.layers * _layer_numbers(config, tp=1)
    head = _table_numbers(config, tp=1)
    attention = attention_flops(work)
    if work.job != "train":
        return 2 * matrices * work.tokens + 2 * head * work.batch + attention
    layer = _layer(config)
    again = config.layers * config.hidden * sum(layer[name][0] for name in _RECOMPUTED[remat])
    products = 2 * work.tokens * (3 * (matrices + head) + again)
    return products + attention * (1 + _ATTENTION_BACKWARD + _ATTENTION_AGAIN[remat])


def attention_flops(work: Work) -> float:
    """Scores and weighted sums of all layers, forward."""
    length = work.context
    pairs = length if work.job == "decode" else length * (length + 1) // 2
    heads = work.config.heads * work.config.head_dim
    return 4.0 * work.config.layers * heads * pairs * work.batch


# Traffic between devices


def sent(work: Work, mesh: MeshSizes, remat: Remat = "block") -> Sent:
    """What each device sends in a step: gathers and sums go around a ring of their devices."""
    local = _Local.of(work, mesh)
    if work.job == "train":
        each = _sent_in_training(work.config, mesh, local, remat)
        return Sent(each.bytes * work.parts, each.calls * work.parts)
    return _sent_in_inference(work, mesh, local)


def _gathered(
    config: ModelConfig, mesh: MeshSizes, each: int, ways: int, calls: int, passes: int
) -> Sent:
    """Weights, numbers of `each` bytes, that are cut up in so many ways.

    Tables are gathered once a call, layers in each of its passes.
    """
    share = each * (ways - 1) / ways
    layers = Sent().plus(config.layers * calls * passes, _layer_numbers(config, mesh.tp) * share)
    return layers.plus(2 * calls, _table_numbers(config, mesh.tp) * share)


def _sum_of(size: float, ways: int) -> float:
    """Bytes that each of some devices sends until all have the sum of `size` bytes."""
    return 2 * size * (ways - 1) / ways


def _sent_in_training(config: ModelConfig, mesh: MeshSizes, local: _Local, remat: Remat) -> Sent:
    traffic = Sent()
    layers = config.layers
    if mesh.weight_ways > 1:
        passes = _GATHERS[remat]
        traffic = _gathered(config, mesh, local.c, mesh.weight_ways, 1, passes)
        scattered = (mesh.weight_ways - 1) / mesh.weight_ways
        numbers = _layer_numbers(config, mesh.tp)
        traffic = traffic.plus(layers, FLOAT32 * numbers * scattered)
        traffic = traffic.plus(2, FLOAT32 * _table_numbers(config, mesh.tp) * scattered)
    if mesh.dp > 1:
        gradients = FLOAT32 * count_parameters(config, mesh) / layers
        traffic = traffic.plus(layers, _sum_of(gradients, mesh.dp))
    if mesh.sp > 1:
        forward = 2 * local.t * local.k * local.c
        backward = forward + 2 * local.t * local.k * FLOAT32
        rounds = layers * mesh.sp
        traffic = traffic.plus(rounds * (1 + _ATTENTION_AGAIN[remat]), forward)
        traffic = traffic.plus(rounds + layers, backward)  # gradients go home: one step more
    if mesh.tp > 1:
        reductions = layers * (4 + _REDUCTIONS_AGAIN[remat]) + 1
        traffic = traffic.plus(reductions, _sum_of(local.t * local.d * local.c, mesh.tp))
    return traffic


def _sent_in_inference(work: Work, mesh: MeshSizes, local: _Local) -> Sent:
    traffic = Sent()
    config, layers = work.config, work.config.layers
    calls = _chunks(local) if work.job == "prefill" else 1
    if mesh.fsdp > 1:
        traffic = _gathered(config, mesh, _weight_bytes(work), mesh.fsdp, calls, passes=1)
    if mesh.sp > 1 and work.job == "prefill":
        each = local.t / calls * (local.n * (local.c + FLOAT32) + FLOAT32 * local.heads)
        traffic = traffic.plus(layers * calls * mesh.sp, each)
    elif mesh.sp > 1:
        merged = FLOAT32 * local.rows * (local.n + local.heads)
        traffic = traffic.plus(layers, _sum_of(merged, mesh.sp))
    if mesh.tp > 1:
        each = local.t * local.d * local.c / calls
        traffic = traffic.plus(2 * layers * calls, _sum_of(each, mesh.tp))
    return traffic


# Traffic with memory


def read(work: Work, mesh: MeshSizes) -> float:
    """Bytes that each device reads from and writes to its own memory in a step, roughly."""
    config = work.config
    local = _Local.of(work, mesh)
    numbers = config.layers * _layer_numbers(config, mesh.tp) + _table_numbers(config, mesh.tp)
    values = config.layers * local.t * local.values
    if work.job == "train":
        # Weights forward and twice backward; values written, read, and both again backward;
        # parameters, gradients and two moments read and written.
        state = 2 * 4 * FLOAT32 * count_parameters(config, mesh)
        return 3 * local.c * numbers + 4 * values + state
    calls = _chunks(local) if work.job == "prefill" else 1
    cache = _cache(work, local) * (calls + 1) / 2 if work.job == "prefill" else _cache(work, local)
    return calls * _weight_bytes(work) * numbers + cache + 2 * values
