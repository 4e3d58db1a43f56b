"""Flash attention for GPUs in Pallas and Triton: causal by position and segment, in any order.

A program gathers for one block of queries, or for one block of keys, whose gradients need another
order. It walks along a list, made beforehand, of the blocks of the other kind of which anyone may
be seen, so what nobody sees costs nothing (Dao 2023; Liu et al. 2023).

It has been compiled for NVIDIA GPUs, and compared with the plain form in Pallas' interpreter. It
has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lwm_core.kernels.blockwise import reachable
from lwm_core.kernels.dense import MASKED, visible
from lwm_core.quantize import plain
from lwm_core.types import Attended, Places, Quantized

BLOCKS = {"bfloat16": 64, "float32": 32}
"""Tokens in a block, of queries and of keys: 99 KB of shared memory have room for them."""

SIZES = (16, 32, 64, 128)
"""Sizes of a head: blocks of Triton are powers of two, and larger ones would not fit the chip."""

MOST_PAIRS = 2**24
"""Block pairs whose list takes 64 MB, and as much again while it is made."""

Ref = Any
"""An array in the memory of the GPU, or the part of it that a program is given."""


def attend(
    q: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_places: Places,
    k_places: Places,
    sofar: Attended,
    *,
    block: int | None = None,
    interpret: bool = False,
) -> Attended:
    """Attention as the package describes it, in the memory of `sofar`.

    Raises NotImplementedError for shapes that the kernel does not serve.
    """
    k, v = plain(k, q.dtype), plain(v, q.dtype)
    sizes = _Sizes.of(q, k, block, interpret)
    walk = _by_queries(sizes, q_places, k_places)
    inputs = [(q, walk.q), (k, walk.k), (v, walk.k)]
    gathered = [(sofar.out, walk.q), (sofar.lse, walk.row)]
    return Attended(*walk.run(_attend_kernel, inputs, gathered, interpret))


def gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_places: Places,
    k_places: Places,
    lse: jax.Array,
    shift: jax.Array,
    d_out: jax.Array,
    sums: tuple[jax.Array, jax.Array, jax.Array],
    *,
    block: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients as the package describes them, in the memory of `sums`.

    Raises NotImplementedError as `attend` does.
    """
    sizes = _Sizes.of(q, k, block, interpret)

    def inputs(walk: _Walk) -> list[Placed]:
        heads = [(q, walk.q), (k, walk.k), (v, walk.k), (d_out, walk.q)]
        return [*heads, (lse, walk.row), (shift, walk.row)]

    walk = _by_queries(sizes, q_places, k_places)
    (dq,) = walk.run(_dq_kernel, inputs(walk), [(sums[0], walk.q)], interpret)
    walk = _by_keys(sizes, q_places, k_places)
    gathered = [(sums[1], walk.k), (sums[2], walk.k)]
    dk, dv = walk.run(_dk_dv_kernel, inputs(walk), gathered, interpret)
    return dq, dk, dv


class _Sizes(NamedTuple):
    """How many heads and tokens there are, how large the heads, and in what blocks tokens go."""

    heads: int
    k_heads: int
    length: int
    k_length: int
    size: int
    block: int

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, block: int | None, interpret: bool) -> _Sizes:
        """The sizes for these queries and keys; NotImplementedError for what can't be served."""
        batch, heads, length, size = q.shape
        k_heads, k_length = k.shape[1:3]
        if q.dtype != k.dtype or q.dtype.name not in BLOCKS:
            raise NotImplementedError(f"queries are {q.dtype}, keys {k.dtype}")
        block = block or BLOCKS[q.dtype.name]
        if not interpret and (size not in SIZES or block != BLOCKS[q.dtype.name]):
            raise NotImplementedError(f"heads of {size} in blocks of {block} are not served")
        if length % block or k_length % block:
            raise NotImplementedError(f"blocks of {block} do not divide {length} and {k_length}")
        if batch * length * k_length > MOST_PAIRS * block**2:
            raise NotImplementedError(f"{batch} x {length} x {k_length} are too many block pairs")
        return cls(heads, k_heads, length, k_length, size, block)

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.heads // self.k_heads

    def reachable(self, q_places: Places, k_places: Places) -> jax.Array:
        """Which block pairs must be computed: bool `[B, q blocks, k blocks]`."""
        blocks = (
            Places(*(x.reshape(x.shape[0], -1, self.block) for x in places))
            for places in (q_places, k_places)
        )
        return jax.vmap(reachable)(*blocks)


