"""SmolLM2-135M here and in other programs, on this CPU: `python -m benchmarks.peers`.

Each program has a process of its own for each of its number formats, in which the model stays
loaded. They take turns at every job, in several rounds, and of the rounds the best counts: others
who use the machine only ever make a program slower. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, get_args

from benchmarks.smollm import find_smollm
from lwm_cli.heap import start_with_heap
from lwm_core import bench
from lwm_core.bench import Lengths, Machine
from lwm_core.config import Quantization
from lwm_core.convert import convert
from lwm_core.decode import DECODE_CHUNK
from lwm_core.execution import Execution
from lwm_core.hardware import cores
from lwm_core.load import load_model
from lwm_core.mesh import device_line, make_mesh
from lwm_core.source import open_source

BRIDGE = Path(__file__).with_name("llama.mjs")
ALONE = "import sys; from benchmarks.peers import answer; answer(*sys.argv[1:])"
OF_ONE = Machine(1, 1)
"""Shares of such a machine are the bytes and the FLOPs of a second."""
UNTIMED = DECODE_CHUNK
"""Tokens that are written before the clock starts: the first piece of ours, so for all."""
ROOM = 256
"""Slots of a context beyond what the longest job needs."""
OFFLINE = {"HF_HUB_OFFLINE": "1"}
AS_OTHERS = {"GLIBC_TUNABLES": ""}
"""Only lwm starts with huge pages by itself; the others run as their users start them."""


@dataclass(frozen=True)
class Job:
    """Tokens to read and to write behind them; with none to write it is the reading that counts."""

    before: int
    written: int = 0

    @property
    def name(self) -> str:
        return f"decode after {self.before}" if self.written else f"prefill {self.before}"


JOBS = (Job(512, 128), Job(2048, 128), Job(2048))
SMALL_JOBS = (Job(32, 40), Job(64, 40), Job(64))


@dataclass(frozen=True)
class Timing:
    """One run: tokens a second, and the bytes that a token reads from memory, where known."""

    speed: float
    bytes: float | None = None


class Program(Protocol):
    """A model in some program's memory."""

    def time(self, job: Job) -> Timing: ...


class Ours:
    """lwm, in a number format or with weights rounded to fewer bits."""

    def __init__(self, numbers: str, model: str):
        rounded = numbers if numbers in get_args(Quantization) else None
        dtype = None if rounded else numbers
        self.model = load_model(model, dtype=dtype, quantize=rounded)  # type: ignore[arg-type]

    def time(self, job: Job) -> Timing:
        lengths = Lengths(read=job.before, before=job.before, written=job.written)
        if not job.written:
            return Timing(bench.time_prefill(self.model, OF_ONE, lengths, 1).speed)
        figure = bench.time_decode(self.model, OF_ONE, lengths, 1)
        assert figure.share is not None  # decoding has one
        return Timing(figure.speed, figure.share / figure.speed)


