"""Several processes as one: the same numbers, one voice, and clear words where they can't meet.

Two processes with two simulated devices each, over the loopback.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from originals import stacked
from recipes import TEXT

from lwm_cli.app import main
from lwm_core import checkpoint, distributed, weight_tree
from lwm_core.config import ModelConfig
from lwm_core.decode import generate
from lwm_core.errors import UsageError
from lwm_core.load import load_model
from lwm_core.sampling import Sampling
from lwm_core.tokenizer import Tokenizer
from lwm_core.train import train
from lwm_core.weights import Held

ROOT = Path(__file__).parents[1]
LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_")

GENERATE = """
import json, sys
from pathlib import Path
from lwm_core import distributed
_, model, prompts, output, address, number = sys.argv
distributed.join(address, 2, int(number), wait=100)
assert distributed.agree(["the first", int(number)]) == ["the first", 0]
from lwm_core.decode import generate
from lwm_core.load import load_model
from lwm_core.sampling import Sampling
loaded = load_model(model, mesh="tp=2,sp=2")
assert len({device.process_index for device in loaded.how.mesh.devices.flat}) == 2
written = [
    [part.tolist() for part in generate(
        loaded, json.loads(prompts), modality=modality, sampling=sampling, max_tokens=40,
        stops=False,
    )]
    for modality, sampling in (
        ("text", Sampling(temperature=0)), ("vision", Sampling(seed=7, guidance=3.0))
    )
]
(Path(output) / number).write_text(json.dumps(written))
import numpy as np
from jax.experimental import multihost_utils
from lwm_core import weight_tree
from originals import stacked
shapes, gather = [], multihost_utils.process_allgather
def watched(array, **how):
    shapes.append(array.shape)
    return gather(array, **how)
multihost_utils.process_allgather = watched
weights = weight_tree.to_numpy(stacked(loaded))
assert max(map(len, shapes)) == 2, shapes  # a layer at a time
np.savez(Path(output) / f"weights-{number}.npz", **weights)
"""

TRAIN = """
import json, sys
from pathlib import Path
from lwm_core import distributed
_, recipe, output, address, number = sys.argv
distributed.join(address, 2, int(number), wait=100)
from lwm_core.train import train
recipe = json.loads(recipe)
run = train(recipe, output=Path(output), mesh="dp=2,sp=2")
next(event for event in run if (event.kind, event.step) == ("step", 3))
run.close()  # its third step is lost
rest = train(recipe, output=Path(output), mesh="dp=2,sp=2", resume=True)
assert [event.kind for event in rest] == ["start", "step", "step", "checkpoint", "done"]
"""

SHARDS = """
import json, sys
from pathlib import Path
from lwm_core import distributed
_, recipe, output, address, number = sys.argv
distributed.join(address, 2, int(number), wait=100)
from lwm_core.train import train
recipe, whole, halved = json.loads(recipe), Path(output) / "whole", Path(output) / "halved"
list(train(recipe, output=whole, mesh="dp=2,sp=2"))
run = train(recipe, output=halved, mesh="dp=2,sp=2")
next(event for event in run if event.kind == "checkpoint")
run.close()
list(train(recipe, output=halved, mesh="dp=2,sp=2", resume=True))
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def together(
    tmp_path: Path, *command: str, flags: bool = False, count: int = 2
) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of processes that run a command, each with its number."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "LWM_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    processes = []
    for number in map(str, range(count)):
        place = [address, number]
        if flags:
            place = ["--coordinator", address, "--processes", str(count), "--process", number]
        processes.append(
            subprocess.Popen(
                [sys.executable, *command, *place],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        )
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *one) for process, one in zip(processes, said, strict=True)]


