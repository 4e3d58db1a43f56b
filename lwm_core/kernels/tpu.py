"""Flash attention for TPU in Pallas: causal by position and segment, in any order of tokens.

`attend` continues from attention over other keys and `gradients` adds to what other keys gave, so
a ring calls them once a step and merges nothing (Dao et al. 2022; Liu et al. 2023).

- A list of the block pairs in which any query may see any key is made beforehand, and the grid
  walks along it: other pairs cost neither time nor memory traffic, whatever the layout. Blocks of
  which no pair is listed are never visited: inputs and outputs being the same memory, they keep
  what came in.
- Scores stand transposed, `[keys, queries]`: what is known per query (maximum, sum, log-sum-exp,
  place) is then a row of lanes, which broadcasts for free and lies densely in memory.
- Gradients of keys need another order of pairs than those of queries, so they are two kernels;
  each keeps on the chip what it gathers, and both make the scores again.

It is for TPU v4 and later: Pallas multiplies no bfloat16 matrices on older ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lwm_core.kernels.blockwise import reachable
from lwm_core.kernels.dense import MASKED, sees
from lwm_core.quantize import plain
from lwm_core.types import Array, Attended, Places, Quantized

BLOCKS = (512, 256, 128)
"""Tokens in a block: the first that divides the length. Lanes come in 128; with blocks of 1024 the
gradients would need more than the 16 MB of fast memory that a TPU v4 has."""

MOST_SIZE = 256
"""Largest head of which float32 blocks fit that memory."""

MOST_PAIRS = 2**16
"""Block pairs whose list, 8 bytes each, leaves half of the scalar memory (1 MB) free."""

Ref = Any
"""A block of an array, on the chip."""


def attend(
    q: jax.Array,
    k: jax.Array | Quantized,
    v: jax.Array | Quantized,
    q_places: Places,
    k_places: Places,
    sofar: Attended,
    *,
    block: int | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> Attended:
    """Attention of `q [B, N, T, H]` to `k, v [B, K, S, H]` and to the keys that `sofar` has seen.

    Heads come first here. `sofar` is `out` float32 `[B, N, T, H]` and `lse` float32 `[B, N, T]`,
    0 and MASKED where nothing was seen yet; so is the result, in the memory of `sofar`. Raises
    NotImplementedError for shapes that the kernel does not serve.
    """
    k, v = plain(k, q.dtype), plain(v, q.dtype)
    sizes = _Sizes.of(q, k, block, interpret)
    walk = _by_queries(sizes, q_places, k_places)
    row = (1, sizes.q_block)
    out, lse = walk.run(
        _attend_kernel,
        [(q, walk.q), (k, walk.k), (v, walk.k)],
        [(sofar.out, walk.q), (_rows(sofar.lse), walk.row)],
        scratch=[(sizes.size, sizes.q_block), row, row],
        interpret=interpret,
    )
    return Attended(out, lse[:, :, 0])


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
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds what these keys give to `sums`: the gradients of q, k and v, in their shapes, float32.

    `lse` and `shift`, float32 `[B, N, T]`, are over all keys, wherever they are: the log-sum-exp
    and `(d_out * out).sum(-1) - d_lse`. `d_out [B, N, T, H]` is in the dtype of q. The result takes
    the memory of `sums`. Raises NotImplementedError as `attend` does.
    """
    sizes = _Sizes.of(q, k, block, interpret)

    def inputs(walk: _Walk) -> list[Placed]:
        heads = [(q, walk.q), (k, walk.k), (v, walk.k), (d_out, walk.q)]
        return [*heads, (_rows(lse), walk.row), (_rows(shift), walk.row)]

    walk = _by_queries(sizes, q_places, k_places)
    gathered = [(sums[0], walk.q)]
    scratch = [(sizes.size, sizes.q_block)]
    (dq,) = walk.run(_dq_kernel, inputs(walk), gathered, scratch, interpret)
    walk = _by_keys(sizes, q_places, k_places)
    gathered = [(sums[1], walk.k), (sums[2], walk.k)]
    dk, dv = walk.run(_dk_dv_kernel, inputs(walk), gathered, [], interpret)
    return dq, dk, dv


