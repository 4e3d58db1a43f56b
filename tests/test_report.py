"""The report of a training: its numbers are the run's, and nothing in it is more than text."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwm_cli.train import _changed
from lwm_core.train import history, plot, report
from lwm_core.train.history import Series
from lwm_core.train.plot import Curve, Scale

HOSTILE = '</p><script>alert("1")</script> & <img src=x onerror=y> \' "'
PICTURE = b"\x89PNG of a kind"
CONTRAST_OF_TEXT, CONTRAST_OF_LINES = 4.5, 3.0
"""Least contrasts by WCAG 2.1, 1.4.3 and 1.4.11."""


class Page(HTMLParser):
    """What another reader finds in a page: elements with their attributes, and all text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [found for _, found in self.elements if name in (found.get("class") or "").split()]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def line_at(step: int) -> dict[str, float]:
    return {
        "step": step, "loss": 8 / step, "text_loss": 6 / step, "vision_loss": 10 / step,
        "gradient_norm": 2.0, "learning_rate": 1e-3, "skipped": float(step in (2, 7)),
        "tokens": 500, "seconds": 61.0, "tokens_per_second": 8.0 * step, "packed": 0.975,
        "memory": 3 * 2**30,
    }  # fmt: skip


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The output of ten steps with an evaluation, samples that mean harm, and a recipe."""
    run = tmp_path / "run & <b>"
    place = run / "samples/00000005"
    place.mkdir(parents=True)
    (place / "2.png").write_bytes(PICTURE)
    samples = [
        {"task": "chat", "text": HOSTILE, "answer": f"answer {HOSTILE}"},
        {"task": "draw", "text": "a hill", "file": "2.png"},
        {"task": "film", "text": "a sea", "error": f"no room {HOSTILE}"},
        {"task": "draw", "text": "gone", "file": "../../recipe.json"},
        {"task": "draw", "text": "odd", "file": 3},
        {"task": "draw", "text": "odder", "file": "a\0b"},
    ]
    (place / "samples.json").write_text(json.dumps({"step": 5, "samples": samples}))
    lines = [line_at(step) for step in range(1, 11)]
    write_lines(run / "metrics.jsonl", [*lines, {"step": 10, "evaluation_text_loss": 0.75}])
    (run / "recipe.json").write_text(json.dumps({"kind": "language", "prose": [HOSTILE]}))
    return run


def read(output: Path) -> Page:
    return Page(report.write_report(output).read_text(encoding="utf-8"))


# Metrics


def test_metrics_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": 2, "loss": 3.0}, {"step": 1, "loss": 5, "name": "x"}])
    with path.open("ab") as file:
        file.write(b'{"step": 2, "loss": 4.0, "rate": NaN}\n[1]\n\xff\n{"loss": 1}\n')
        file.write(b'{"step": 3, "rate": Infinity, "evaluation_loss": 2.5}\n{"step": 4, "lo')
    series = history.read_history(path)
    assert series.keys() == {"loss", "evaluation_loss"}
    assert series["loss"].steps.tolist() == [1, 2]
    assert series["loss"].values.tolist() == [5.0, 4.0]
    assert series["evaluation_loss"].steps.tolist() == [3]
    assert history.read_history(tmp_path / "none") == {}


# Curves


@given(low=st.floats(-1e6, 1e6), size=st.floats(1e-3, 1e9))
def test_ticks_are_round_numbers(low: float, size: float) -> None:
    ticks = Scale(low, low + size, 0, 100).ticks
    assert 2 <= len(ticks) <= plot.MOST_TICKS + 1
    unit = ticks[1] - ticks[0]
    np.testing.assert_allclose(np.diff(ticks), unit, rtol=1e-3)
    assert f"{unit:.0e}"[0] in "125"
    slack = 1e-9 * max(abs(low), size)
    assert low - slack <= ticks[0] <= ticks[-1] <= low + size + slack


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.5, 30, [0.5, 1, 2, 5, 10, 20]),
        (0.002, 150, [0.01, 0.1, 1, 10, 100]),
        (1e-8, 2e3, [1e-8, 1e-6, 1e-4, 1e-2, 1, 100]),
        (1.1, 1.35, [1.1, 1.15, 1.2, 1.25, 1.3, 1.35]),
    ],
)
def test_ticks_of_logarithms(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high, 0, 100, is_log=True).ticks == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0003, "0.0003"), (2.505, "2.505"), (9000, "9000"), (12_500, "12.5k"),
     (1e6, "1M"), (3.2e9, "3.2G"), (-20_000, "-20k")],
)  # fmt: skip
def test_numbers_in_few_characters(value: float, text: str) -> None:
    assert plot.short(value) == text


def points(path: Element) -> np.ndarray:
    numbers = re.findall(r"-?[\d.]+", path.attrib["d"])
    return np.array(numbers, float).reshape(-1, 2)


def paths(picture: Element, kind: str) -> list[Element]:
    return [one for one in picture.iter("path") if kind in one.attrib["class"].split()]


@pytest.mark.parametrize("axis", ["near", "zero", "log"])
def test_a_curve_lies_where_its_values_say(axis: plot.Axis) -> None:
    steps, values = np.array([1, 3, 4, 11]), np.array([5.0, 0.5, 2.0, 1.0])
    picture = plot.plot("loss", [Curve("all", Series(steps, values))], axis=axis)
    x, y = points(*paths(picture, "line")).T
    assert x == pytest.approx(np.interp(steps, [1, 11], [plot.LEFT, plot.WIDTH - plot.RIGHT]))
    even = np.log(values) if axis == "log" else values
    slope = (y[1] - y[0]) / (even[1] - even[0])
    assert slope < 0  # upwards is less in SVG
    assert y == pytest.approx(y[0] + slope * (even - even[0]), abs=0.2)
    assert plot.TOP < min(y) < max(y) < plot.HEIGHT - plot.BOTTOM
    if axis == "zero":
        assert y[0] - slope * even[0] == pytest.approx(plot.HEIGHT - plot.BOTTOM, abs=0.3)


def test_long_curves_are_means_within_a_band() -> None:
    values = np.random.default_rng(0).normal(size=40 * plot.MOST_POINTS)
    steps = np.arange(1, len(values) + 1)
    middles, means, lows, highs = plot._binned(Series(steps, values))
    bins = values.reshape(plot.MOST_POINTS, 40)
    np.testing.assert_allclose(means, bins.mean(1))
    np.testing.assert_array_equal((lows, highs), (bins.min(1), bins.max(1)))
    np.testing.assert_allclose(middles, steps.reshape(-1, 40).mean(1))
    picture = plot.plot("noise", [Curve("all", Series(steps, values))])
    assert len(points(*paths(picture, "band"))) == 2 * plot.MOST_POINTS


def test_steps_that_are_far_apart_make_no_empty_bins() -> None:
    steps = np.r_[1:400, 10**6 : 10**6 + 400]
    middles, means, _, _ = plot._binned(Series(steps, steps.astype(float)))
    assert np.isfinite(means).all()
    np.testing.assert_allclose(middles, means)


def test_a_single_point_is_a_dot() -> None:
    picture = plot.plot("loss", [Curve("all", Series(np.array([7]), np.array([0.0])))])
    assert len(list(picture.iter("circle"))) == 1


# The page


def test_figures_of_a_run(output: Path) -> None:
    page = read(output)
    figures = dict(zip(*[iter(words_inside(page, "dl"))] * 2, strict=True))
    assert figures == {
        "steps": "10",
        "time": "10 min 10 s",
        "targets learned": "5000",
        "loss at the end": "0.8",
        "tokens/s (median)": "44",
        "peak memory": "3 GiB",
        "places in use": "97.5 %",
        "steps skipped": "2",
    }


def words_inside(page: Page, tag: str) -> list[str]:
    """The texts of the only element of a name."""
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
    return Page(inside).words


def test_curves_of_a_run(output: Path) -> None:
    page = read(output)
    pictures = [found for tag, found in page.elements if tag == "svg"]
    assert [found["aria-label"] for found in pictures] == [
        "Loss over the steps",
        "Learning rate over the steps",
        "Gradient norm over the steps",
        "Tokens per second over the steps",
        "Packing: share of places in use over the steps",
    ]
    marks = [found["d"] for found in page.of_class("mark") if "d" in found]
    assert [mark.count("M") for mark in marks] == [2, 2]
    legend = [word for word in page.words if re.fullmatch(r"(all|text|vision).* [\d.]+", word)]
    assert legend == ["all 0.8", "text 0.6", "vision 1", "text, evaluated 0.75"]


def test_nothing_in_a_page_is_more_than_text(output: Path) -> None:
    page = read(output)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "link", "base", "form", "a", "b"}
    attributes = {name for _, found in page.elements for name in found}
    assert not [name for name in attributes if name.startswith("on") or name == "href"]
    for expected in (HOSTILE, f"answer {HOSTILE}", f"no room {HOSTILE}", output.name):
        assert expected in page.words
    (recipe,) = (word for word in page.words if word.startswith("kind = "))
    assert json.loads(recipe.splitlines()[1].removeprefix("prose = ")) == [HOSTILE]


def test_a_page_stands_alone(output: Path) -> None:
    page = read(output)
    sources = [found["src"] for _, found in page.elements if "src" in found]
    assert [base64.b64decode(one.partition(",")[2]) for one in sources] == [PICTURE]
    assert sources[0].startswith("data:image/png;base64,")
    (style,) = (word for word in page.words if ":root" in word)
    assert "url(" not in style
    assert "@import" not in style


def test_of_many_rounds_the_first_and_the_last_are_shown(output: Path) -> None:
    for step in range(10, 70, 5):
        place = output / f"samples/{step:08d}"
        place.mkdir()
        sample = {"task": "chat", "text": "who?", "answer": f"it is {step}"}
        (place / "samples.json").write_text(json.dumps({"step": step, "samples": [sample]}))
    (output / "samples/00000065/samples.json").write_text('{"step": 65')  # damaged
    page = read(output)
    shown = [word for word in page.words if re.fullmatch(r"step \d+", word)]
    assert (shown[0], shown[-1], len(shown)) == ("step 5", "step 60", report.MOST_ROUNDS)
    assert "it is 60" in page.words
    assert "5 of 12 rounds; the others lie in samples/." in page.words


def test_a_run_without_anything(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("[1]")
    page = read(tmp_path)
    assert "No step was taken yet." in page.words
    assert not [tag for tag, _ in page.elements if tag in ("svg", "pre", "table")]


def test_settings_are_what_the_command_line_takes() -> None:
    recipe = {
        "kind": "language", "seed": 3, "prose": ['a "b" é', "c"], "defaults": {},
        "optimizer": {"rate": 1e-05, "name": "adamw"}, "fresh": True,
        "stages": [{"steps": 1, "mix": {"see": 0.5}}, {"steps": 2, "mix": {"see": 1.0}}],
    }  # fmt: skip
    lines = list(report._settings(recipe))
    assert "stages.1.mix.see = 1.0" in lines
    other = {"stages": [{"mix": {"see": 9}}, {"steps": 9}], "optimizer": {"rate": 9.0}}
    assert _changed(other, lines) == recipe


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7300, "2 h 1 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_both_grounds_give_enough_contrast() -> None:
    style = (Path(report.__file__).with_name("report.css")).read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"(--\w+): (#\w+);", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert light.keys() == dark.keys() == set(re.findall(r"var\((--c\d|--(?!colour)\w+)\)", style))
    for colours in (light, dark):
        for ground in (colours["--ground"], colours["--panel"]):
            for name in ("--ink", "--dim", "--alarm"):
                assert contrast(colours[name], ground) >= CONTRAST_OF_TEXT, name
            for name in ("--c0", "--c1", "--c2", "--c3"):
                assert contrast(colours[name], ground) >= CONTRAST_OF_LINES, name


def contrast(one: str, other: str) -> float:
    """Of two colours `#rgb` or `#rrggbb`, by the formula of WCAG 2.1."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = np.frombuffer(bytes.fromhex(digits), np.uint8) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
