"""What may end a run, and that it goes on as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from clockwork import TICKING, Clockwork, wound_up
from recipes import TEXT
from test_distributed import together

from lwm_core import checkpoint, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.errors import (
    DoesNotFit,
    FormatError,
    OutputError,
    RecordError,
    TrainingError,
    TrainingInterrupted,
    UsageError,
)
from lwm_core.tokenizer import Tokenizer
from lwm_core.train import TrainEvent, checkpoints, train
from lwm_core.train.checkpoints import Checkpoints, last_step
from lwm_core.train.prefetch import AHEAD, prefetch
from lwm_core.weights import Held

ROOT = Path(__file__).parents[1]
FIGURES = ("loss", "text_loss", "gradient_norm")
GRACE_SECONDS = 30
"""What Kubernetes and Slurm give a process between SIGTERM and SIGKILL."""

FOUR = """
import json, sys
from pathlib import Path
from lwm_core import distributed
_, recipe, output, address, number = sys.argv
distributed.join(address, 4, int(number), wait=100)
from lwm_core.train import train
run = train(json.loads(recipe), output=Path(output), mesh="dp=2,fsdp=2,sp=2", resume=True)
assert next(run).step == 2
assert next(event for event in run if (event.kind, event.step) == ("checkpoint", 4))
run.close()
"""

TOLD_TWICE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""When one of several arrays fails, TensorStore finds nobody to tell that the next fails too."""

KILLED = """
import json, os, signal, sys
from pathlib import Path
_, recipe, output, deed, end = sys.argv

def watch(event, arguments):
    if event == deed and str(arguments[0]).endswith(end):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from lwm_core.train import train
list(train(json.loads(recipe), output=Path(output)))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> dict[str, Any]:
    """Six steps of a text model, from weights that lie there, so that they begin at once."""
    folder = tmp_path_factory.mktemp("start")
    config = ModelConfig(
        text_vocab=512, hidden=16, intermediate=24, layers=2, heads=2, kv_heads=2, head_dim=8,
        max_length=256,
    )  # fmt: skip
    fresh = weight_tree.to_numpy(weight_tree.init(config, jax.random.key(0)))
    tokenizer = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    checkpoint.write_model(folder / "model", config, Held(fresh), tokenizer=tokenizer)
    (folder / "prose.txt").write_text("The house stood at the sea. " * 60)
    return {
        **{key: value for key, value in TEXT.items() if key != "model"},
        "start_from": str(folder / "model"),
        "prose": [str(folder / "prose.txt")],
        "keep": 1,
        "export_every": 6,
        "stages": [{**TEXT["stages"][0], "rows": 4, "steps": 6}],
    }


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What an uninterrupted run measures, `[steps, FIGURES]`."""
    output = tmp_path_factory.mktemp("whole") / "run"
    list(train(recipe, output=output))
    return figures(output)


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """What is trained instead, by any recipe."""
    return wound_up(monkeypatch)


def figures(output: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([[line[name] for name in FIGURES] for line in lines])


def go_to_step_3(run: Iterator[TrainEvent], output: Path) -> None:
    """Take steps until the third is done and the checkpoint after the second is whole."""
    assert next(event for event in run if (event.kind, event.step) == ("step", 3))
    while last_step(output / "checkpoints") != 2:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("deed", "end", "left"),
    [
        ("os.rename", "4.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp", 2),
        slow("os.rename", "checkpoints/4.orbax-checkpoint-tmp", 2),
        slow("shutil.rmtree", "checkpoints/2", 4),
    ],
    ids=["while it is written", "before it has its name", "while the older one is removed"],
)
def test_killed_in_the_middle_of_a_checkpoint(
    deed: str, end: str, left: int, recipe: dict[str, Any], whole: np.ndarray, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, json.dumps(recipe), str(tmp_path / "run"), deed, end]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "run/checkpoints"
    assert last_step(folder) == left
    assert any(folder.glob(checkpoints.UNFINISHED)) == (left == 2)
    run = train(recipe, output=tmp_path / "run", resume=True)
    assert next(run).step == left
    assert not any(folder.glob(checkpoints.UNFINISHED))
    assert list(run)[-1].kind == "done"
    np.testing.assert_array_equal(figures(tmp_path / "run"), whole)
    assert [entry.name for entry in folder.iterdir()] == ["6"]