class _Sizes(NamedTuple):
    """How many heads there are and how large, and how the tokens are cut into blocks."""

    heads: int
    k_heads: int
    size: int
    q_block: int
    q_blocks: int
    k_block: int
    k_blocks: int

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, block: int | None, interpret: Any) -> _Sizes:
        """The sizes for these queries and keys; NotImplementedError for what can't be served."""
        batch, heads, length, size = q.shape
        k_heads, k_length = k.shape[1:3]
        if q.dtype != k.dtype or q.dtype not in (jnp.bfloat16, jnp.float32):
            raise NotImplementedError(f"queries are {q.dtype}, keys {k.dtype}")
        if not interpret and (size > MOST_SIZE or block not in (None, *BLOCKS)):
            raise NotImplementedError(f"heads of {size} or blocks of {block} do not fit a TPU")
        choices = (block,) if block else BLOCKS
        fits = [[b for b in choices if x % b == 0] for x in (length, k_length)]
        if not all(fits):
            raise NotImplementedError(f"no block of {choices} divides {length} and {k_length}")
        q_block, k_block = fits[0][0], fits[1][0]
        q_blocks, k_blocks = length // q_block, k_length // k_block
        if batch * q_blocks * k_blocks > MOST_PAIRS:
            raise NotImplementedError(f"{batch} x {q_blocks} x {k_blocks} block pairs are too many")
        return cls(heads, k_heads, size, q_block, q_blocks, k_block, k_blocks)

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.heads // self.k_heads

    def reachable(self, q_places: Places, k_places: Places) -> jax.Array:
        """Which block pairs must be computed: bool `[B, q blocks, k blocks]`."""
        q_marks = Places(*(x.reshape(-1, self.q_blocks, self.q_block) for x in q_places))
        k_marks = Places(*(x.reshape(-1, self.k_blocks, self.k_block) for x in k_places))
        return jax.vmap(reachable)(q_marks, k_marks)


Placed = tuple[jax.Array, pl.BlockSpec]
"""An array, and which block of it a kernel has at a step."""


class _Walk(NamedTuple):
    """The way of a kernel along the block pairs, and which block of each array it then has.

    The grid is heads x pairs x heads of a group, of which pairs are as many as must be computed. A
    kernel gathers for block `outer[pair]` from block `inner[pair]`, counted over the whole batch.
    """

    outer: jax.Array
    inner: jax.Array
    grid: tuple[int, jax.Array, int]
    places: list[Placed]
    q: pl.BlockSpec
    k: pl.BlockSpec
    row: pl.BlockSpec

    def run(
        self,
        kernel: Callable,
        inputs: list[Placed],
        gathered: list[Placed],
        scratch: Sequence[tuple[int, int]],
        interpret: bool | pltpu.InterpretParams,
    ) -> list[jax.Array]:
        """Update `gathered` in place: the kernel gets inputs, places, these, results, scratch."""
        arrays, specs = zip(*inputs, *self.places, *gathered, strict=True)
        results = range(len(gathered))
        return pl.pallas_call(
            kernel,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in gathered],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=self.grid,
                in_specs=specs,
                out_specs=[spec for _, spec in gathered],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            input_output_aliases={2 + len(arrays) - len(gathered) + i: i for i in results},
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary")
            ),
            interpret=interpret,
        )(self.outer, self.inner, *arrays)


def _by_queries(sizes: _Sizes, q_places: Places, k_places: Places) -> _Walk:
    """One block of queries after the other; for each, the keys that it may see."""
    outer, inner, count = _pairs(sizes.reachable(q_places, k_places))

    def where(head: Any, pair: Any, _: Any, outer: Ref, inner: Ref) -> tuple:
        return head, lax.div(head, sizes.group), outer[pair], inner[pair]

    specs = _specs(sizes, q_places, k_places, where)
    return _Walk(outer, inner, (sizes.heads, count, 1), *specs)


