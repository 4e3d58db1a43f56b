"""Command line of the examiner: `python -m benchmarks.exam [TASK]`, by default all tasks."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from lwm_core.config import Quantization
from lwm_core.costs import Dtype

from . import check, make, see
from .examinee import CommandLine, Examinee, InProcess
from .report import Record, show, write_json

TASKS: dict[str, Callable[[Examinee, int, int, Path], list[Record]]] = {
    "see": partial(see.examine, "see"),
    "pictures": partial(see.examine, "pictures"),
    "parts": see.examine_parts,
    "draw": make.examine_draw,
    "film": make.examine_film,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exam", description=__doc__)
    parser.add_argument("task", nargs="?", default="all", choices=[*TASKS, "all"])
    parser.add_argument("--n", type=int, default=140, help="items of each task (fair: 28, 140)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="name or directory (default: nano)")
    parser.add_argument("--dtype", choices=get_args(Dtype), help="compute in it")
    parser.add_argument("--quantize", choices=get_args(Quantization), help="round its weights")
    parser.add_argument("--cli", action="store_true", help="run the command lwm for every item")
    for name in ("temperature", "top-k", "guidance"):
        kind = int if name == "top-k" else float
        parser.add_argument(f"--{name}", type=kind, help="of draw and film; default: the model's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write options, totals, records")
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep media and contact sheets")
    parser.add_argument("--self-check", action="store_true", help="only examine the measurer")
    return parser.parse_args()


def examinee(options: argparse.Namespace) -> Examinee:
    settings = {name: getattr(options, name) for name in ("temperature", "top_k", "guidance")}
    numbers = {"dtype": options.dtype, "quantize": options.quantize}
    given = {name: value for name, value in settings.items() if value is not None}
    return (CommandLine if options.cli else InProcess)(options.model, numbers, given)


def main() -> None:
    options = arguments()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.save or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if options.self_check:
            records += check.check_pictures(options.n, options.seed, folder)
            records += check.check_films(options.n, options.seed)
        else:
            model = examinee(options)
            for task in TASKS if options.task == "all" else [options.task]:
                records += TASKS[task](model, options.n, options.seed, folder)
    for task in dict.fromkeys(record.task for record in records):
        show(task, [record for record in records if record.task == task])
    if options.json:
        write_json(options.json, vars(options), records)
    if options.self_check:
        check.require(records)


if __name__ == "__main__":
    main()
