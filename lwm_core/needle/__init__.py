"""Needle in a haystack: does the model find numbers that are hidden in a long text?

Wording, draws and the rule of insertion are those of LWM's evaluation (`eval_needle`,
`eval_needle_multi`), so that results compare with published ones. One needle is tried at every
depth of every length; several needles lie at depths drawn for every length. All else is the same.
"""

from lwm_core.needle.chart import heat_map
from lwm_core.needle.comparison import Comparison, compare
from lwm_core.needle.identity import Identity
from lwm_core.needle.questions import Haystack, NeedleCase, NeedleConfig, cases, evenly, hide
from lwm_core.needle.report import Grid, short_length, tabulate, to_json
from lwm_core.needle.results import Answers, NeedleResult
from lwm_core.needle.statistics import Pairs, Rate
from lwm_core.needle.trial import hide_in, run, score
from lwm_core.wording import Needle

__all__ = [
    "Answers",
    "Comparison",
    "Grid",
    "Haystack",
    "Identity",
    "Needle",
    "NeedleCase",
    "NeedleConfig",
    "NeedleResult",
    "Pairs",
    "Rate",
    "cases",
    "compare",
    "evenly",
    "heat_map",
    "hide",
    "hide_in",
    "run",
    "score",
    "short_length",
    "tabulate",
    "to_json",
]