def _by_keys(sizes: _Sizes, q_places: Places, k_places: Places) -> _Walk:
    """One block of keys after the other; for each, the queries that may see it, head by head."""
    outer, inner, count = _pairs(sizes.reachable(q_places, k_places).swapaxes(1, 2))

    def where(head: Any, pair: Any, member: Any, outer: Ref, inner: Ref) -> tuple:
        return head * sizes.group + member, head, inner[pair], outer[pair]

    specs = _specs(sizes, q_places, k_places, where)
    return _Walk(outer, inner, (sizes.k_heads, count, sizes.group), *specs)


def _pairs(reachable: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The outer and inner blocks of all pairs `[B, outer, inner]`, the reachable first; how many.

    At least one is visited. If it is unreachable, nothing is seen there and nothing added.
    """
    _, outers, inners = reachable.shape
    order = jnp.argsort(~reachable.ravel(), stable=True)
    outer = order // inners
    inner = outer // outers * inners + order % inners
    return outer, inner, jnp.maximum(reachable.sum(), 1)


def _specs(
    sizes: _Sizes, q_places: Places, k_places: Places, where: Callable
) -> tuple[list[Placed], pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """The places, and the blocks of arrays like q, like k and like `_rows`.

    `where` says for a step of the grid which query head, key head, and blocks of both it is at.
    """

    def queries(*step: Any) -> tuple:
        head, _, block, _ = where(*step)
        return lax.div(block, sizes.q_blocks), head, lax.rem(block, sizes.q_blocks), 0

    def keys(*step: Any) -> tuple:
        _, head, _, block = where(*step)
        return lax.div(block, sizes.k_blocks), head, lax.rem(block, sizes.k_blocks), 0

    def row(*step: Any) -> tuple:
        batch, head, block, _ = queries(*step)
        return batch, head, 0, block

    def places_of(heads: Callable) -> Callable:
        def places(*step: Any) -> tuple:
            batch, _, block, _ = heads(*step)
            return batch, 0, block

        return places

    # Places are rows [B, 2, T], for a column [S, 1] takes 128 times its size in memory.
    q_marks, k_marks = jnp.stack(q_places, axis=1), jnp.stack(k_places, axis=1)
    return (
        [
            (q_marks, pl.BlockSpec((None, 2, sizes.q_block), places_of(queries))),
            (k_marks, pl.BlockSpec((None, 2, sizes.k_block), places_of(keys))),
        ],
        pl.BlockSpec((None, None, sizes.q_block, sizes.size), queries),
        pl.BlockSpec((None, None, sizes.k_block, sizes.size), keys),
        pl.BlockSpec((None, None, 1, sizes.q_block), row),
    )


def _rows(x: jax.Array) -> jax.Array:
    """`[B, N, T]` as `[B, N, 1, T]`, since a block must span the last axis but one."""
    return x[:, :, None]


def _attend_kernel(
    outer: Ref, inner: Ref, q: Ref, k: Ref, v: Ref, q_places: Ref, k_places: Ref,
    out_before: Ref, lse_before: Ref, out: Ref, lse: Ref, gathered: Ref, top: Ref, total: Ref,
) -> None:  # fmt: skip
    """Running maximum and sum over key blocks (Milakov and Gimelshein 2018)."""
    comes, leaves = _borders(outer)

    @pl.when(comes)
    def begin() -> None:
        gathered[...] = out_before[...].T
        top[...] = jnp.maximum(lse_before[...], MASKED / 2)  # so that what is masked weighs nothing
        total[...] = jnp.exp(lse_before[...] - top[...])  # 1, or 0 where nothing was seen

    scores = jnp.where(_visible(q_places, k_places), _scores(q, k), MASKED)
    new_top = jnp.maximum(top[...], scores.max(axis=0, keepdims=True))
    weights = jnp.exp(scores - new_top)
    shrink = jnp.exp(top[...] - new_top)
    top[...] = new_top
    total[...] = total[...] * shrink + weights.sum(axis=0, keepdims=True)
    gathered[...] = gathered[...] * shrink + _dot(v[...], weights.astype(v.dtype), _ATB)

    @pl.when(leaves)
    def finish() -> None:
        safe_total = jnp.where(total[...] > 0, total[...], 1.0)
        out[...] = (gathered[...] / safe_total).T
        lse[...] = jnp.where(total[...] > 0, top[...] + jnp.log(safe_total), MASKED)


def _dq_kernel(
    outer: Ref, inner: Ref, q: Ref, k: Ref, v: Ref, d_out: Ref, lse: Ref, shift: Ref,
    q_places: Ref, k_places: Ref, before: Ref, dq: Ref, gathered: Ref,
) -> None:  # fmt: skip
    """Gradients of queries, transposed while they are gathered."""
    comes, leaves = _borders(outer)

    @pl.when(comes)
    def begin() -> None:
        gathered[...] = before[...].T

    _, d_scores = _backward(q, k, v, d_out, lse, shift, q_places, k_places)
    gathered[...] += _dot(k[...], d_scores, _ATB)

    @pl.when(leaves)
    def finish() -> None:
        dq[...] = gathered[...].T


def _dk_dv_kernel(
    outer: Ref, inner: Ref, q: Ref, k: Ref, v: Ref, d_out: Ref, lse: Ref, shift: Ref,
    q_places: Ref, k_places: Ref, dk_before: Ref, dv_before: Ref, dk: Ref, dv: Ref,
) -> None:  # fmt: skip
    """Gradients of keys and values, over all query heads that share them."""
    comes, _ = _borders(outer)

    @pl.when(comes)
    def begin() -> None:
        dk[...] = dk_before[...]
        dv[...] = dv_before[...]

    weights, d_scores = _backward(q, k, v, d_out, lse, shift, q_places, k_places)
    dk[...] += _dot(d_scores, q[...], _AB)
    dv[...] += _dot(weights, d_out[...], _AB)


def _borders(outer: Ref) -> tuple[jax.Array, jax.Array]:
    """Whether the kernel comes to the block that it gathers for, and whether it leaves it."""
    pair, member = pl.program_id(1), pl.program_id(2)
    last, last_member = pl.num_programs(1) - 1, pl.num_programs(2) - 1
    before, here, after = (
        outer[x] for x in (jnp.maximum(pair - 1, 0), pair, jnp.minimum(pair + 1, last))
    )
    comes = (member == 0) & ((pair == 0) | (before != here))
    leaves = (member == last_member) & ((pair == last) | (after != here))
    return comes, leaves


def _visible(q_places: Ref, k_places: Ref) -> Array:
    """Which key is seen by which query: bool `[keys, queries]`."""
    columns = k_places[...].T
    return sees(Places(q_places[0:1], q_places[1:2]), Places(columns[:, 0:1], columns[:, 1:2]))


def _scores(q: Ref, k: Ref) -> jax.Array:
    """Scores of a block pair, float32 `[keys, queries]`."""
    return _dot(k[...], q[...], _ABT) * q.shape[-1] ** -0.5


def _backward(
    q: Ref, k: Ref, v: Ref, d_out: Ref, lse: Ref, shift: Ref, q_places: Ref, k_places: Ref
) -> tuple[jax.Array, jax.Array]:
    """Weights of a block pair and the gradients of its scores, `[keys, queries]` in q's dtype."""
    weights = jnp.where(_visible(q_places, k_places), jnp.exp(_scores(q, k) - lse[...]), 0.0)
    d_weights = _dot(v[...], d_out[...], _ABT)
    d_scores = weights * (d_weights - shift[...]) * q.shape[-1] ** -0.5
    return weights.astype(q.dtype), d_scores.astype(q.dtype)


_AB = (((1,), (0,)), ((), ()))
_ABT = (((1,), (1,)), ((), ()))
_ATB = (((0,), (0,)), ((), ()))


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    """A product of matrices, its sums float32; of float32 matrices without rounding to bfloat16."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
