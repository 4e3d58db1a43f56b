"""`lwm plan`: whether a job fits some hardware, laid out how, and how long a step takes."""

from __future__ import annotations

import dataclasses
import json
import math
import os.path
from typing import TYPE_CHECKING, Annotated

import typer

from lwm_cli import loading, options
from lwm_cli.ui import Screen, four_digits, print_table
from lwm_core import registry
from lwm_core.config import SIZES, ModelConfig, Quantization
from lwm_core.costs import Job, Work, count_parameters
from lwm_core.errors import DoesNotFit, UsageError
from lwm_core.hardware import GIB, TPUS, Topology, parse_topology, training_devices
from lwm_core.number_formats import rounding_of, usual_cache, usual_dtype, usual_rounding
from lwm_core.plan import Plan, longest_context, room, smallest_slice
from lwm_core.presets import plan_for

if TYPE_CHECKING:
    from lwm_core.ahead import Compiled

VISION_VOCAB = 8448
"""Vision ids of the published models that see."""

Slices = dict[str, Topology | None]
"""The smallest slice that is enough, by kind of TPU."""


def run(
    context: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            parser=options.parse_length,
            metavar="LENGTH",
            help="Tokens of a row: 2048, 8k, 1m; by default what the model was made for.",
        ),
    ] = None,
    job: Annotated[
        Job,
        typer.Option("--job", help="An update, the reading of a prompt, or one more token."),
    ] = "train",
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="HARDWARE",
            help="v5p-128, v4:4x4x4, 8xh100-80gb, 4x24gb or cpu; by default this machine.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Rows of a step.")] = 1,
    cache: options.Cache = None,
    quantize: options.Quantize = None,
    ask_compiler: Annotated[
        bool,
        typer.Option("--compile", help="Ask the TPU compiler too; it needs no TPU, but minutes."),
    ] = False,
    model: options.Model = options.DEFAULT_MODEL,
    mesh: options.Mesh = "auto",
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say whether a job fits some hardware, and how fast.

    Nothing is loaded or computed: memory, work and traffic are counted. The model may also be one
    of the original's sizes, such as 7b.
    """
    config, rounding = _config(model)
    if quantize and config.quantized not in (None, quantize):
        raise UsageError(f"{model} is in {config.quantized}: leave out --quantize")
    topology = _topology(on, cpu_devices=training_devices(mesh) if job == "train" else None)
    platform = topology.chip.platform
    if job != "train":
        quantize = quantize or usual_rounding(config, rounding, platform, dtype)
    config = dataclasses.replace(config, quantized=quantize or config.quantized)
    if config.quantized and job == "train":
        raise UsageError("quantized weights don't learn: give --job prefill or --job decode")
    chosen = dtype or usual_dtype(config, platform)
    keys = cache or usual_cache(config, chosen)
    work = Work(config, job, context or config.max_length, batch, chosen, keys)
    made = plan_for(mesh, work, topology)
    longest = longest_context(work, topology, None if mesh == "auto" else made.mesh)
    slices = {kind: smallest_slice(work, kind) for kind in TPUS}
    with Screen(quiet=quiet) as screen:
        compiled = _compiled(made, screen) if ask_compiler else None
        if work.context > config.max_length:
            screen.note(loading.beyond(model, config, work.context))
        if as_json:
            facts = _facts(model, made, longest, slices)
            if compiled:
                facts["compiled"] = dataclasses.asdict(compiled)
            typer.echo(json.dumps(facts))
        else:
            _print(model, made, longest, slices, compiled)
    if not made.fits:
        raise DoesNotFit(_lack(made, longest, slices))


def _config(name: str) -> tuple[ModelConfig, Quantization | None]:
    """The sizes of a model, and what a CPU is to round it to; if possible without opening it.

    Raises ModelNotFound, FormatError, ConfigError.
    """
    if size := SIZES.get(name.lower()):
        return size, None
    path, card = registry.named_path(name), registry.find(name)
    if path is None and card and card.embedded:
        path = registry.embedded_path()
    if path and os.path.isfile(path / "config.json"):  # False where the name is too long for one
        from lwm_core.tensor_files import read_json

        values = read_json(path / "config.json")
        if {"hidden_size", "max_position_embeddings"} <= values.keys():
            return ModelConfig.from_json(values), rounding_of(values)
    elif card and card.repositories:
        published = dataclasses.replace(
            SIZES["7b"],
            max_length=card.context,
            rope_theta=card.rope_theta,
            vision_vocab=VISION_VOCAB if card.kind == "vision" else 0,
        )
        return published, None
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.source import open_source

    source = open_source(name)
    return source.config, source.rounding


def _topology(text: str | None, *, cpu_devices: int | None) -> Topology:
    """The hardware that was named, or this machine. Raises ConfigError."""
    if text:
        return parse_topology(text)
    from lwm_core import backend

    backend.prepare(cpu_devices=cpu_devices)  # before the next line brings in jax
    from lwm_core.mesh import this_topology

    return this_topology()


def _compiled(made: Plan, screen: Screen) -> Compiled:
    """What the compiler says. Raises UsageError, ConfigError, DoesNotFit."""
    from lwm_core import backend

    backend.prepare()  # before the next line brings in jax
    from lwm_core.ahead import compile_plan

    screen.note(f"compiling for {made.topology} ...")
    return compile_plan(made)


def _print(
    model: str, made: Plan, longest: int | None, slices: Slices, compiled: Compiled | None
) -> None:
    """The plan as a table on standard output."""
    work, topology = made.work, made.topology
    billions = count_parameters(work.config) / 1e9
    hosts = f", {topology.hosts} hosts" if topology.hosts > 1 else ""
    typer.echo(
        f"{model} ({billions:.3g} billion parameters): {work.job} on {work.batch} × "
        f"{work.context:,} tokens\n{topology} ({topology.count} × "
        f"{_gib(topology.chip.memory)}{hosts})\n"
    )
    found = {f"smallest {kind}": _shape(one) for kind, one in slices.items()}
    rows = {
        "mesh": str(made.mesh),
        **({"rematerialisation": made.remat} if work.job == "train" else {}),
        **_memory(made),
        "FLOPs, all devices": _scaled(made.flops, "FLOP"),
        "sent": _scaled(made.sent.bytes, "B"),
        "step": _time(made.seconds),
        "bound by": made.bound,
        "tokens a second": four_digits(work.tokens / made.seconds),
        "longest context": f"{longest:,}" if longest else "none",
        **found,
    }
    if not compiled:
        print_table(["per device", "estimate>"], [list(row) for row in rows.items()])
        return
    says = {"total": _gib(compiled.peak)}
    lines = [[name, text, says.get(name, "")] for name, text in rows.items()]
    print_table(["per device", "estimate>", "compiled>"], lines)


def _memory(made: Plan) -> dict[str, str]:
    """The parts of memory that the job has."""
    names = {"cache": "KV cache"}
    parts = dataclasses.asdict(made.memory) | {"total": made.memory.total}
    return {names.get(part, part): _gib(size) for part, size in parts.items() if size}


def _shape(one: Topology | None) -> str:
    return f"{'x'.join(map(str, one.shape))} ({one.count})" if one else "none"


def _facts(model: str, made: Plan, longest: int | None, slices: Slices) -> dict[str, object]:
    """The plan for programs: bytes, seconds and FLOPs."""
    return {
        "model": model,
        "parameters": count_parameters(made.work.config),
        **made.to_json(),
        "longest_context": longest,
        "smallest_slices": {kind: str(one) if one else None for kind, one in slices.items()},
    }


def _lack(made: Plan, longest: int | None, slices: Slices) -> str:
    """By how much the memory falls short, and what would be enough."""
    enough = " or ".join(str(one) for one in slices.values() if one) or "no slice of TPUs"
    shorter = f"a context of {longest:,} fits here, and " if longest else ""
    return (
        f"it does not fit: {_gib(made.memory.total)} are needed on each device, and of its "
        f"{_gib(made.topology.chip.memory)} {_gib(int(room(made.topology)))} may be taken; "
        f"{shorter}this context fits on {enough}"
    )


def _gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _scaled(value: float, unit: str) -> str:
    """A large number with the prefix that makes it short."""
    power = min(int(math.log10(max(value, 1))) // 3, 6)
    return f"{value / 1000**power:.3g} {' kMGTPE'[power].strip()}{unit}"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
