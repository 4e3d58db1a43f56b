"""A training on one page: figures, curves, samples and the recipe in a single HTML file.

It needs nothing beside it: no scripts, pictures stand in it as data. It is made of what lies in
the output directory, so it can be made at any time, of a run that goes on as of one that broke.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from lwm_core.atomic import write_text
from lwm_core.hardware import GIB
from lwm_core.train.history import Series, read_history
from lwm_core.train.loop import METRICS, SAMPLES
from lwm_core.train.markup import element, to_html
from lwm_core.train.plot import Axis, Curve, plot, short
from lwm_core.train.provenance import RECIPE
from lwm_core.train.samples import Round, read_samples

FILE = "report.html"
MOST_ROUNDS = 5
"""Rounds of samples that are shown; the others lie beside the report."""
EVALUATION = "evaluation_"
LOSSES = {"loss": 0, "text_loss": 1, "vision_loss": 2, "error": 1, "naming": 2}
"""Colours of what falls while a model learns."""


@dataclass(frozen=True)
class Panel:
    """Metrics that are drawn together, by name with their colours, and how values are written."""

    title: str
    colours: Mapping[str, int]
    axis: Axis = "near"
    shows_skipped: bool = False
    write: Callable[[float], str] = short


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


PANELS = (
    Panel("Loss", LOSSES, shows_skipped=True),
    Panel("Learning rate", {"learning_rate": 0}),
    Panel("Gradient norm", {"gradient_norm": 0}, axis="log", shows_skipped=True),
    Panel("Tokens per second", {"tokens_per_second": 0}, axis="zero"),
    Panel("Pictures per second", {"pictures_per_second": 0}, axis="zero"),
    Panel("Share of the hardware's peak (MFU)", {"mfu": 0}, axis="zero", write=_percent),
    Panel("Packing: share of places in use", {"packed": 0}, axis="zero", write=_percent),
    Panel("Codes in use", {"codes_used": 0}, axis="zero", write=_percent),
)


def write_report(output: Path) -> Path:
    """Write `report.html` about the run in an output directory; returns its path.

    What is missing there, or can't be read, is left out. Raises OutputError.
    """
    history = read_history(output / METRICS)
    rounds = read_samples(output / SAMPLES)
    page = _page(output.resolve().name, history, rounds, _recipe(output / RECIPE))
    write_text(output / FILE, to_html(page))
    return output / FILE


def _recipe(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _page(
    name: str, history: Mapping[str, Series], rounds: Sequence[Round], recipe: Mapping[str, Any]
) -> Element:
    style = (files("lwm_core.train") / "report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name}: report of a training"),
        element("style", style),
    )
    main = element("main", element("h1", name), _figures(history))
    main.append(element("section", *_plots(history), class_="curves"))
    if rounds:
        main.append(_gallery(rounds))
    if recipe:
        lines = "\n".join(_settings(recipe))
        main.append(element("section", element("h2", "Recipe"), element("pre", lines)))
    return element("html", head, element("body", main), lang="en")


def _figures(history: Mapping[str, Series]) -> Element:
    """The run in a line of figures: each with what it is."""
    figures: list[tuple[str, str]] = []

    def add(title: str, name: str, of: Callable[[Series], str]) -> None:
        if name in history:
            figures.append((title, of(history[name])))

    add("steps", "loss", lambda one: f"{one.steps[-1]:,}")
    add("time", "seconds", lambda one: duration(one.values.sum()))
    add("targets learned", "tokens", lambda one: short(one.values.sum()))
    add("loss at the end", "loss", lambda one: f"{one.values[-1]:.4g}")
    add("best evaluation", f"{EVALUATION}loss", _best)
    for unit in ("tokens", "pictures"):
        add(f"{unit}/s (median)", f"{unit}_per_second", lambda one: f"{np.median(one.values):,.0f}")
    add("MFU (median)", "mfu", lambda one: _percent(float(np.median(one.values))))
    add("peak memory", "memory", lambda one: f"{one.values.max() / GIB:.3g} GiB")
    add("places in use", "packed", lambda one: _percent(one.values.mean()))
    add("steps skipped", "skipped", lambda one: f"{np.count_nonzero(one.values):,}")
    if not figures:
        return element("p", "No step was taken yet.")
    pairs = [element("div", element("dt", what), element("dd", value)) for what, value in figures]
    return element("dl", *pairs)


def _best(series: Series) -> str:
    place = series.values.argmin()
    return f"{series.values[place]:.4g} at step {series.steps[place]:,}"


def duration(seconds: float) -> str:
    """Two units that say how long: `3 h 12 min`, `4 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _plots(history: Mapping[str, Series]) -> Iterator[Element]:
    skipped = _skipped(history)
    for panel in PANELS:
        curves = [curve for curve in _curves(panel, history) if len(curve.series.steps)]
        if not curves:
            continue
        marks = skipped if panel.shows_skipped else []
        picture = plot(panel.title, curves, axis=panel.axis, marks=marks, write=panel.write)
        legend = [_key(curve, panel) for curve in curves]
        if marks:
            legend.append(element("span", f"skipped {len(marks)}", class_="key mark"))
        yield element("figure", element("figcaption", panel.title, *legend), picture)


def _skipped(history: Mapping[str, Series]) -> list[int]:
    """Steps that changed no weight."""
    if "skipped" not in history:
        return []
    steps, values = history["skipped"]
    return [int(step) for step in steps[values > 0]]


def _curves(panel: Panel, history: Mapping[str, Series]) -> Iterator[Curve]:
    """The panel's metrics that there are; with the loss also all that was evaluated."""
    for name, colour in panel.colours.items():
        if name in history:
            yield Curve(_wording(name), _drawable(history[name], panel), colour)
    if panel.colours is not LOSSES:
        return
    for name, series in history.items():
        if name.startswith(EVALUATION):
            measured = name.removeprefix(EVALUATION)
            wording = f"{_wording(measured)}, evaluated"
            yield Curve(wording, series, LOSSES.get(measured, 3), is_dotted=True)


def _drawable(series: Series, panel: Panel) -> Series:
    if panel.axis != "log":
        return series
    above = series.values > 0
    return Series(series.steps[above], series.values[above])


def _wording(name: str) -> str:
    """Of `loss` it is `all`, of `text_loss` it is `text`."""
    return "all" if name == "loss" else name.removesuffix("_loss").replace("_", " ")


def _key(curve: Curve, panel: Panel) -> Element:
    """What stands for a curve in the legend: its name, where there are several, and its end."""
    name = f"{curve.name} " if panel.colours is LOSSES else ""
    last = panel.write(float(curve.series.values[-1]))
    kind = "dotted" if curve.is_dotted else "line"
    return element("span", f"{name}{last}", class_=f"key {kind} c{curve.colour}")


def _gallery(rounds: Sequence[Round]) -> Element:
    """A table of samples: a row a prompt, a column a step, of at most `MOST_ROUNDS` steps."""
    chosen = np.unique(np.linspace(0, len(rounds) - 1, MOST_ROUNDS).round().astype(int))
    shown = [rounds[index] for index in chosen]
    steps = [element("th", f"step {one.step:,}", scope="col") for one in shown]
    rows = []
    for number in range(max(len(one.samples) for one in shown)):
        asked = next(one.samples[number] for one in shown if number < len(one.samples))
        cells = [_cell(one, number) for one in shown]
        rows.append(element("tr", _question(asked), *cells))
    table = element(
        "table",
        element("thead", element("tr", element("th", "prompt", scope="col"), *steps)),
        element("tbody", *rows),
    )
    parts = [element("h2", "Samples"), element("div", table, class_="wide")]
    if len(shown) < len(rounds):
        parts.append(
            element("p", f"{len(shown)} of {len(rounds)} rounds; the others lie in samples/.")
        )
    return element("section", *parts)


def _question(sample: Mapping[str, Any]) -> Element:
    task = element("small", str(sample.get("task", "")))
    return element("th", task, element("br"), str(sample.get("text", "")), scope="row")


def _cell(one: Round, number: int) -> Element:
    """What came of a prompt at a step: picture, words, or why there is nothing."""
    sample = one.samples[number] if number < len(one.samples) else {}
    parts = []
    if "file" in sample and (address := _data(one.folder / Path(str(sample["file"])).name)):
        parts.append(element("img", src=address, alt=str(sample.get("text", ""))))
    if "answer" in sample:
        parts.append(element("p", str(sample["answer"])))
    if "error" in sample:
        parts.append(element("p", str(sample["error"]), class_="error"))
    return element("td", *parts)


def _data(path: Path) -> str:
    """A file as the address of a picture; empty if it is not there."""
    try:
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    except (OSError, ValueError):  # also of a name that can be none
        return ""
    return f"data:image/{path.suffix[1:]};base64,{content}"


def _settings(value: Any, key: str = "") -> Iterator[str]:
    """Lines `key = value` as `lwm train --set` takes them."""
    inside: dict[Any, Any] = {}
    if isinstance(value, dict):
        inside = value
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        inside = dict(enumerate(value))
    if not inside:
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for name, one in inside.items():
        yield from _settings(one, f"{key}.{name}" if key else str(name))
