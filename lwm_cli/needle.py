"""`lwm needle`: does a model find the numbers that are hidden in a long text?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lwm_cli import files, loading, options
from lwm_cli.ui import Screen, print_table
from lwm_core.distributed import on_first
from lwm_core.errors import UsageError

if TYPE_CHECKING:
    from lwm_core.load import LoadedModel
    from lwm_core.needle import Answers, Haystack, NeedleConfig, NeedleResult, Pairs, Rate

CHANCE = 0.05
"""A difference that chance makes no more often than this counts as one."""


def run(
    context: options.Context = 2048,
    least: Annotated[
        int | None,
        typer.Option(
            "--min-ctx",
            parser=options.parse_length,
            metavar="LENGTH",
            help="Shortest context; by default --ctx divided by --lengths.",
        ),
    ] = None,
    lengths: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many context lengths, up to --ctx.")
    ] = 4,
    depths: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many depths, from begin to end.")
    ] = 5,
    needles: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many numbers to hide at once.")
    ] = 1,
    retrieve: Annotated[
        int | None,
        typer.Option(min=1, metavar="R", help="How many of them to ask for; by default all."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often to try each place.")
    ] = 1,
    haystack: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Text, JSON lines or a directory of them to hide them in."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Heat map to write.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where answers are kept, to go on from; by default in LWM_HOME."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Give up the answers that are there; ask all again.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare two files of answers; no model is loaded."),
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    seed: options.Seed = 0,
    mesh: options.Mesh = "auto",
    dtype: options.Dtype = None,
    cache: options.Cache = None,
    quantize: options.Quantize = None,
    attention: options.Attention = "auto",
    as_json: options.AsJson = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Test how a model finds what is hidden in a long text.

    Numbers are hidden at several depths of several lengths; the share that was found is shown. A
    run that was stopped goes on when it is started again.
    """
    if compare:
        if output or results:
            raise UsageError("--compare writes nothing; leave out -o and --results")
        return _compare(*compare, as_json=as_json)
    from lwm_core import needle
    from lwm_core.data.prose import read_prose
    from lwm_core.media import PICTURE_SUFFIXES, write_image

    least = least or max(1, context // lengths)
    if least > context:
        raise UsageError(f"--min-ctx {least} is more than --ctx {context}")
    config = needle.NeedleConfig(
        lengths=needle.evenly(least, context, lengths),
        depths=needle.evenly(0, 100, depths),
        needles=needles,
        asked=retrieve or needles,
        rounds=rounds,
        seed=seed or 0,
    )
    passages = read_prose(haystack)
    if files.STANDARD in (output, results):
        raise UsageError("the table goes to standard output; name a file for anything else")
    if results and not results.parent.is_dir():
        raise UsageError(f"there is no directory {results.parent}; make it first")
    force = files.claim([output] if output else [], PICTURE_SUFFIXES, force=force)
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
        hidden_in = needle.hide_in(loaded, config, passages if haystack else None)
        identity = needle.Identity.of(loaded, config, passages)

        def keep() -> Answers:
            return needle.Answers(results or _kept_at(identity.digest), identity, fresh=fresh)

        kept = on_first("the file of answers", keep)
        if kept is None:  # it helps to compute; what comes out is the first's to keep
            list(needle.run(loaded, config, hidden_in))
            return
        with kept as answers:
            _ask(loaded, config, hidden_in, answers, screen)
        screen.clear()
        _report(loaded.name, answers, as_json=as_json)
        if output:  # last, so that a full disk costs no result
            write_image(output, needle.heat_map(answers.results, loaded.name), force=force)
        screen.footer([f"{config.count} questions", f"answers in {answers.path}"])


def _kept_at(digest: str) -> Path:
    """Where the answers of a test are kept unless a file is named. Raises UsageError."""
    from lwm_core.backend import home

    folder = home() / "needle"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"can't keep answers in {folder}: {error.strerror}; name a file with --results"
        ) from error
    return folder / f"{digest}.jsonl"


def _ask(
    model: LoadedModel,
    config: NeedleConfig,
    haystack: Haystack,
    answers: Answers,
    screen: Screen,
) -> None:
    """Ask what is not answered yet; every answer is kept and shown as it comes."""
    from lwm_core import needle
    from lwm_core.types import Progress

    there = len(answers.results)
    if there:
        screen.note(f"{there} of {config.count} answers are in {answers.path} (--fresh asks again)")
    if haystack.repeats:
        screen.note("the novel is shorter than the longest context; it is read more than once")
    answered = {result.case for result in answers.results}
    try:
        for result in needle.run(
            model, config, haystack, answered=answered, on_progress=screen.progress
        ):
            answers.add(result)
            there += 1
            if screen.is_terminal:
                screen.table(*_grid(answers.results, config))
            screen.progress(Progress("questions", there, config.count, "answered"))
            if screen.verbose:
                screen.note(f"{result.case.length} tokens: {result.answer.strip()}")
    except KeyboardInterrupt:
        screen.note(f"{there} of {config.count} answers are kept; the same command asks the rest")
        raise


def _report(model: str, answers: Answers, *, as_json: bool) -> None:
    """What was found, on standard output."""
    from lwm_core import needle

    if not as_json:
        return _print_grid(answers.results)
    said = {"model": model, "answers": str(answers.path), **needle.to_json(answers.results)}
    typer.echo(json.dumps(said))


def _grid(
    results: list[NeedleResult], config: NeedleConfig | None = None
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a row a length, a column a depth, and beside them all depths together."""
    from lwm_core.needle import short_length, tabulate

    grid = tabulate(results, config)
    rows = []
    for length, shares, rate in zip(grid.lengths, grid.share.T, grid.by_length, strict=True):
        cells = ["" if share != share else f"{share:.0%}" for share in shares]
        together = [f"{rate.share:.0%}", _interval(rate)] if rate else ["", ""]
        rows.append([short_length(length), *cells, *together])
    depths = [f"{depth:g} %>" for depth in grid.depths]
    return ["length>", *depths, "all>", "95 % interval>"], rows


def _interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * low:.0f}-{100 * high:.0f}%"


def _print_grid(results: list[NeedleResult]) -> None:
    from lwm_core.needle import tabulate

    print_table(*_grid(results))
    total = tabulate(results).total
    typer.echo(
        f"{total.share:.0%} of {total.asked} numbers found (95 % interval {_interval(total)})"
    )


def _compare(first: Path, second: Path, *, as_json: bool) -> None:
    """Show how two runs of one test differ."""
    from lwm_core.needle import compare, short_length

    compared = compare(first, second)
    if as_json:
        typer.echo(json.dumps({"files": [str(first), str(second)], **compared.to_json()}))
        return
    headings = ["length>", "numbers>", f"{first.stem}>", f"{second.stem}>"]
    lengths = [(short_length(length), pairs) for length, pairs in compared.by_length.items()]
    print_table(
        [*headings, "difference>", "p>", "beyond chance>"],
        [_compared(name, pairs) for name, pairs in [*lengths, ("all", compared.total)]],
    )
    typer.echo(f"{' and '.join(compared.names)}; p is that of McNemar's exact test")


def _compared(name: str, pairs: Pairs) -> list[str]:
    shares = [f"{rate.share:.0%}" for rate in (pairs.first, pairs.second)]
    points = f"{100 * pairs.difference:+.0f} points"
    verdict = "yes" if pairs.p_value < CHANCE else "no"
    return [name, str(pairs.asked), *shares, points, f"{pairs.p_value:.2g}", verdict]
