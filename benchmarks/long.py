"""What a long context takes, memory and time: `python -m benchmarks.long`.

The embedded model reads prompts far beyond the length that it was trained for (what it would say
then is noise), and writes behind contexts as long, each in a process of its own. Straight lines are
drawn through the time per token over the position that is read, or the context that is written
behind, and through the peaks of memory over the length. Attention to all tokens before and their
keys and values are straight lines: more than those can't explain.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.plot import Curve, plot
from lwm_cli.heap import start_with_heap
from lwm_core import bench
from lwm_core.bench import Machine
from lwm_core.cache import cache_specs, empty_cache
from lwm_core.context import Context
from lwm_core.decode import generate
from lwm_core.execution import Execution
from lwm_core.load import LoadedModel, load_model
from lwm_core.mesh import device_line, make_mesh
from lwm_core.sampling import Sampling
from lwm_core.types import KVCache, Progress
from lwm_core.weight_tree import is_split

SHORT = 256
"""Tokens of the prompt whose peak is that of the program and its model."""
LENGTHS = tuple(4096 << doubling for doubling in range(6))
"""Tokens of the prompts."""
CONTEXTS = tuple(1024 << doubling for doubling in range(8))
"""Tokens of the contexts that are written behind; caches of powers of two have no empty slots."""
WRITTEN = 96
"""Tokens that are written each time, of which the last 64 are timed."""
REPEATS = 5
MODEL = "nano"
ALONE = "import sys; from benchmarks.long import print_done; print_done(*sys.argv[1:])"
MOST_CACHES, MOST_ELSE = 2, 1e9
"""The peak should be no more than so many times the cache, and so many bytes beside."""
MOST_ABOVE_LINE = 1.25
"""No chunk should take more than so many times what the line says."""


@dataclass(frozen=True)
class Reading:
    """A prompt that was read: bytes, and seconds of each chunk, the first of which compiles.

    The seconds are those of all cores together, so that other programs do not count.
    `flops` are those of the attention of one token to one other in all layers.
    """

    tokens: int
    cache: int
    peak: int
    flops: int
    seconds: list[float]

    @property
    def limit(self) -> float:
        """The bytes that the peak should not exceed."""
        return MOST_CACHES * self.cache + MOST_ELSE

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return self.tokens // len(self.seconds)

    @property
    def positions(self) -> np.ndarray:
        """The middle of each chunk but the first."""
        return (np.arange(1, len(self.seconds)) + 0.5) * self.chunk

    @property
    def per_token(self) -> np.ndarray:
        """Seconds for a token in each chunk but the first."""
        return np.array(self.seconds[1:]) / self.chunk


@dataclass(frozen=True)
class Writing:
    """A context that was written behind: bytes, and seconds for a token in each of several runs."""

    tokens: int
    cache: int
    peak: int
    seconds: list[float]

    @property
    def per_token(self) -> float:
        """At best: others who use the machine only ever make it slower."""
        return min(self.seconds)


Measurement = TypeVar("Measurement", Reading, Writing)


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(tokens: int) -> Reading:
    """Prefill in this process, whose peak it is."""
    model = load_model(MODEL, dtype="float32", context=tokens + 1)
    config = model.config
    ids = bench.random_ids(config, tokens).tolist()
    times = [time.process_time()]

    def note(progress: Progress) -> None:
        if progress.phase == "reading":
            times.append(time.process_time())

    options = {"modality": "text", "sampling": Sampling(temperature=0), "max_tokens": 1}
    list(generate(model, [ids], **options, on_progress=note))
    cache = 2 * config.layers * config.kv_heads * config.head_dim * model.how.dtype.itemsize
    flops = 4 * config.layers * config.heads * config.head_dim
    return Reading(tokens, cache * tokens, peak_memory(), flops, np.diff(times).tolist())


def write(tokens: int) -> Writing:
    """Write the last tokens of a context in this process, again and again.

    The keys and values of the others are random: attention costs what it would if they were read.
    """
    model = load_model(MODEL, dtype="float32", context=tokens)
    prompt = tokens - WRITTEN
    ids = bench.random_ids(model.config, prompt)
    context = Context(ids[:-1].tolist(), random_cache(model, tokens))
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(context.cache))
    paces = [bench.pace(bench.written(model, prompt, WRITTEN, context)) for _ in range(REPEATS)]
    return Writing(tokens, cache, peak_memory(), paces)


def random_cache(model: LoadedModel, slots: int) -> KVCache:
    """A cache of one row, full of random keys and values."""
    rng, split = np.random.default_rng(0), is_split(model.params)
    made = partial(empty_cache, model.config, 1, slots, model.cache_dtype, split=split)
    shapes = jax.eval_shape(made)
    keys, values = (
        jax.tree.map(lambda one: jnp.asarray(rng.standard_normal(one.shape, np.float32)), part)
        for part in (shapes.keys, shapes.values)
    )
    order = jnp.arange(slots)[None]
    cache: KVCache = KVCache(keys, values, order, jnp.ones_like(order), jnp.int32(slots))
    return jax.device_put(cache, jax.tree.map(model.how.sharding, cache_specs(model.how, cache)))


JOBS = {"read": read, "write": write}


def print_done(job: str, tokens: str) -> None:
    """All that a process of its own does."""
    print(json.dumps(asdict(JOBS[job](int(tokens)))))


def done_alone(job: str, tokens: int) -> dict[str, Any]:
    """A job in a process of its own: what it measured."""
    program = [sys.executable, "-c", ALONE, job, str(tokens)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Line:
    """Least squares: `y` is `start + slope * x`, with R² and the largest `y` in units of that."""

    start: float
    slope: float
    r2: float
    worst: float

    @classmethod
    def through(cls, x: Sequence[float], y: Sequence[float]) -> Line:
        """The line through some points."""
        points, found = np.asarray(x, float), np.asarray(y, float)
        slope, start = np.polyfit(points, found, 1)
        fitted = start + slope * points
        r2 = 1 - np.square(found - fitted).sum() / np.square(found - found.mean()).sum()
        return cls(float(start), float(slope), float(r2), float((found / fitted).max()))

    def at(self, x: np.ndarray) -> np.ndarray:
        """What it says for some x."""
        return self.start + self.slope * x

    def said(self, unit: float) -> str:
        """In words, per thousand tokens, where `unit` is that of y."""
        return f"{self.start / unit:.3f} + {self.slope * 1e3 / unit:.4f} n/1000, R² {self.r2:.4f}"


@dataclass(frozen=True)
class Lines:
    """How cost grows: seconds for a token that is read over its position, or is written over the
    length of its context; bytes at the peak over the length."""

    read_time: Line
    write_time: Line
    read_peak: Line
    write_peak: Line

    @classmethod
    def through(cls, readings: Sequence[Reading], writings: Sequence[Writing]) -> Lines:
        longest = readings[-1]
        contexts = [one.tokens for one in writings]
        return cls(
            Line.through(longest.positions, longest.per_token),
            Line.through(contexts, [one.per_token for one in writings]),
            Line.through([one.tokens for one in readings], [one.peak for one in readings]),
            Line.through(contexts, [one.peak for one in writings]),
        )


def show_readings(readings: Iterator[Reading]) -> list[Reading]:
    """Print the readings as they come; the first is the short one."""
    print(
        f"{'tokens':>8}{'cache, GB':>11}{'peak, GB':>10}{'more, GB':>10}{'limit, GB':>11}", end=""
    )
    print(f"{'s':>8}{'last chunk, tok/s':>19}")
    shown: list[Reading] = []
    for one in readings:
        shown.append(one)
        more = one.peak - shown[0].peak
        bytes_ = f"{one.cache / 1e9:>11.3f}{one.peak / 1e9:>10.2f}{more / 1e9:>10.2f}"
        speed = one.chunk / one.seconds[-1]
        times = f"{sum(one.seconds):>8.1f}{speed:>19.0f}"
        print(f"{one.tokens:>8}{bytes_}{one.limit / 1e9:>11.2f}{times}", flush=True)
    return shown


def show_writings(writings: Iterator[Writing]) -> list[Writing]:
    """Print the writings as they come."""
    print(f"\n{'context':>8}{'cache, GB':>11}{'peak, GB':>10}{'ms a token':>12}{'worst':>8}")
    shown = []
    for one in writings:
        bytes_ = f"{one.cache / 1e9:>11.3f}{one.peak / 1e9:>10.2f}"
        times = f"{one.per_token * 1e3:>12.2f}{max(one.seconds) * 1e3:>8.2f}"
        print(f"{one.tokens:>8}{bytes_}{times}", flush=True)
        shown.append(one)
    return shown


def show_lines(
    lines: Lines, readings: Sequence[Reading], writings: Sequence[Writing], machine: Machine
) -> None:
    """Print what the lines say of n tokens, and what their slopes mean."""
    speed = readings[-1].flops / lines.read_time.slope
    cache = writings[-1].cache / writings[-1].tokens
    rows = (
        ("read, ms a token", lines.read_time, 1e-3, f"attention at {speed / 1e9:.0f} GFLOP/s"),
        (
            "written, ms a token",
            lines.write_time,
            1e-3,
            f"keys and values at {cache / lines.write_time.slope / 1e9:.1f} of "
            f"{machine.bandwidth / 1e9:.1f} GB/s",
        ),
        ("read, peak in GB", lines.read_peak, 1e9, _of_cache(lines.read_peak, cache)),
        ("written, peak in GB", lines.write_peak, 1e9, _of_cache(lines.write_peak, cache)),
    )
    print()
    for name, line, unit, meaning in rows:
        print(f"{name:<20} {line.said(unit)} ({meaning})")
    print(f"slowest chunk: {lines.read_time.worst:.2f} times the line (at most {MOST_ABOVE_LINE})")


def _of_cache(line: Line, cache: float) -> str:
    """A slope of bytes beside that of the cache."""
    return f"{line.slope / cache:.2f} times the cache"


def picture(readings: Sequence[Reading], writings: Sequence[Writing], lines: Lines) -> Image.Image:
    """Time and memory side by side, of reading above those of writing."""
    longest = readings[-1]
    points = longest.positions, longest.per_token
    behind = [one.tokens for one in writings], [one.per_token for one in writings]
    at_most = Curve("at most", *_in_units(readings, "limit"))
    panels = [
        _times(f"reading {longest.tokens} tokens", "position", lines.read_time, *points),
        _memory("reading", "the prompt", lines.read_peak, readings, at_most),
        _times("writing", "length of the context", lines.write_time, *behind),
        _memory("writing", "the context", lines.write_peak, writings),
    ]
    width, height = panels[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for index, panel in enumerate(panels):
        whole.paste(panel, (width * (index % 2), height * (index // 2)))
    return whole


def _times(
    title: str, across: str, line: Line, x: Sequence[float], seconds: Sequence[float]
) -> Image.Image:
    """Milliseconds for a token, with their line."""
    ends = np.array([0, max(x)])
    curves = [
        Curve("least squares", ends / 1024, line.at(ends) * 1e3),
        Curve("measured", np.asarray(x) / 1024, np.asarray(seconds) * 1e3, dots=True),
    ]
    return plot(f"{MODEL}, {title}", f"{across}, in 1024 tokens", "ms per token", curves)


def _memory(
    title: str, what: str, line: Line, measured: Sequence[Measurement], *more: Curve
) -> Image.Image:
    """Gigabytes at the peak, with their line, and what keys and values take of them."""
    ends = np.array([0, measured[-1].tokens])
    curves = [
        Curve("least squares", ends / 1024, line.at(ends) / 1e9),
        Curve("peak", *_in_units(measured, "peak"), dots=True),
        Curve("keys and values", *_in_units(measured, "cache")),
        *more,
    ]
    return plot(f"{title}, peak memory", f"length of {what}, in 1024 tokens", "GB", curves)


def _in_units(measured: Sequence[Measurement], what: str) -> tuple[list[float], list[float]]:
    """Lengths in 1024 tokens, and something in gigabytes."""
    return [one.tokens / 1024 for one in measured], [getattr(one, what) / 1e9 for one in measured]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="short ones: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (PNG)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device = f"{device_line(make_mesh())}, jax {jax.__version__}"
    print(f"{device}; {MODEL}, float32")
    lengths, contexts = ([8192], CONTEXTS[:3]) if options.smoke else (LENGTHS, CONTEXTS)
    readings = show_readings(Reading(**done_alone("read", n)) for n in (SHORT, *lengths))
    writings = show_writings(Writing(**done_alone("write", n)) for n in contexts)
    lines = Lines.through(readings, writings)
    # Last: a process that is started begins with the peak of the one that starts it.
    machine = bench.measure_machine(Execution(make_mesh()))
    show_lines(lines, readings, writings, machine)
    if options.json:
        content = {
            "machine": device,
            "limits": asdict(machine),
            "readings": [asdict(one) for one in readings],
            "writings": [asdict(one) for one in writings],
            "lines": asdict(lines),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        picture(readings, writings, lines).save(options.plot)


if __name__ == "__main__":
    start_with_heap()
    main()