def test_on_ever_fewer_devices(
    recipe: dict[str, Any], whole: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight, four, one: the sums have another order, and that is all."""
    devices = jax.devices()
    for count, mesh, end in ((8, "dp=2,fsdp=2,sp=2", 2), (4, "fsdp=2,tp=2", 4), (1, "dp=1", 6)):
        monkeypatch.setattr(jax, "devices", lambda count=count: devices[:count])
        run = train(recipe, output=tmp_path / "run", resume=end > 2, mesh=mesh)
        assert next(run).step == end - 2
        assert next(event for event in run if (event.kind, event.step) == ("step", end))
        next(run, None)  # what is due after the step
        run.close()
        assert last_step(tmp_path / "run/checkpoints") == end
    np.testing.assert_allclose(figures(tmp_path / "run"), whole, rtol=1e-5)


@pytest.mark.slow
def test_on_another_number_of_processes(
    recipe: dict[str, Any], whole: np.ndarray, tmp_path: Path
) -> None:
    """One, four of two devices each, one."""
    output = tmp_path / "run"
    run = train(recipe, output=output)
    go_to_step_3(run, output)
    run.close()
    for code, _, errors in together(tmp_path, "-c", FOUR, json.dumps(recipe), str(output), count=4):
        assert code == 0, errors
    events = list(train(recipe, output=output, resume=True))
    assert events[0].step == 4
    np.testing.assert_allclose(figures(output), whole, rtol=1e-5)


def test_preempted(recipe: dict[str, Any], tmp_path: Path) -> None:
    """SIGTERM in the middle of a long run: it is saved, and the exit code says why it ended."""
    long = {**recipe, "save_every": 10**6, "stages": [{**recipe["stages"][0], "steps": 10**6}]}
    path, output = tmp_path / "long.toml", tmp_path / "run"
    path.write_text("\n".join(_toml(long)))
    command = [sys.executable, "-m", "lwm_cli", "train", str(path), "-o", str(output)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        lines = output / "metrics.jsonl"
        while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") > 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=GRACE_SECONDS)
    finally:
        process.kill()
    step = len(figures(output))
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1] == (
        f"lwm: error: stopped by SIGTERM; step {step} is saved: go on with --resume"
    )
    assert last_step(output / "checkpoints") == step > 2
    assert next(train(long, output=output, resume=True)).step == step


def _toml(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines of a document: what is no table first, as JSON, which TOML reads too."""
    plain = {key: one for key, one in table.items() if not isinstance(one, dict)}
    stages = plain.pop("stages", [])
    yield from (f"{key} = {json.dumps(one)}" for key, one in plain.items())
    for stage in stages:
        yield "[[stages]]"
        yield from _toml(stage, "stages.")
    for key, one in table.items():
        if isinstance(one, dict):
            yield f"[{prefix}{key}]"
            yield from _toml(one, f"{prefix}{key}.")


def test_interrupted(clockwork: Clockwork, tmp_path: Path) -> None:
    run = train(TICKING, output=tmp_path / "run")
    assert next(event for event in run if (event.kind, event.step) == ("step", 3))
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="SIGINT; step 3 is saved") as caught:
        list(run)
    assert caught.value.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert next(train(TICKING, output=tmp_path / "run", resume=True)).step == 3


