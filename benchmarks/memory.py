"""How much memory large models take: `python -m benchmarks.memory [--folder DIR]`.

A 7B model of random numbers in the original's format is converted to a model directory, a model of
1.1B parameters is loaded, and one of 58M takes a training step at 32768 tokens, each in a process
of its own, whose peak is measured. It needs 28 GB of disk for a while.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from lwm_core.checkpoint import fill_directory
from lwm_core.config import SIZES, ModelConfig
from lwm_core.formats.lwm_jax_writer import write_streaming
from lwm_core.parameters import parameters
from lwm_core.registry import embedded_path
from lwm_core.tokenizer import Tokenizer
from lwm_core.weight_tree import count_parameters

MEASURED = """
import json, resource, sys, time
from lwm_core import backend
backend.prepare()
began = time.perf_counter()
{work}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([peak, time.perf_counter() - began]))
"""
CONVERT = """
from pathlib import Path
from lwm_core.convert import convert
from lwm_core.source import open_source
convert(open_source(sys.argv[1]), Path(sys.argv[2]))
"""
LOAD = """
import jax
from lwm_core.load import load_model
jax.block_until_ready(load_model(sys.argv[1], dtype=sys.argv[2]).params)
"""
TRAIN = """
import jax, jax.numpy as jnp
from benchmarks.speed import SHAPE
from lwm_core.bench import training
from lwm_core.execution import Execution
from lwm_core.mesh import make_mesh
from lwm_core.train.optimizer import LanguageOptimizerConfig
how = Execution(make_mesh("dp=1", jax.devices()[:1]), jnp.dtype(sys.argv[1]))
jax.block_until_ready(training(SHAPE, LanguageOptimizerConfig("adamw"), how, 1, int(sys.argv[2]))())
"""
NOTHING = "import jax; jax.devices()"


class RandomWeights:
    """Random numbers of a model's shapes, made when they are read."""

    dtype = "bfloat16"

    def __init__(self, config: ModelConfig):
        self._table = parameters(config)
        self._numbers = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(ml_dtypes.bfloat16)

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """One parameter, or one layer of it."""
        shape = self._table[name].shape
        return np.resize(self._numbers, shape if layer is None else shape[1:])


def measured(work: str, *arguments: str) -> tuple[float, float]:
    """Peak of resident memory in bytes and seconds of a program in a process of its own."""
    program = [sys.executable, "-c", MEASURED.format(work=work), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the large files go for a while")
    return parser.parse_args()


def main() -> None:
    """Print one line for each measurement."""
    with tempfile.TemporaryDirectory(dir=arguments().folder) as name:
        folder = Path(name)
        idle, _ = measured(NOTHING)
        print(f"a program with jax alone: {idle / 1e9:.2f} GB")
        _trained()
        _converted(folder)
        _loaded(folder)


def _trained() -> None:
    for dtype in ("float32", "bfloat16"):
        peak, seconds = measured(TRAIN, dtype, "32768")
        print(f"a step at 32768 tokens in {dtype}: peak {peak / 1e9:.2f} GB, {seconds:.0f} s")


def _converted(folder: Path) -> None:
    source = folder / "LWM-Text-1M"
    source.mkdir()
    config = SIZES["7b"]
    number = np.dtype(ml_dtypes.bfloat16)
    write_streaming(source / "params", config, RandomWeights(config), number)
    (source / "tokenizer.model").write_bytes((embedded_path() / "tokenizer.model").read_bytes())
    size = (source / "params").stat().st_size
    peak, seconds = measured(CONVERT, str(source), str(folder / "converted"))
    print(
        f"converted {size / 1e9:.1f} GB of streaming msgpack: peak {peak / 1e9:.2f} GB, "
        f"{seconds:.0f} s"
    )
    for file in [source / "params", *(folder / "converted").glob("*.safetensors")]:
        file.unlink()


def _loaded(folder: Path) -> None:
    config = ModelConfig(
        text_vocab=32000, hidden=2048, intermediate=5632, layers=22, heads=32, kv_heads=4,
        head_dim=64, max_length=2048,
    )  # fmt: skip
    tokenizer = Tokenizer.load(embedded_path() / "tokenizer.model")
    for dtype, bytes_each in (("bfloat16", 2), ("float32", 4)):
        target = folder / dtype
        target.mkdir()
        weights = RandomWeights(config)
        fill_directory(target, config, weights, tokenizer=tokenizer, dtype=dtype)
        size = count_parameters(config) * bytes_each
        peak, seconds = measured(LOAD, str(target), dtype)
        print(
            f"loaded 1.1B in {dtype}: peak {peak / 1e9:.2f} GB, {peak / size:.2f} times its size, "
            f"{seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
