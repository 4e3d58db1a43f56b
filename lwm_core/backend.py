"""What must be set before jax does any work: quiet logs, kept programs, memory that stays warm.

Standard library only until `prepare` is called.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from contextlib import suppress
from pathlib import Path

_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "NONE",
    "GLOG_minloglevel": "3",
}

_DEVICES_OF_XLA = "xla_force_host_platform_device_count"
"""The older name of a setting that jax has too."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's parameters M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (malloc.h)."""


def home() -> Path:
    """Where lwm keeps what it remembers: LWM_HOME, or `lwm` in the user's data directory."""
    if chosen := os.environ.get("LWM_HOME"):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "lwm"


def prepare(*, cpu_devices: int | None = None) -> None:
    """Set up jax for this process; call it before anything is computed, best before jax is loaded.

    Compiled programs are kept under `home()/xla`, or where JAX_COMPILATION_CACHE_DIR says, so that
    the second run starts without compiling. In a process that runs alone the CPU is so many
    `cpu_devices`. What the environment already says is left alone.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # What it says about a GPU that lies idle, `mesh.missed_gpu` says in our words.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    _keep_freed_memory()

    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _can_hold(home() / "xla"):
        jax.config.update("jax_compilation_cache_dir", str(home() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if cpu_devices and not jax.distributed.is_initialized():
        _share_out_cpu(cpu_devices)


def _share_out_cpu(devices: int) -> None:
    """Let jax see the CPU as so many devices, if that is still open."""
    import jax

    is_given = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not is_given and _DEVICES_OF_XLA not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):  # jax has begun already, with one
            jax.config.update("jax_num_cpu_devices", devices)


def _can_hold(folder: Path) -> bool:
    """Whether files can be kept in a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _keep_freed_memory() -> None:
    """Let glibc keep large freed buffers instead of giving them back to the kernel.

    Each product of large matrices gets a fresh result buffer. By default its pages go back when
    it is freed, and the next result faults in every one of them again; kept, large products on
    a CPU measured two to four times as fast.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # The threshold goes first, and some versions refuse more than 32 MB: any other parameter ends
    # glibc's own raising of the threshold, which would then stay at 128 KB.
    if mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25):
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 2**26)