@pytest.mark.parametrize(
    ("kind", "step"),
    [("step", 4), ("evaluation", 2), ("evaluation", 3), ("sample", 3), ("sample", 4)],
)
def test_interrupted_between_steps(
    kind: str, step: int, clockwork: Clockwork, tmp_path: Path
) -> None:
    """Also of what is due after a step nothing more is done, but that it is saved."""
    clockwork.evaluate_every = clockwork.sample_every = 1
    recipe, output = {**TICKING, "export_every": 1}, tmp_path / "run"
    run = train(recipe, output=output)
    assert next(event for event in run if (event.kind, event.step) == (kind, step))
    os.kill(os.getpid(), signal.SIGTERM)
    after = []
    with pytest.raises(TrainingInterrupted, match=f"SIGTERM; step {step} is saved"):
        after.extend(run)
    assert {event.kind for event in after} <= {"checkpoint"}
    assert clockwork.exports == step - 1
    assert last_step(output / "checkpoints") == step
    assert list(train(recipe, output=output, resume=True))[-1].kind == "done"
    assert clockwork.exports == step - 1 + max(1, 4 - step)  # the model is not forgotten


def test_interrupted_twice(clockwork: Clockwork, tmp_path: Path) -> None:
    """Who does not want to wait for the checkpoint need not."""
    run = train(TICKING, output=tmp_path / "run")
    assert next(event for event in run if (event.kind, event.step) == ("step", 3))
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    run.close()
    assert last_step(tmp_path / "run/checkpoints") == 2


@pytest.fixture
def deadly() -> Iterator[None]:
    """SIGTERM ends what is under way where nobody listens, but not all of these tests."""

    def die(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, die)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("deadly")
def test_terminated_twice(
    first: signal.Signals, clockwork: Clockwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher's second SIGTERM, here in the midst of saving, does no harm."""
    save = Checkpoints.save

    def hit(saved: Checkpoints, step: int, *state: Any) -> None:
        save(saved, step, *state)
        os.kill(os.getpid(), signal.SIGTERM)

    run = train(TICKING, output=tmp_path / "run")
    assert next(event for event in run if (event.kind, event.step) == ("step", 3))
    monkeypatch.setattr(Checkpoints, "save", hit)
    os.kill(os.getpid(), first)
    with pytest.raises(TrainingInterrupted, match="step 3 is saved") as caught:
        list(run)
    assert caught.value.signal == first
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (RecordError("record 7 is empty"), r"record 7 is empty; go on with --resume from step 2$"),
        (UsageError("no such place"), r"no such place$"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 45G"), r"RESOURCE_EXHAUSTED: 45G$"),
    ],
)
def test_trouble_after_a_step_leaves_its_checkpoint(
    trouble: Exception, words: str, clockwork: Clockwork, tmp_path: Path
) -> None:
    clockwork.trouble, clockwork.evaluate_every = trouble, 2
    with pytest.raises(type(trouble), match=words):
        list(train(TICKING, output=tmp_path / "run"))
    assert last_step(tmp_path / "run/checkpoints") == 2


def test_what_can_not_be_read_is_not_told_as_the_output(
    clockwork: Clockwork, tmp_path: Path
) -> None:
    clockwork.trouble, clockwork.evaluate_every = OSError(5, "Input/output error", "data"), 2
    words = "^data: Input/output error; go on with --resume from step 2$"
    with pytest.raises(TrainingError, match=words):
        list(train(TICKING, output=tmp_path / "run"))


def test_two_runs_do_not_share_an_output(clockwork: Clockwork, tmp_path: Path) -> None:
    """Whoever comes second changes nothing there; when the first has ended the way is free."""
    output = tmp_path / "run"
    run = train(TICKING, output=output)
    go_to_step_3(run, output)
    (output / "checkpoints/4.orbax-checkpoint-tmp").mkdir()
    before = (output / "metrics.jsonl").read_text(), (output / "recipe.json").read_text()
    with pytest.raises(UsageError, match="run: another run writes to it; wait for its end, or ch"):
        next(train({**TICKING, "steps": 5}, output=output, resume=True))
    assert before == ((output / "metrics.jsonl").read_text(), (output / "recipe.json").read_text())
    assert (output / "checkpoints/4.orbax-checkpoint-tmp").exists()
    run.close()
    assert next(train(TICKING, output=output, resume=True)).step == 2