Placed = tuple[jax.Array, pl.BlockSpec]
"""An array, and the part of it that a program is given."""


class _Walk(NamedTuple):
    """The programs `[blocks, heads, B]`, and what parts of the arrays they are given.

    The `others` are all programs' visits, their number, and the places of queries and keys.
    """

    grid: tuple[int, int, int]
    others: list[Placed]
    q: pl.BlockSpec
    row: pl.BlockSpec
    k: pl.BlockSpec

    def run(
        self, kernel: Callable, inputs: list[Placed], gathered: list[Placed], interpret: bool
    ) -> list[jax.Array]:
        """Update `gathered` in place: the kernel gets the others, inputs, these, results."""
        arrays, specs = zip(*self.others, *inputs, *gathered, strict=True)
        first = len(arrays) - len(gathered)
        return pl.pallas_call(
            kernel,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in gathered],
            grid=self.grid,
            in_specs=specs,
            out_specs=[spec for _, spec in gathered],
            input_output_aliases={first + i: i for i in range(len(gathered))},
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=interpret,
        )(*arrays)


def _by_queries(sizes: _Sizes, q_places: Places, k_places: Places) -> _Walk:
    """A program has a block of a head's queries, and all keys of that head."""
    reach = sizes.reachable(q_places, k_places)

    def keys(_: Any, head: Any, batch: Any) -> tuple:
        return batch, lax.div(head, sizes.group), 0, 0

    return _Walk(
        (reach.shape[1], sizes.heads, reach.shape[0]),
        [*_order(reach), _near(q_places, sizes.block), _whole(k_places)],
        _one_block(sizes),
        pl.BlockSpec((None, None, sizes.block), lambda index, head, batch: (batch, head, index)),
        pl.BlockSpec((None, None, sizes.k_length, sizes.size), keys),
    )


def _by_keys(sizes: _Sizes, q_places: Places, k_places: Places) -> _Walk:
    """A program has a block of a head's keys, and all queries of all heads that share them."""
    reach = sizes.reachable(q_places, k_places).swapaxes(1, 2)
    rows = None, sizes.group, sizes.length
    return _Walk(
        (reach.shape[1], sizes.k_heads, reach.shape[0]),
        [*_order(reach), _whole(q_places), _near(k_places, sizes.block)],
        pl.BlockSpec((*rows, sizes.size), lambda _, head, batch: (batch, head, 0, 0)),
        pl.BlockSpec(rows, lambda _, head, batch: (batch, head, 0)),
        _one_block(sizes),
    )


def _one_block(sizes: _Sizes) -> pl.BlockSpec:
    """The block of `[B, heads, tokens, H]` that a program gathers for."""
    shape = None, None, sizes.block, sizes.size
    return pl.BlockSpec(shape, lambda index, head, batch: (batch, head, index, 0))


def _order(reach: jax.Array) -> list[Placed]:
    """For each block the blocks of the other kind, those to visit first, and their number."""
    visits = pl.BlockSpec((None, None, reach.shape[2]), lambda index, _, batch: (batch, index, 0))
    count = pl.BlockSpec((None, None), lambda index, _, batch: (batch, index))
    order = jnp.argsort(~reach, axis=-1).astype(jnp.int32)
    return [(order, visits), (reach.sum(-1, dtype=jnp.int32), count)]


def _near(places: Places, block: int) -> Placed:
    """Positions and segments of the block that a program gathers for."""
    spec = pl.BlockSpec((None, 2, block), lambda index, _, batch: (batch, 0, index))
    return jnp.stack(places, axis=1), spec


def _whole(places: Places) -> Placed:
    """Positions and segments of everything that a program may visit."""
    marks = jnp.stack(places, axis=1)
    return marks, pl.BlockSpec((None, *marks.shape[1:]), lambda _, __, batch: (batch, 0, 0))


