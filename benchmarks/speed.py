"""How fast the model runs here, beside the original: `python -m benchmarks.speed`.

The model has the shape that the original was timed with (58M parameters) and random weights.
A figure is the median of a few runs, after one that compiles. `--startup` times the command
`lwm see` instead, with nothing compiled yet and then with what that run has kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lwm_core
from lwm_cli.heap import start_with_heap
from lwm_core import backend, bench, transformer
from lwm_core.bench import Figure, Lengths, Machine
from lwm_core.checkpoint import read_config
from lwm_core.config import ModelConfig
from lwm_core.costs import Work
from lwm_core.execution import Execution
from lwm_core.hardware import cores
from lwm_core.load import LoadedModel, placed
from lwm_core.media import write_video
from lwm_core.mesh import device_line, make_mesh
from lwm_core.presets import plan_here
from lwm_core.registry import embedded_path
from lwm_core.rounded import rounded
from lwm_core.train.optimizer import LanguageOptimizerConfig
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

RECIPES = Path(lwm_core.__file__).parent / "recipes"


def ratio(figure: Figure) -> float | None:
    """How many times the original's speed, at its best, where that was timed."""
    return figure.speed / ORIGINAL[figure.job][1] if figure.job in ORIGINAL else None


def time_forward(model: LoadedModel, machine: Machine, lengths: Lengths, repeats: int) -> Figure:
    """One pass without a cache; logits of every token."""
    tokens = bench.one_row(bench.random_ids(model.config, lengths.read))
    args = model.params, model.config, tokens, model.how
    took = bench.median(lambda: bench.clocked(lambda: transformer.forward(*args)), repeats)
    return Figure("forward", lengths.read / took, "tokens")


def time_nano(model: LoadedModel, machine: Machine, lengths: Lengths, repeats: int) -> Figure:
    """One step of nano as its recipe says, on rows of 1024 tokens, in the numbers of `model`."""
    document = tomllib.loads((RECIPES / "nano.toml").read_text())
    optimizer = LanguageOptimizerConfig(**document["optimizer"])
    rows, length = 8, lengths.read // 2
    config = read_config(embedded_path())
    dtype = "bfloat16" if model.how.dtype == jnp.bfloat16 else "float32"
    plan, mesh = plan_here("auto", Work(config, "train", length, rows, dtype))
    how = Execution(mesh, model.how.dtype, remat=plan.remat, whole_weights=False)
    step = bench.training(config, optimizer, how, rows, length)
    took = bench.median(lambda: bench.clocked(step), repeats)
    return Figure("nano", rows * length / took, "tokens")


NANO = "nano"
"""A job that wants the process to itself."""

TIMERS = {
    "forward": time_forward,
    "prefill": bench.time_prefill,
    "decode": bench.time_decode,
    "train": bench.time_train,
    NANO: time_nano,
}
ALONE = tuple(job for job in TIMERS if job != NANO)
"""What one device does. nano is trained on several, which the program must share out first."""
NUMBERS = {"float32": None, "bfloat16": None, "int8": "int8"}
"""What is computed in, or what weights are rounded to."""
INFERENCE = ("prefill", "decode")
"""What rounded weights serve for."""


def random_model(config: ModelConfig, numbers: str) -> LoadedModel:
    """A model of this shape with random weights. It has no tokenizer: ids go in and come out."""
    weights = Held(transformer.to_numpy(transformer.init(config, jax.random.key(0))))
    is_rounded = numbers == "int8"
    if is_rounded:
        config = replace(config, quantized="int8")
        weights = rounded(weights, config)
    dtype = np.dtype("float32" if is_rounded else numbers)
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


@dataclass(frozen=True)
class StartUp:
    """One run of `lwm see`, in seconds from its start; the speed is the one that it reports."""

    run: str
    first_words: float
    whole: float
    tokens: int
    speed: float


def time_start_up(model: str, repeats: int) -> Iterator[StartUp]:
    """`lwm see` on a clip: cold (nothing compiled yet), then warm, with what that has kept."""
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch) / "clip.mp4"
        write_video(clip, moving_square(), 8)
        environment = {**os.environ, "LWM_HOME": str(Path(scratch) / "home")}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        for run in ["cold", *["warm"] * repeats]:
            yield time_see(run, clip, model, environment)


def moving_square() -> np.ndarray:
    """A clip, uint8 `[16, 256, 256, 3]`: a red square moves right on black."""
    frames = np.zeros((16, 256, 256, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[96:160, 10 + 8 * index : 74 + 8 * index, 0] = 255
    return frames


def time_see(run: str, clip: Path, model: str, environment: dict[str, str]) -> StartUp:
    """Run the command once; its first words are there when its output begins."""
    command = [sys.executable, "-m", "lwm_cli", "see", str(clip), "what happens?", "-m", model]
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads could fill up
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        began = time.perf_counter()
        with subprocess.Popen(command, env=environment, **pipes) as running:
            running.stdout.read(1)
            first_words = time.perf_counter() - began
            running.stdout.read()
        whole = time.perf_counter() - began
        errors.seek(0)
        said = errors.read().decode()
    figures = re.search(r"(\d+) tokens(?: · (\d+) tok/s)?", said)
    if running.returncode or figures is None:
        sys.exit(f"lwm see failed: {said.strip()}")
    return StartUp(run, first_words, whole, int(figures[1]), float(figures[2] or 0))


def show_start_up(runs: Iterator[StartUp]) -> list[StartUp]:
    """Print the runs as they come."""
    print(f"{'lwm see':<10}{'first words, s':>16}{'whole, s':>10}{'tokens':>8}{'tok/s':>8}")
    shown = []
    for one in runs:
        figures = f"{one.first_words:>16.2f}{one.whole:>10.2f}{one.tokens:>8}{one.speed:>8.0f}"
        print(f"{one.run:<10}{figures}", flush=True)
        shown.append(one)
    return shown


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
    parser.add_argument("--startup", action="store_true", help="time `lwm see` instead")
    parser.add_argument("--model", default="nano", help="of --startup (default: nano)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if unknown := set(options.what) - set(TIMERS):
        parser.error(f"{', '.join(unknown)} is nothing to measure; choose of {', '.join(TIMERS)}")
    if NANO in options.what and len(options.what) > 1:
        parser.error("nano has the cores as devices of its own: time it alone")
    return options


def measure(options: argparse.Namespace, machines: dict[str, Machine]) -> Iterator:
    """The figures that were asked for, in all numbers."""
    config = replace(SHAPE, layers=1) if options.smoke else SHAPE
    lengths = Lengths(128, 64, 64, 128) if options.smoke else Lengths(2048, 512, 160, 2048)
    for numbers in [options.numbers] if options.numbers else NUMBERS:
        model = random_model(config, numbers)
        for what in options.what or ALONE:
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
    backend.prepare(cpu_devices=cores() if NANO in options.what else None)
    print(f"{device_line(make_mesh())}, jax {jax.__version__}")
    if options.startup:
        content = {"startup": [asdict(r) for r in show_start_up(time_start_up(options.model, 2))]}
    else:
        machines = measure_machines()
        content = {
            "machine": {dtype: asdict(machine) for dtype, machine in machines.items()},
            "figures": show_figures(measure(options, machines)),
        }
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    start_with_heap(for_threads=NANO in sys.argv)
    main()