@pytest.mark.slow
def test_two_processes_write_the_tokens_of_one(tmp_path: Path, tiny_model: Path) -> None:
    prompts = [list(range(3, 60)), list(range(90, 70, -1))]
    both = together(tmp_path, "-c", GENERATE, str(tiny_model), json.dumps(prompts), str(tmp_path))
    loaded = load_model(str(tiny_model), mesh="dp=8")
    alone = [
        [part.tolist() for part in generate(loaded, prompts, max_tokens=40, stops=False, **how)]
        for how in (
            {"modality": "text", "sampling": Sampling(temperature=0)},
            {"modality": "vision", "sampling": Sampling(seed=7, guidance=3.0)},
        )
    ]
    for number, (code, _, errors) in enumerate(both):
        assert code == 0, errors
        assert json.loads((tmp_path / str(number)).read_text()) == alone
    first, other = (np.load(tmp_path / f"weights-{number}.npz") for number in (0, 1))
    weights = weight_tree.to_numpy(stacked(loaded))
    assert set(first) == weights.keys()
    assert not set(other)  # which only helps
    for name, weight in weights.items():
        np.testing.assert_array_equal(first[name], weight, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["masked", "concatenated"])
def test_two_processes_share_the_data(tmp_path: Path, tiny_model: Path, packing: str) -> None:
    """Each reads its part, in rows that grow; what was resumed is what was not, to the last bit."""
    rng = np.random.default_rng(0)
    texts = [" ".join(["sea"] * rng.integers(3, 60)) for _ in range(80)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    recipe = {
        "kind": "language",
        "start_from": str(tiny_model),
        "save_every": 3,
        "data": {"texts": {"path": str(tmp_path / "texts.jsonl")}},
        "packing": packing,
        "optimizer": {"rate": 1e-3},
        "stages": [{"steps": 2, "length": 64, "rows": 4}, {"steps": 3, "length": 128, "rows": 2}],
    }
    for code, _, errors in together(tmp_path, "-c", SHARDS, json.dumps(recipe), str(tmp_path)):
        assert code == 0, errors

    def losses(name: str) -> list[tuple[float, ...]]:
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]

    assert len(losses("whole")) == 5
    assert losses("whole") == losses("halved")


def test_two_processes_train_as_one(tmp_path: Path, reference: Path) -> None:
    """Left after a step that no checkpoint has, and resumed: the files and the numbers of one."""
    config = ModelConfig(
        text_vocab=512, hidden=16, intermediate=24, layers=2, heads=2, kv_heads=2, head_dim=8,
        max_length=256,
    )  # fmt: skip
    fresh = weight_tree.to_numpy(weight_tree.init(config, jax.random.key(0)))
    tokenizer = Tokenizer.load(reference / "tokenizer/tokenizer.model")
    checkpoint.write_model(tmp_path / "start", config, Held(fresh), tokenizer=tokenizer)
    (tmp_path / "prose.txt").write_text("The house stood at the sea. " * 60)
    recipe: dict[str, Any] = {
        **{key: value for key, value in TEXT.items() if key != "model"},
        "start_from": str(tmp_path / "start"),
        "prose": [str(tmp_path / "prose.txt")],
    }
    list(train(recipe, output=tmp_path / "one"))
    both = together(tmp_path, "-c", TRAIN, json.dumps(recipe), str(tmp_path / "two"))
    for code, _, errors in both:
        assert code == 0, errors

    def numbers(output: Path) -> np.ndarray:
        lines = (output / "metrics.jsonl").read_text().splitlines()
        names = ("step", "loss", "text_loss", "gradient_norm")
        return np.array([[json.loads(line)[name] for name in names] for line in lines])

    np.testing.assert_allclose(numbers(tmp_path / "two"), numbers(tmp_path / "one"), rtol=1e-5)
    assert {each.name for each in (tmp_path / "two").iterdir()} == {
        each.name for each in (tmp_path / "one").iterdir()
    }
    ours, theirs = (
        weight_tree.flatten(stacked(load_model(str(tmp_path / name / "model"))))
        for name in ("two", "one")
    )
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight, atol=2e-5, err_msg=name)


def test_two_processes_answer_once(tmp_path: Path, tiny_model: Path) -> None:
    """The seed is not given: it must be the same in both, or the answer would fall apart."""
    command = ["-m", "lwm_cli", "chat", "Hello", "-m", str(tiny_model), "-n", "9", "-t", "1"]
    first, other = together(tmp_path, *command, "--mesh", "tp=2,sp=2", "--json", flags=True)
    assert (first[0], other[0]) == (0, 0), first[2] + other[2]
    answer = json.loads(first[1])
    assert answer["prompt"] == "Hello"
    assert "9 tokens" in first[2]
    assert other[1:] == ("", "")
    assert len(list((tmp_path / "home/conversations").iterdir())) == 1


