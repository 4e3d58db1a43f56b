"""`lwm bench`: how fast a model runs on this machine."""

from __future__ import annotations

import dataclasses
import json

import typer

from lwm_cli import loading, options
from lwm_cli.ui import Screen, four_digits, print_table


def run(
    model: options.Model = options.DEFAULT_MODEL,
    context: options.MostContext = None,
    mesh: options.Mesh = "auto",
    dtype: options.Dtype = None,
    cache: options.Cache = None,
    quantize: options.Quantize = None,
    attention: options.Attention = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure how fast a model reads, writes, learns and sees here.

    Beside each speed stands the share of what bounds it that was reached: the memory's speed where
    tokens are written, elsewhere the speed of products. Both are measured too.
    """
    with Screen(quiet=quiet, verbose=verbose) as screen:
        loaded = loading.load(
            model,
            screen,
            mesh=mesh,
            dtype=dtype,
            cache=cache,
            quantize=quantize,
            attention=attention,
            context=context,
        )
        from lwm_core import bench

        lengths = bench.Lengths().within(loaded.context)
        machine = bench.measure_machine(loaded.how)
        figures = list(bench.measure(loaded, machine, lengths, on_progress=screen.progress))
        screen.clear()
        if as_json:
            facts = {
                "model": loaded.name,
                "device": loaded.device,
                "dtype": loaded.how.dtype.name,
                "quantize": loaded.config.quantized,
                "lengths": dataclasses.asdict(lengths),
                "machine": dataclasses.asdict(machine),
                "figures": [dataclasses.asdict(figure) for figure in figures],
            }
            typer.echo(json.dumps(facts))
            return
        typer.echo(
            f"{loaded.name} in {loaded.numbers} on {loaded.device}\n"
            f"a device reads {machine.bandwidth / 1e9:,.1f} GB/s and computes "
            f"{machine.flops / 1e9:,.0f} GFLOP/s\n"
        )
        print_table(
            ["", "a second>", "of the limit>"],
            [
                [
                    figure.job,
                    f"{four_digits(figure.speed)} {figure.unit}",
                    f"{figure.share:.0%} of {figure.limit}" if figure.share else "",
                ]
                for figure in figures
            ],
        )