class Heavy(Clockwork):
    """A clockwork whose state is large and new in every step."""

    def initial_state(self) -> dict[str, jax.Array]:
        return {"step": jnp.int32(0), "weight": jnp.zeros(100_000)}

    def step(self, state: dict[str, jax.Array], batch: int) -> tuple[dict, dict]:
        _, values = super().step(state, batch)
        weight = jax.random.normal(jax.random.key(batch), 100_000)
        return {"step": jnp.int32(batch + 1), "weight": weight}, values


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """A disk of 2 MB on `folder`; skips where the system does not let us have one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts disks")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@TOLD_TWICE
@pytest.mark.parametrize(
    ("room", "what"), [(50_000, "step 4 can't be saved"), (0, r"can't write .*/run/metrics\.jsonl")]
)
def test_a_full_disk(room: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full when a checkpoint is written, or even for a line of metrics; emptied, it goes on."""
    job = wound_up(monkeypatch, Heavy())
    job.values[4] = {"a name longer than what is left of a page " * 100: 1.0}
    disk, output, filler = tmp_path / "disk", tmp_path / "disk/run", tmp_path / "disk/filler"
    with _full_disk(disk):
        run = train(TICKING, output=output)
        go_to_step_3(run, output)
        filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
        words = rf"{what}.*: No space left on device; go on with --resume from step 2$"
        with pytest.raises(OutputError, match=words) as caught:
            list(run)
        assert "\n" not in str(caught.value)
        assert [entry.name for entry in (output / "checkpoints").iterdir()] == ["2"]
        filler.unlink()
        assert list(train(TICKING, output=output, resume=True))[-1].kind == "done"


@contextmanager
def _quota(size: int) -> Iterator[None]:
    """No file of this process may grow larger than so many bytes."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))


@TOLD_TWICE
def test_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wound_up(monkeypatch, Heavy())
    run = train(TICKING, output=tmp_path / "run")
    go_to_step_3(run, tmp_path / "run")
    with _quota(100_000), pytest.raises(OutputError, match=r"step 4 .* too large; .* from step 2$"):
        list(run)
    assert next(train(TICKING, output=tmp_path / "run", resume=True)).step == 2


@TOLD_TWICE
def test_who_leaves_hears_that_the_last_checkpoint_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wound_up(monkeypatch, Heavy())
    run = train(TICKING, output=tmp_path / "run")

    def leave_after_step_2() -> None:
        assert next(event for event in run if event.step == 3)
        run.close()

    with _quota(100_000), pytest.raises(OutputError, match=r"step 2 can't .*: begin again$"):
        leave_after_step_2()


@pytest.mark.parametrize("gone", ["run/checkpoints", "run"])
def test_a_directory_that_vanishes(gone: str, clockwork: Clockwork, tmp_path: Path) -> None:
    run = train(TICKING, output=tmp_path / "run")
    go_to_step_3(run, tmp_path / "run")
    shutil.rmtree(tmp_path / gone)
    words = r"checkpoints is gone, and step 4 can't be saved; no step was saved"
    with pytest.raises(OutputError, match=words):
        list(run)


@TOLD_TWICE
def test_a_damaged_checkpoint(clockwork: Clockwork, tmp_path: Path) -> None:
    """Removed, it leaves the one before."""
    list(train(TICKING, output=tmp_path / "run"))
    folder = tmp_path / "run/checkpoints/4"
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(FormatError, match=r"checkpoints/4: can't be read: .*remove it") as caught:
        list(train(TICKING, output=tmp_path / "run", resume=True))
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder)
    assert next(train(TICKING, output=tmp_path / "run", resume=True)).step == 2


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 8G"), DoesNotFit, "does not fit into mem"),
        (PermissionError(13, "Permission denied"), TrainingError, "can't be read: Permission den"),
        (
            ValueError("PERMISSION_DENIED: a: Permission denied [os_error_code='13']"),
            TrainingError,
            "can't be read: Permission denied; see to that",
        ),
        (OSError(5, "Input/output error"), TrainingError, "can't be read: Input/output error"),
    ],
)
def test_a_checkpoint_that_is_well_but_not_read(
    error: Exception,
    kind: type,
    words: str,
    clockwork: Clockwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is told to remove it."""

    def fail(*_: object, **__: object) -> None:
        raise error

    list(train(TICKING, output=tmp_path / "run"))
    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "restore", fail)
    with pytest.raises(kind, match=rf"checkpoints/4:? {words}") as caught:
        list(train(TICKING, output=tmp_path / "run", resume=True))
    assert "remove" not in str(caught.value)


