"""How evenly a ring shares out causal attention: `python -m benchmarks.ring`.

What a device does at a step of the ring is timed by itself, on one CPU device: the call of the
kernel that `lwm_core.ring` makes there. The slowest device of each step, summed over the steps, is
the critical path: the time of a ring of so many devices whose links cost nothing. Tokens lie in
the product's zigzag order, or in plain order, which is the original's and lives only here. Then
`ring_attention` itself runs on simulated devices, which share the cores of this machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lwm_core import backend
from lwm_core.execution import Execution
from lwm_core.kernels import blockwise
from lwm_core.mesh import device_line, make_mesh
from lwm_core.ring import nothing_seen, ring_attention, zigzag
from lwm_core.types import Attended, Places

WAYS, HEADS, HEAD = 8, 1, 64
PASSES = ("forward", "backward")
ALONE, TOGETHER = "one device", "all at once"
LIMITS = {
    "critical path, zigzag : plain": 0.60,
    "work of all devices, zigzag : one device": 1.15,
    "busiest device : mean, block pairs": 1.10,
    "busiest device : mean, seconds": 1.10,
    "ring_attention, all at once : one device": 1.15,
}
"""The most that each ratio should be."""


class Part(NamedTuple):
    """Some of the tokens: heads `[1, N, T, H]`, cotangents alike, and places `[1, T]`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    d_out: jax.Array
    places: Places


def random_tokens(count: int) -> Part:
    """Causal self-attention of so many tokens in one segment, float32."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (jax.random.normal(key, (1, HEADS, count, HEAD)) for key in keys)
    positions = jnp.arange(count, dtype=jnp.int32)[None]
    return Part(*heads, Places(positions, jnp.ones_like(positions)))


def taken(tokens: Part, which: np.ndarray) -> Part:
    """Those of the tokens, in this order."""
    *heads, places = tokens
    return Part(*(x[:, :, which] for x in heads), Places(*(x[:, which] for x in places)))


def shared_out(tokens: Part) -> dict[str, list[Part]]:
    """What each device holds, by the order of the tokens."""
    count = tokens.q.shape[2]
    orders = {"zigzag": zigzag(count, WAYS), "plain": np.arange(count)}
    parts = {
        name: [taken(tokens, mine) for mine in np.split(order, WAYS)]
        for name, order in orders.items()
    }
    return {ALONE: [tokens], **parts}


def visits(ways: int) -> Iterator[tuple[int, int, int]]:
    """Step, device, and the device whose keys have come to it, as the ring passes them on."""
    for step in range(ways):
        for device in range(ways):
            yield step, device, (device - step) % ways


def clocked(work: Callable, *args: Any) -> tuple[float, Any]:
    """Seconds until all that `work` returns is computed, and that."""
    began = time.perf_counter()
    done = jax.block_until_ready(work(*args))
    return time.perf_counter() - began, done


@jax.jit
def add_keys(mine: Part, guest: Part, sofar: Attended) -> Attended:
    """A step of the forward pass."""
    return blockwise.attend(mine.q, guest.k, guest.v, mine.places, guest.places, sofar)


@jax.jit
def add_gradients(
    mine: Part, guest: Part, seen: Attended, shift: jax.Array, dq: jax.Array, sums: tuple
) -> tuple[jax.Array, tuple]:
    """A step of the backward pass: `dq` with these keys in it, the guest's sums with ours."""
    keys, places = (guest.k, guest.v), (mine.places, guest.places)
    begun = dq, *map(jnp.zeros_like, keys)
    dq, *more = blockwise.gradients(mine.q, *keys, *places, seen.lse, shift, mine.d_out, begun)
    return dq, tuple(a + b for a, b in zip(sums, more, strict=True))


class Round(NamedTuple):
    """Seconds `[pass, device, step]`, and what each device ends with: out, dq, (dk, dv)."""

    seconds: np.ndarray
    ends: list[tuple]


def go_around(parts: list[Part]) -> Round:
    """Both passes, one device and step after another; one device has nowhere to go."""
    ways = len(parts)
    seconds = np.zeros((len(PASSES), ways, ways))
    seen = [nothing_seen(part.q) for part in parts]
    for step, device, there in visits(ways):
        work = clocked(add_keys, parts[device], parts[there], seen[device])
        seconds[0, device, step], seen[device] = work
    shift = [(part.d_out * one.out).sum(-1) for part, one in zip(parts, seen, strict=True)]
    dq = [jnp.zeros_like(part.q) for part in parts]
    sums = [(jnp.zeros_like(part.k), jnp.zeros_like(part.v)) for part in parts]
    for step, device, there in visits(ways):
        state = seen[device], shift[device], dq[device], sums[there]
        work = clocked(add_gradients, parts[device], parts[there], *state)
        seconds[1, device, step], (dq[device], sums[there]) = work
    return Round(seconds, [(a.out, b, c) for a, b, c in zip(seen, dq, sums, strict=True)])


def block_pairs(parts: list[Part]) -> np.ndarray:
    """Pairs of blocks that are not skipped, int `[device, step]`."""
    pairs = np.zeros((len(parts), len(parts)), int)
    for step, device, there in visits(len(parts)):
        mine, guest = parts[device], parts[there]
        layout = blockwise._Layout.of(mine.q, guest.k, None)
        marks = layout.marks(mine.places, guest.places)
        pairs[device, step] = jax.vmap(blockwise.reachable)(*marks).sum()
    return pairs


