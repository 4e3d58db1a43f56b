"""Needle in a haystack: does the model find numbers that are hidden in a long text?

Wording, draws and the rule of insertion are those of LWM's evaluation (`eval_needle`,
`eval_needle_multi`), so that results compare with published ones. One needle is tried at every
depth of every length; several needles lie at depths drawn for every length. All else is the same.
"""

from lwm_core.needle.questions import NeedleCase, NeedleConfig, cases, evenly, hide
from lwm_core.needle.report import Grid, heat_map, share_found, tabulate, to_json
from lwm_core.needle.trial import NeedleResult, run, score
from lwm_core.wording import Needle

__all__ = [
    "Grid",
    "Needle",
    "NeedleCase",
    "NeedleConfig",
    "NeedleResult",
    "cases",
    "evenly",
    "heat_map",
    "hide",
    "run",
    "score",
    "share_found",
    "tabulate",
    "to_json",
]