def _attend_kernel(
    visits: Ref, count: Ref, q_places: Ref, k_places: Ref, q: Ref, k: Ref, v: Ref,
    out_before: Ref, lse_before: Ref, out: Ref, lse: Ref,
) -> None:  # fmt: skip
    """Running maximum and sum over key blocks (Milakov and Gimelshein 2018)."""
    queries, places = q[...], _places(q_places)

    def add(turn: jax.Array, carry: tuple) -> tuple:
        gathered, top, total = carry
        part = pl.ds(visits[turn] * len(queries), len(queries))
        mask = visible(places, _places(k_places, part))
        scores = jnp.where(mask, _scores(queries, k[part]), MASKED)
        new_top = jnp.maximum(top, scores.max(axis=1))
        weights = jnp.exp(scores - new_top[:, None])
        shrink = jnp.exp(top - new_top)
        gathered = gathered * shrink[:, None] + _dot(weights.astype(v.dtype), v[part])
        return gathered, new_top, total * shrink + weights.sum(axis=1)

    before = lse_before[...]
    top = jnp.maximum(before, MASKED / 2)  # so that what is masked weighs nothing
    start = out_before[...], top, jnp.exp(before - top)  # 1, or 0 where nothing was seen
    gathered, top, total = lax.fori_loop(0, count[...], add, start)
    safe_total = jnp.where(total > 0, total, 1.0)
    out[...] = gathered / safe_total[:, None]
    lse[...] = jnp.where(total > 0, top + jnp.log(safe_total), MASKED)


def _dq_kernel(
    visits: Ref, count: Ref, q_places: Ref, k_places: Ref, q: Ref, k: Ref, v: Ref,
    d_out: Ref, lse: Ref, shift: Ref, before: Ref, dq: Ref,
) -> None:  # fmt: skip
    """Gradients of queries."""
    rows = q[...], d_out[...], lse[...], shift[...], _places(q_places)

    def add(turn: jax.Array, gathered: jax.Array) -> jax.Array:
        part = pl.ds(visits[turn] * len(gathered), len(gathered))
        keys = k[part]
        _, d_scores = _backward(*rows, keys, v[part], _places(k_places, part))
        return gathered + _dot(d_scores, keys)

    dq[...] = lax.fori_loop(0, count[...], add, before[...])


def _dk_dv_kernel(
    visits: Ref, count: Ref, q_places: Ref, k_places: Ref, q: Ref, k: Ref, v: Ref,
    d_out: Ref, lse: Ref, shift: Ref, dk_before: Ref, dv_before: Ref, dk: Ref, dv: Ref,
) -> None:  # fmt: skip
    """Gradients of keys and values, over all query heads that share them."""
    mine = k[...], v[...], _places(k_places)

    def add(turn: jax.Array, gathered: tuple) -> tuple:
        dk, dv = gathered
        head, visit = lax.div(turn, count[...]), lax.rem(turn, count[...])
        part = pl.ds(visits[visit] * len(dk), len(dk))
        queries, d_rows = q[head, part], d_out[head, part]
        rows = queries, d_rows, lse[head, part], shift[head, part], _places(q_places, part)
        weights, d_scores = _backward(*rows, *mine)
        return dk + _dot(d_scores.T, queries), dv + _dot(weights.T, d_rows)

    turns = count[...] * q.shape[0]
    dk[...], dv[...] = lax.fori_loop(0, turns, add, (dk_before[...], dv_before[...]))


def _places(marks: Ref, part: Any = slice(None)) -> Places:
    """Places of some of the tokens that a program has."""
    return Places(marks[0, part], marks[1, part])


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Scores of a block pair, float32 `[queries, keys]`."""
    return _dot(q, k.T) * q.shape[-1] ** -0.5


def _backward(
    q: jax.Array, d_out: jax.Array, lse: jax.Array, shift: jax.Array, q_places: Places,
    k: jax.Array, v: jax.Array, k_places: Places,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Weights of a block pair and the gradients of its scores, `[queries, keys]` in q's dtype."""
    weights = jnp.exp(_scores(q, k) - lse[:, None])
    weights = jnp.where(visible(q_places, k_places), weights, 0.0)
    d_scores = weights * (_dot(d_out, v.T) - shift[:, None]) * q.shape[-1] ** -0.5
    return weights.astype(q.dtype), d_scores.astype(q.dtype)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product of matrices, its sums float32; of float32 matrices without rounding to TF32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)
