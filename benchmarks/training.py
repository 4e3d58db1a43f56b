"""How fast the embedded model trains by its recipe: `python -m benchmarks.training`.

A step is one of `lwm train nano` on eight rows of 1024 tokens, data apart, on the devices that it
would take: on a CPU each core is one. The speed is the median of a few steps, after one that
compiles.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path

import jax.numpy as jnp

import lwm_core
from lwm_cli.heap import start_with_heap
from lwm_core import backend, bench
from lwm_core.checkpoint import read_config
from lwm_core.costs import Dtype, Work
from lwm_core.execution import Execution
from lwm_core.hardware import cores
from lwm_core.mesh import device_line
from lwm_core.presets import plan_here
from lwm_core.registry import embedded_path
from lwm_core.train.optimizer import LanguageOptimizerConfig

RECIPE = Path(lwm_core.__file__).parent / "recipes" / "nano.toml"
ROWS, LENGTH = 8, 1024
NUMBERS: tuple[Dtype, ...] = ("float32", "bfloat16")


def time_training(dtype: Dtype, length: int, repeats: int) -> float:
    """Tokens a second, computed in these numbers."""
    document = tomllib.loads(RECIPE.read_text())
    optimizer = LanguageOptimizerConfig(**document["optimizer"])
    config = read_config(embedded_path())
    plan, mesh = plan_here("auto", Work(config, "train", length, ROWS, dtype))
    how = Execution(mesh, jnp.dtype(dtype), remat=plan.remat, whole_weights=False)
    print(f"{dtype:<10}{device_line(mesh)}, mesh {plan.mesh}", end="", flush=True)
    step = bench.training(config, optimizer, how, ROWS, length)
    return ROWS * length / bench.median(lambda: bench.clocked(step), repeats)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="short rows: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    backend.prepare(cpu_devices=cores())
    speeds = {}
    for dtype in NUMBERS:
        speeds[dtype] = time_training(dtype, 128 if options.smoke else LENGTH, options.repeats)
        print(f": {speeds[dtype]:.0f} tokens a second", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"tokens a second": speeds}, indent=1) + "\n")


if __name__ == "__main__":
    start_with_heap(for_threads=True)
    main()