class Transformers:
    """transformers on torch, with the same weights and its own `generate`."""

    def __init__(self, numbers: str, model: str):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(cores())
        dtype = getattr(torch, numbers)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.model.generation_config.eos_token_id = None  # it writes as much as it is asked for

    def time(self, job: Job) -> Timing:
        import torch

        ids = torch.randint(3, self.model.config.vocab_size, (1, job.before))
        with torch.inference_mode():
            if job.written:
                return Timing(1 / bench.median(lambda: self._seconds_a_token(ids, job.written), 1))
            return Timing(job.before / bench.median(lambda: self._seconds_to_read(ids), 1))

    def _seconds_to_read(self, ids: Any) -> float:
        """A forward pass with a cache and the logits of the last token, as `generate` begins."""
        began = time.perf_counter()
        self.model(ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began

    def _seconds_a_token(self, ids: Any, written: int) -> float:
        clock = Clock()
        self.model.generate(ids, do_sample=False, max_new_tokens=written, streamer=clock)
        return (clock.times[-1] - clock.times[UNTIMED]) / (written - UNTIMED)


class Clock:
    """What `generate` streams to: it hears of the prompt first, then of every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


PROGRAMS: dict[str, type[Ours] | type[Transformers]] = {"lwm": Ours, "transformers": Transformers}
"""Those in Python."""


def answer(name: str, numbers: str, model: str) -> None:
    """All that a process of its own does: a job comes as a line of JSON, its timing goes back."""
    program: Program = PROGRAMS[name](numbers, model)
    for line in sys.stdin:
        print(json.dumps(asdict(program.time(Job(**json.loads(line))))), flush=True)


@dataclass(frozen=True)
class Peer:
    """A program with a number format, and the command that answers jobs."""

    name: str
    numbers: str
    command: tuple[str, ...]


class Running:
    """A peer in its process; left, it ends."""

    def __init__(self, peer: Peer):
        self.peer = peer
        # A pipe that nobody reads could fill up.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            peer.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **OFFLINE, **({} if peer.name == "lwm" else AS_OTHERS)},
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._errors.close()

    def time(self, job: Job) -> Timing:
        """Have a job done."""
        try:
            print(json.dumps(asdict(job)), file=self._process.stdin, flush=True)
            return Timing(**json.loads(self._process.stdout.readline()))  # type: ignore[union-attr]
        except (BrokenPipeError, json.JSONDecodeError):
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()
            sys.exit(f"{self.peer.name} in {self.peer.numbers} failed: {said[-2000:]}")


def peers(model: Path, node: Path | None, jobs: Sequence[Job], scratch: Path) -> Iterator[Peer]:
    """All that are installed; of each that is not a line is printed."""
    for numbers in ("float32", "bfloat16", *get_args(Quantization)):
        yield Peer("lwm", numbers, (sys.executable, "-c", ALONE, "lwm", numbers, str(model)))
    if find_spec("torch") and find_spec("transformers"):
        folder = str(scratch / "hf")
        convert(open_source(str(model)), Path(folder), to="hf", dtype="float32")
        for numbers in ("float32", "bfloat16"):
            command = (sys.executable, "-c", ALONE, "transformers", numbers, folder)
            yield Peer("transformers", numbers, command)
    else:
        print("transformers is left out: it is not installed, or torch is not")
    if node and shutil.which("node"):
        slots = max(job.before + job.written for job in jobs) + ROOM
        sizes = map(str, (cores(), slots, UNTIMED))
        weights = model.stem.rpartition(".")[2]
        yield Peer("llama.cpp", weights, ("node", str(BRIDGE), str(node), str(model), *sizes))
    else:
        print("llama.cpp is left out: there is no node, or no --node FOLDER with node-llama-cpp")


@dataclass(frozen=True)
class Row:
    """A job of a peer: tokens a second in each round; at best, of what memory could give."""

    name: str
    numbers: str
    job: str
    speeds: list[float]
    share: float | None

    @classmethod
    def of(cls, peer: Peer, job: Job, timings: Sequence[Timing], machine: Machine) -> Row:
        best = max(timings, key=lambda timing: timing.speed)
        share = best.bytes * best.speed / machine.bandwidth if best.bytes else None
        speeds = [timing.speed for timing in timings]
        return cls(peer.name, peer.numbers, job.name, speeds, share)


def measure(
    all_peers: Sequence[Peer], jobs: Sequence[Job], rounds: int
) -> tuple[Machine, list[Row]]:
    """All jobs of all peers, in turn; the machine's limits too are the best of the rounds."""
    timings: dict[tuple[Peer, Job], list[Timing]] = {}
    machines = []
    with ExitStack() as stack:
        running = [stack.enter_context(Running(peer)) for peer in all_peers]
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            machines.append(bench.measure_machine(Execution(make_mesh())))
            for job in jobs:
                for one in running:
                    timings.setdefault((one.peer, job), []).append(one.time(job))
    machine = Machine(max(one.bandwidth for one in machines), max(one.flops for one in machines))
    rows = [Row.of(peer, job, timings[peer, job], machine) for job in jobs for peer in all_peers]
    return machine, rows


def show(rows: Sequence[Row]) -> None:
    """Print the rows, job by job."""
    print(f"\n{'':<20}{'':<14}{'':<10}{'tok/s, best':>12}{'worst':>8}{'of memory':>11}")
    for row in rows:
        share = f"{row.share:.0%}" if row.share else ""
        speeds = f"{max(row.speeds):>12.1f}{min(row.speeds):>8.1f}"
        print(f"{row.job:<20}{row.name:<14}{row.numbers:<10}{speeds}{share:>11}")


def versions(node: Path | None) -> dict[str, str]:
    """What is compared."""
    found = {name: version(name) for name in ("jax", "torch", "transformers") if find_spec(name)}
    if node:
        package = node / "node_modules/node-llama-cpp/package.json"
        if not package.is_file():
            sys.exit(f"{package} is not there: npm install node-llama-cpp in {node}")
        found["node-llama-cpp"] = json.loads(package.read_text(encoding="utf-8"))["version"]
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--node", type=Path, metavar="FOLDER", help="has node-llama-cpp")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="short jobs: only see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    model, jobs = find_smollm(), SMALL_JOBS if options.smoke else JOBS
    content = {
        "model": model.name,
        "device": device_line(make_mesh()),
        "threads": cores(),
        "versions": versions(options.node),
    }
    print(*(f"{key}: {value}" for key, value in content.items()), sep="\n")
    with tempfile.TemporaryDirectory() as scratch:
        found = list(peers(model, options.node, jobs, Path(scratch)))
        machine, rows = measure(found, jobs, 1 if options.smoke else options.rounds)
    print(f"memory: {machine.bandwidth / 1e9:.1f} GB/s")
    show(rows)
    if options.json:
        figures = {"machine": asdict(machine), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content | figures, indent=1) + "\n")


if __name__ == "__main__":
    start_with_heap()
    main()
