"""Cases of a test that only `-m slow` runs: further meshes, lengths and formats of one check."""

from __future__ import annotations

import pytest


def slow(*values: object) -> object:
    """A case of these values that the default run leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)