def test_errors_say_whose_they_are(tmp_path: Path) -> None:
    command = ["-m", "lwm_cli", "chat", "Hello", "-m", str(tmp_path / "none")]
    first, other = together(tmp_path, *command, flags=True)
    assert (first[0], other[0]) == (2, 2)
    assert first[2].startswith("lwm: error: ")
    assert other[2] == first[2].replace("lwm: ", "lwm: process 1: ", 1)


def test_where_the_first_fails_alone_the_others_end_too(tmp_path: Path, tiny_model: Path) -> None:
    command = ["-m", "lwm_cli", "needle", "-m", str(tiny_model), "--ctx", "400", "--lengths", "1"]
    command += ["--depths", "1", "--mesh", "tp=2,sp=2", "--results", str(tmp_path)]
    first, other = together(tmp_path, *command, flags=True)
    assert (first[0], other[0]) == (2, 2), first[2] + other[2]
    assert first[2].endswith(f"lwm: error: {tmp_path} is no file; name another with --results\n")
    assert f"lwm: process 1: error: {tmp_path} is no file" in other[2]


def test_the_first_may_work_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax alone would give up after five minutes."""
    from orbax.checkpoint import multihost

    waits = []
    monkeypatch.setattr(distributed, "are_several", lambda: True)
    monkeypatch.setattr(
        multihost, "sync_global_processes", lambda name, **how: waits.append(how["timeout"])
    )
    distributed.wait_for_all("a large model")
    assert waits[0] >= 6 * 60 * 60


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--coordinator host:1234", "give all three"),
        ("--processes 2 --process 1", "give all three"),
        ("--coordinator host --processes 2 --process 0", "HOST:PORT"),
        ("--coordinator host:0 --processes 2 --process 0", "HOST:PORT"),
        ("--coordinator host:1234 --processes 2 --process 2", "from 0 to 1"),
        ("--coordinator host:1234 --processes 0 --process 0", "'--processes'"),
    ],
)
def test_flags_that_can_not_be_meant(
    flags: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "Hello", *flags.split()]) == 2
    assert reason in capsys.readouterr().err


def test_who_does_not_find_the_others_says_so(tmp_path: Path) -> None:
    wait = "import sys, lwm_core.distributed as d; d.join(sys.argv[1], 3, int(sys.argv[2]), wait=1)"
    for code, _, errors in together(tmp_path, "-c", wait):
        assert code == 1
        assert "ClusterError: after 1 s not all processes have met at 127.0.0.1" in errors


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # allocated, not started by srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "OMPI_COMM_WORLD_SIZE": "4"}, "slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"}, "ompi"),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpi4py"),
        ({"PMI_SIZE": "2"}, "mpi4py"),
        ({"libtpu": "", "TPU_WORKER_HOSTNAMES": "a,b"}, "gketpu"),
        ({"libtpu": "", "TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"libtpu": "", "TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"libtpu": ""}, "gcetpu"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, None),  # no chips
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "k8s"),
    ],
)
def test_launchers_are_known_by_what_they_set(
    environment: dict[str, str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [one for one in os.environ if one.startswith(LAUNCHERS)]:
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(distributed, "find_spec", lambda _: True)
    monkeypatch.setattr(distributed, "_has_tpu", lambda: "libtpu" in environment)
    assert distributed.launcher() == name


def test_an_mpi_that_jax_does_not_know_needs_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.setattr(distributed, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install mpi4py"):
        distributed.join()


def test_names_of_launchers_are_those_of_jax() -> None:
    from jax._src.clusters import ClusterEnv

    known = {cluster.name for cluster in ClusterEnv._cluster_types}
    assert {"slurm", "ompi", "mpi4py", "gketpu", "gcetpu"} <= known


def test_alone_is_first() -> None:
    def refuse() -> None:
        raise UsageError("wrong")

    assert not distributed.join("127.0.0.1:1234", 1, 0)
    assert distributed.is_first()
    assert not distributed.are_several()
    assert distributed.agree({"any": "thing"}) == {"any": "thing"}
    distributed.wait_for_all("nobody")
    assert distributed.on_first("this", lambda: 7) == 7
    with pytest.raises(UsageError, match="wrong"):
        distributed.on_first("that", refuse)