def test_a_checkpoint_with_a_part_missing_is_damaged(clockwork: Clockwork, tmp_path: Path) -> None:
    list(train(TICKING, output=tmp_path / "run"))
    (tmp_path / "run/checkpoints/4/cursors/metadata").unlink()
    with pytest.raises(FormatError, match=r"checkpoints/4: can't be read: .*remove it .* before$"):
        list(train(TICKING, output=tmp_path / "run", resume=True))


class Served(Clockwork):
    """A clockwork whose batches come from another process, which is killed in the fourth."""

    def batches(self, first: int, cursors: Sequence[dict]) -> Iterator[tuple[int, dict]]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers:
            for batch, after in super().batches(first, cursors):
                if batch == 3:
                    os.kill(workers.submit(os.getpid).result(), signal.SIGKILL)
                workers.submit(abs, batch).result()
                yield batch, after


def test_a_data_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wound_up(monkeypatch, Served())
    words = r"a batch can't be made: BrokenProcessPool: .*; go on with --resume from step 2$"
    with pytest.raises(TrainingError, match=words):
        list(train(TICKING, output=tmp_path / "run"))
    wound_up(monkeypatch)
    assert list(train(TICKING, output=tmp_path / "run", resume=True))[-1].kind == "done"


def test_batches_are_made_while_one_is_in_use() -> None:
    """As many as AHEAD says, and no more."""
    asked: list[int] = []
    third = threading.Event()

    def batches() -> Iterator[int]:
        for number in itertools.count():
            asked.append(number)
            if number == AHEAD:
                third.set()
            yield number

    with closing(prefetch(batches(), 9)) as made:
        assert next(made) == 0
        assert third.wait(GRACE_SECONDS)
        assert len(asked) == 1 + AHEAD
        assert list(made) == list(range(1, 9))
    assert len(asked) == 9
    assert list(prefetch(iter("abc"), 1)) == ["a"]


def test_data_that_ends(clockwork: Clockwork, tmp_path: Path) -> None:
    def ends(first: int, cursors: Sequence[dict]) -> Iterator[tuple[int, dict]]:
        yield from ((index, {"next": index + 1}) for index in range(first, 3))

    clockwork.batches = ends
    with pytest.raises(TrainingError, match=r"the data came to an end .* from step 2"):
        list(train(TICKING, output=tmp_path / "run"))


def test_what_is_saved_is_what_was_there(tmp_path: Path) -> None:
    """Though the next step writes over its memory while it is written."""
    step = jax.jit(lambda state: {"weight": state["weight"] + 1.0}, donate_argnums=0)
    state = {"weight": jnp.arange(2_000_000.0)}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = {"weight": jax.ShapeDtypeStruct((2_000_000,), jnp.float32, sharding=here)}
    with Checkpoints(tmp_path, keep=2, keep_every=0) as saved:
        for number in (1, 2):
            state = step(state)
            saved.save(number, state, {"next": number})
        for _ in range(20):
            state = step(state)
        saved.wait()
        for number in (1, 2):
            restored, cursors = saved.restore(number, shape)
            expected = np.arange(2_000_000, dtype=np.float32) + number
            np.testing.assert_array_equal(restored["weight"], expected)
            assert cursors == [{"next": number}]
