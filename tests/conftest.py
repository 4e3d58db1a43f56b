"""What all tests share: eight simulated devices, and where the numbers of the original lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Before the first import of jax, which reads them once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import pytest

TESTS = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Programs compiled by one run, or by one process, serve the next."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("xla"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Our copy of what the original computes; its README says how it was made."""
    return TESTS / "reference"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real media, corpora and more numbers of the original, too large to ship."""
    folder = Path(os.environ.get("LWM_SHARED") or TESTS.parents[1] / "shared")
    if not folder.is_dir():
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"{folder} is not here; LWM_SHARED may name it")
    return folder
