"""`lwm`, and `python -m lwm_cli`: the program, in a process that is made for it."""

from __future__ import annotations

import sys

from lwm_cli.heap import start_with_heap


def run() -> int:
    """Run the command of the command line; returns the exit code."""
    start_with_heap(for_threads=sys.argv[1:2] == ["train"])
    from lwm_cli.app import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
