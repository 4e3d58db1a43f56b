"""`lwm`, and `python -m lwm_cli`: the program, in a process that is made for it."""

from __future__ import annotations

import gc
import os
import sys

from lwm_cli.completions import SWITCH
from lwm_cli.heap import start_with_heap

NEW_OBJECTS, YOUNG, OLD = 400_000, 50, 100
"""When garbage is looked for. Imports and the tracing of programs make many objects that stay: to
go through them as often as Python does by default takes a tenth of a short command's time. So a
short one never does; a long one still finds what is new and given up."""


def run() -> int:
    """Run the command of the command line; returns the exit code."""
    if SWITCH not in os.environ:  # a completion computes nothing
        words = [word for word in sys.argv[1:] if not word.startswith("-")]
        start_with_heap(for_threads=words[:1] == ["train"])
    gc.set_threshold(NEW_OBJECTS, YOUNG, OLD)
    from lwm_cli.app import main

    code = main()
    gc.freeze()  # on its way out Python would go through all objects once more: half a second
    return code


if __name__ == "__main__":
    sys.exit(run())
