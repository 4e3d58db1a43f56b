"""Several processes as one run: how they find each other, and what the first does for all.

Every process runs the same program on the same input, and jax cuts the arrays over the devices of
all. What must happen once, such as writing a file, the first does; what could differ, such as a
random seed, it decides. Standard library only until there are several.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from lwm_core import backend
from lwm_core.errors import ClusterError, LwmError, UsageError

if TYPE_CHECKING:
    import jax
    import numpy as np
    from numpy.typing import ArrayLike

WAIT_SECONDS = 300.0
"""How long to wait for the other processes: someone may start them by hand."""
WORK_SECONDS = 24 * 60 * 60
"""How long to wait for what the first does for all: a large model takes long to a slow disk."""
PARTING_SECONDS = 30
"""How long one that has failed waits for the others, which may wait for it; then all end."""

Plain = TypeVar("Plain")
Made = TypeVar("Made")


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    wait: float = WAIT_SECONDS,
) -> bool:
    """Join the other processes of this run, if there are any; call it before jax does any work.

    `coordinator` is the address `HOST:PORT` of the first, `processes` counts them all and `process`
    is the number of this one, from 0. Without the three they are those that a `launcher` has
    started; where there is none, nothing happens. Returns whether others were looked for.

    Raises UsageError for what can't be meant, and ClusterError when not all have come after `wait`
    seconds.
    """
    given = (coordinator, processes, process)
    if coordinator is not None and processes is not None and process is not None:
        _check(coordinator, processes, process)
        method = "deactivate"
    elif given != (None, None, None):
        raise UsageError("--coordinator, --processes and --process belong together; give all three")
    else:
        method = launcher() or ""
    if not method or processes == 1:
        return False
    backend.prepare()
    import jax

    if not jax.distributed.is_initialized():
        # It would keep SIGTERM from ending a process, in case someone asked it for preemptions.
        jax.config.update("jax_enable_preemption_service", False)
        _connect(*given, method, wait)
    return True


def _check(coordinator: str, processes: int, process: int) -> None:
    """Raise UsageError for an address or a number that can't be meant."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator {coordinator}: write the first process's HOST:PORT")
    if not 0 <= process < processes:
        raise UsageError(
            f"--process {process} of --processes {processes}: they are numbered from 0 to "
            f"{processes - 1}"
        )


def launcher() -> str | None:
    """What has started this process as one of several, by jax's name for it; None for nothing.

    The environment says so, on a TPU also its chips: jax itself would ask the network. Raises
    UsageError for an MPI that jax knows through mpi4py only, where that is not installed.
    """
    if _number("SLURM_STEP_NUM_TASKS") > 1:
        return "slurm"
    if _number("OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_MCA_orte_hnp_uri" in os.environ:
        return "ompi"
    if max(_number("OMPI_COMM_WORLD_SIZE"), _number("PMI_SIZE")) > 1:
        if find_spec("mpi4py") is None:
            raise UsageError(
                "MPI has started several processes; pip install mpi4py, so that they find each "
                "other, or give each --coordinator, --processes and --process"
            )
        return "mpi4py"
    if _has_tpu():
        hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
        if hosts:
            return "gketpu" if "," in hosts or _number("MEGASCALE_NUM_SLICES") > 1 else None
        return None if "TPU_SKIP_MDS_QUERY" in os.environ else "gcetpu"
    if "JOB_COMPLETION_INDEX" in os.environ and find_spec("kubernetes"):
        return "k8s"
    return None


def _number(variable: str) -> int:
    """A count in the environment, 0 without any."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def _has_tpu() -> bool:
    """Whether this machine has TPU chips, and what drives them."""
    wanted = "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu")
    chips = (*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*"))
    return wanted and bool(chips) and find_spec("libtpu") is not None


def _connect(
    coordinator: str | None, processes: int | None, process: int | None, method: str, wait: float
) -> None:
    """Wait for the others. Raises ClusterError.

    In a thread, because jax ends the process without a word when its own time is over.
    """
    import jax

    reasons: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                # Kubernetes has no name there, but is found.
                cluster_detection_method=None if method == "k8s" else method,
                initialization_timeout=int(2 * wait) + 60,
                shutdown_timeout_seconds=PARTING_SECONDS,
            )
        except Exception as error:
            reasons.append(error)

    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(wait)
    if thread.is_alive():
        where = f" at {coordinator}" if coordinator else ""
        raise ClusterError(
            f"after {wait:g} s not all processes have met{where}; start every one of them, where "
            "it can reach the first"
        )
    if reasons:
        raise ClusterError(f"the processes can't join: {reasons[0]}") from reasons[0]


def are_several() -> bool:
    """Whether this process has joined others."""
    if "jax" not in sys.modules:  # and it takes long to come
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def number() -> int:
    """Which of several processes this is, from 0; 0 for the only one."""
    if not are_several():
        return 0
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this process writes and speaks: the first of several, or the only one."""
    return number() == 0


def agree(value: Plain) -> Plain:
    """The first process's value, of those that JSON knows, in all of them; each must ask."""
    if not are_several():
        return value
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    text = json.dumps(value).encode() if is_first() else b""
    length = int(broadcast_one_to_all(np.int32(len(text))))
    heard = broadcast_one_to_all(np.frombuffer(text.ljust(length), np.uint8))
    return json.loads(bytes(np.asarray(heard)))


def wait_for_all(purpose: str) -> None:
    """Come back when every process has come to this point."""
    if are_several():
        import jax
        from orbax.checkpoint import multihost

        # Named, they meet over the network; devices would not wait long enough for each other.
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(purpose, timeout=WORK_SECONDS, processes=everyone)


def on_first(purpose: str, make: Callable[[], Made]) -> Made | None:
    """What the first process alone makes, None in the others, when it is made; each must ask.

    Raises the LwmError of `make`; in the others it is a UsageError or an LwmError of that text.
    """
    made, failure = None, None
    if is_first():
        try:
            made = make()
        except LwmError as error:
            failure = error
    wait_for_all(purpose)
    told = agree((str(failure), isinstance(failure, UsageError)) if failure else None)
    if failure:
        raise failure
    if told:
        text, is_usage = told
        raise (UsageError if is_usage else LwmError)(text)
    return made


def put(values: ArrayLike, place: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has, on the devices of all: each fills those that it sees."""
    import jax
    import numpy as np

    whole = np.asarray(values)
    return jax.make_array_from_callback(whole.shape, place, lambda part: whole[part])


def gather(array: jax.Array, *, stacked: bool) -> np.ndarray | None:
    """An array that is cut over the devices of all, whole in the first process; each must ask.

    The others get None. Every device holds for a moment all of what is gathered at once: of a
    `stacked` array that is one element of its first dimension, which must not be cut.
    """
    import numpy as np

    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array) if is_first() else None
    from jax.experimental import multihost_utils

    whole = np.empty(array.shape, array.dtype) if is_first() else None
    for part in range(array.shape[0]) if stacked else [...]:
        gathered = multihost_utils.process_allgather(array[part], tiled=True)
        if whole is not None:
            whole[part] = gathered
    return whole