@dataclass(frozen=True)
class Row:
    """A pass in one order: seconds and block pairs. What is `busiest` is in units of the mean."""

    order: str
    direction: str
    work: float
    path: float
    busiest: float
    pairs: int
    busiest_pairs: float


def busiest(work: np.ndarray) -> float:
    """The most that a device does, in units of the mean, of work `[device, step]`."""
    each = work.sum(axis=1)
    return float(each.max() / each.mean())


def time_orders(shares: dict[str, list[Part]], rounds: int) -> list[Row]:
    """From the least of each device and step over rounds in which the orders take turns.

    Whatever else the machine does can only add to a time.
    """
    for parts in shares.values():  # Nobody sees padding: these calls compile, and no more.
        go_around([p._replace(places=Places(*map(jnp.zeros_like, p.places))) for p in parts])
    runs = [{order: go_around(shares[order]).seconds for order in shares} for _ in range(rounds)]
    rows = []
    for order, parts in shares.items():
        pairs = block_pairs(parts)
        least = np.min([run[order] for run in runs], axis=0)
        for direction, one in zip(PASSES, least, strict=True):
            times = float(one.sum()), float(one.max(axis=0).sum()), busiest(one)
            rows.append(Row(order, direction, *times, int(pairs.sum()), busiest(pairs)))
    return rows


def ring_on(devices: list[jax.Device], tokens: Part) -> Callable[[], list[float]]:
    """A call of `ring_attention` on these devices, which returns the seconds of each pass."""
    how = Execution(make_mesh("sp=-1", devices))
    heads, marks = PartitionSpec(None, None, "sp"), PartitionSpec(None, "sp")
    ring = how.spread(partial(ring_attention, blockwise), (*(heads,) * 3, *(marks,) * 2), heads)
    q, k, v, d_out = (jax.device_put(x, how.sharding(heads)) for x in tokens[:4])
    places = Places(*(jax.device_put(x, how.sharding(marks)) for x in tokens.places))
    attend = jax.jit(lambda q, k, v: ring(q, k, v, places, places).out)

    def run() -> list[float]:
        forward, (_, back) = clocked(jax.vjp, attend, q, k, v)
        return [forward, clocked(back, d_out)[0]]

    return run


def time_together(tokens: Part, rounds: int) -> dict[str, list[float]]:
    """The least seconds of each pass, of a ring of one and of all, which take turns."""
    devices = jax.devices()
    rings = {ALONE: ring_on(devices[:1], tokens), TOGETHER: ring_on(devices, tokens)}
    runs = [{name: run() for name, run in rings.items()} for _ in range(1 + rounds)]
    return {name: np.min([run[name] for run in runs], axis=0).tolist() for name in rings}


def ratios(rows: list[Row], together: dict[str, list[float]]) -> dict[str, tuple[float, ...]]:
    """What `LIMITS` names, for each pass."""

    def of_pass(index: int) -> list[float]:
        row = {r.order: r for r in rows if r.direction == PASSES[index]}
        zigzag, plain, alone = row["zigzag"], row["plain"], row[ALONE]
        balance = zigzag.busiest_pairs, zigzag.busiest
        whole = together[TOGETHER][index] / together[ALONE][index]
        return [zigzag.path / plain.path, zigzag.work / alone.work, *balance, whole]

    measured = zip(of_pass(0), of_pass(1), strict=True)
    return dict(zip(LIMITS, measured, strict=True))


def show(rows: list[Row], together: dict[str, list[float]]) -> None:
    """Print the seconds, and what became of the limits."""
    print(f"{'':<21}{'work, s':>10}{'path, s':>10}{'busiest':>9}{'block pairs':>13}{'busiest':>9}")
    for row in sorted(rows, key=lambda row: PASSES.index(row.direction)):
        times = f"{row.work:>10.3f}{row.path:>10.3f}{row.busiest:>9.2f}"
        pairs = f"{row.pairs:>13}{row.busiest_pairs:>9.2f}"
        print(f"{row.direction:<10}{row.order:<11}{times}{pairs}")
    for name, seconds in together.items():
        print(f"ring_attention, {name}: " + ", ".join(f"{s:.3f} s" for s in seconds))
    print(f"\n{'':<42}{'forward':>9}{'backward':>10}{'at most':>9}")
    for name, (forward, backward) in ratios(rows, together).items():
        print(f"{name:<42}{forward:>9.3f}{backward:>10.3f}{LIMITS[name]:>9.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ring", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="the least time of so many counts"
    )
    parser.add_argument("--smoke", action="store_true", help="few tokens: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    backend.prepare()
    jax.config.update("jax_num_cpu_devices", WAYS)
    tokens = random_tokens(4096 if options.smoke else 32768)
    print(
        f"{device_line(make_mesh())}, jax {jax.__version__}; {tokens.q.shape[2]} tokens, ", end=""
    )
    print(f"{HEADS} head of {HEAD}, float32, {WAYS} devices", flush=True)
    shares = shared_out(tokens)
    rows = time_orders(shares, options.rounds)
    together = time_together(taken(tokens, zigzag(tokens.q.shape[2], WAYS)), options.rounds)
    show(rows, together)
    if options.json:
        content = {
            "rows": [asdict(row) for row in rows],
            "ring_attention": together,
            "ratios": ratios(rows, together),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
