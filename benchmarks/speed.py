"""How fast the model runs here, beside the original: `python -m benchmarks.speed`.

The model has the shape that the original was timed with (58M parameters) and random weights.
A figure is the median of a few runs, after one that compiles.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from lwm_cli.heap import start_with_heap
from lwm_core import backend, bench, transformer, weight_tree
from lwm_core.bench import Figure, Lengths, Machine
from lwm_core.checkpoint import numpy_dtype
from lwm_core.config import ModelConfig
from lwm_core.execution import Execution
from lwm_core.load import LoadedModel, placed
from lwm_core.mesh import device_line, make_mesh
from lwm_core.number_formats import usual_dtype
from lwm_core.rounded import rounded
from lwm_core.weights import Held, read_stacked

SHAPE = ModelConfig(
    text_vocab=32000,
    hidden=512,
    intermediate=1376,
    layers=8,
    heads=8,
    kv_heads=8,
    head_dim=64,
    max_length=4096,
)

ORIGINAL = {
    "forward": (1195, 1195),
    "prefill": (1195, 1195),
    "decode": (12.4, 12.4),
    "train": (186, 256),
}
"""Tokens a second of the original (JAX, float32): least and most.

Measured on another machine of the size that README names. `forward` and `prefill` are both
compared with its forward pass, which computes the logits of every token.
"""


def ratio(figure: Figure) -> float | None:
    """How many times the original's speed, at its best, where that was timed."""
    return figure.speed / ORIGINAL[figure.job][1] if figure.job in ORIGINAL else None


def time_forward(model: LoadedModel, machine: Machine, lengths: Lengths, repeats: int) -> Figure:
    """One pass without a cache; logits of every token."""
    tokens = bench.one_row(bench.random_ids(model.config, lengths.read))
    args = model.params, model.config, tokens, model.how
    took = bench.median(lambda: bench.clocked(lambda: transformer.forward(*args)), repeats)
    return Figure("forward", lengths.read / took, "tokens")


TIMERS = {
    "forward": time_forward,
    "prefill": bench.time_prefill,
    "decode": bench.time_decode,
    "train": bench.time_train,
}
NUMBERS = {"float32": None, "bfloat16": None, "int8": "int8"}
"""What is computed in, or what weights are rounded to."""
INFERENCE = ("prefill", "decode")
"""What rounded weights serve for."""


def random_model(config: ModelConfig, numbers: str) -> LoadedModel:
    """A model of this shape with random weights. It has no tokenizer: ids go in and come out."""
    weights = Held(weight_tree.to_numpy(weight_tree.init(config, jax.random.key(0))))
    is_rounded = numbers == "int8"
    if is_rounded:
        config = replace(config, quantized="int8")
        weights = rounded(weights, config)
    dtype = numpy_dtype(usual_dtype(config, jax.default_backend()) if is_rounded else numbers)
    how = Execution(make_mesh(), jnp.dtype(dtype))
    return LoadedModel(
        name="random",
        config=config,
        params=placed(read_stacked(weights, config, dtype), config, how),
        tokenizer=None,  # type: ignore[arg-type]
        vqgan=None,
        how=how,
        context=config.max_length,
        cache_dtype=jnp.dtype(jnp.int8 if is_rounded else dtype),
        defaults={},
    )


def show_figures(figures: Iterator[tuple[str, Figure]]) -> list[dict]:
    """Print the figures as they come, beside the original's and the machine's limits."""
    print(f"{'':<10}{'':<10}{'tok/s':>10}{'original':>10}{'ratio':>8}{'of the limit':>20}")
    shown = []
    for numbers, one in figures:
        original = "-".join(f"{speed:g}" for speed in sorted({*ORIGINAL.get(one.job, ())}))
        times = f"{ratio(one):.1f}" if ratio(one) else ""
        share = f"{one.share:.0%} of {one.limit}" if one.share else ""
        print(
            f"{one.job:<10}{numbers:<10}{one.speed:>10.1f}{original:>10}{times:>8}{share:>20}",
            flush=True,
        )
        shown.append({**asdict(one), "numbers": numbers, "ratio": ratio(one)})
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(TIMERS)}")
    parser.add_argument("--numbers", choices=NUMBERS, help="only these")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if unknown := set(options.what) - set(TIMERS):
        parser.error(f"{', '.join(unknown)} is nothing to measure; choose of {', '.join(TIMERS)}")
    return options


def measure(options: argparse.Namespace, machines: dict[str, Machine]) -> Iterator:
    """The figures that were asked for, in all numbers."""
    config = replace(SHAPE, layers=1) if options.smoke else SHAPE
    lengths = Lengths(128, 64, 64, 128) if options.smoke else Lengths(2048, 512, 160, 2048)
    for numbers in [options.numbers] if options.numbers else NUMBERS:
        model = random_model(config, numbers)
        for what in options.what or TIMERS:
            if numbers != "int8" or what in INFERENCE:
                machine = machines[model.how.dtype.name]
                yield numbers, TIMERS[what](model, machine, lengths, options.repeats)


def measure_machines() -> dict[str, Machine]:
    """What the machine can do, by what is computed in."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        found[dtype] = bench.measure_machine(Execution(make_mesh(), jnp.dtype(dtype)))
        print(f"{dtype}: products {found[dtype].flops / 1e9:.0f} GFLOP/s", end=", ")
    print(f"memory {found['float32'].bandwidth / 1e9:.1f} GB/s")
    return found


def main() -> None:
    options = arguments()
    backend.prepare()
    print(f"{device_line(make_mesh())}, jax {jax.__version__}")
    machines = measure_machines()
    content = {
        "machine": {dtype: asdict(machine) for dtype, machine in machines.items()},
        "figures": show_figures(measure(options, machines)),
    }
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    start_with_heap()
    main()
