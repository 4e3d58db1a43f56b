"""Training steps of the original, repeated: losses, gradients, rates, weights after five steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from originals import open_original, read_streaming

from lwm_core.config import ModelConfig, OriginalSizes
from lwm_core.execution import Execution
from lwm_core.formats.lwm_jax import KERNELS, NORM, NORMS, TABLES, LwmJaxWeights
from lwm_core.mesh import make_mesh
from lwm_core.train.language import LanguageState, language_loss, language_step
from lwm_core.train.loss import balance, token_losses
from lwm_core.train.optimizer import LanguageOptimizerConfig, make_optimizer, make_schedule
from lwm_core.types import Batch
from lwm_core.weight_tree import Params, flatten
from lwm_core.weights import read_stacked

HERE = Execution(make_mesh(), whole_weights=False)
RUNS = ("text_text_a", "text_text_b", "vision_vision_small")
STEPS = 5
NAMES = {
    "loss": "loss",
    "text_loss": "text_loss",
    "vision_loss": "vision_loss",
    "acc": "text_accuracy",
    "text_acc": "text_accuracy",
    "vision_acc": "vision_accuracy",
}
"""Metrics of the original, and ours."""


class Run(NamedTuple):
    """One run of the original: where it began, what it saw and what it noted."""

    config: ModelConfig
    params: Params
    settings: LanguageOptimizerConfig
    batches: list[Batch]
    noted: dict[str, Any]

    def steps(self) -> Iterator[tuple[LanguageState, dict[str, float]]]:
        """Our states after each step, with its metrics."""
        optimizer = make_optimizer(self.settings, STEPS)
        step = jax.jit(partial(language_step, self.config, optimizer, HERE, settings=self.settings))
        state = LanguageState(jnp.int32(0), self.params, optimizer.init(self.params))
        for batch in self.batches:
            state, metrics = step(state, batch)
            yield state, {name: float(value) for name, value in metrics.items()}


def opened(name: str, folder: Path, *, noted: str = "", **changes: Any) -> Run:
    """A run by the original's settings: it took the mean of all rows' means."""
    values = json.loads((folder / "train/metrics.json").read_text())[noted or name]
    config, params = open_original(folder / values["params_from"])
    theirs = values["optimizer"]
    settings = LanguageOptimizerConfig(
        rate=theirs["lr"], init_rate=theirs["init_lr"], end_rate=theirs["end_lr"],
        warmup=theirs["lr_warmup_steps"], decay_steps=theirs["lr_decay_steps"],
        weight_decay=theirs["weight_decay"], clip=theirs["clip_gradient"],
        b1=theirs["b1"], b2=theirs["b2"], average="rows", **changes,
    )  # fmt: skip
    with np.load(folder / f"train/{name}.npz") as file:
        batches = [batch_of(dict(file), index, config) for index in range(STEPS)]
    return Run(config, params, settings, batches, values)


def batch_of(arrays: dict[str, np.ndarray], index: int, config: ModelConfig) -> Batch:
    """Ids of one vocabulary; as in the original every token sees all before it in its row."""

    def ids(side: str) -> np.ndarray:
        codes = arrays.get(f"batch{index}.{side}_vision_masks", False)
        return arrays[f"batch{index}.{side}_tokens"] + config.text_vocab * np.int32(codes)

    inputs = ids("input")
    positions = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
    segments, weights = np.ones_like(inputs), arrays[f"batch{index}.loss_masks"]
    return Batch(inputs, ids("target"), positions, segments, weights)


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, reference: Path) -> Run:
    """Each run; the weights of one are too large to ship."""
    if request.param == "text_text_b":
        return opened(request.param, request.getfixturevalue("shared") / "reference")
    return opened(request.param, reference)


def first_gradients(run: Run) -> Params:
    def local(params: Params, batch: Batch) -> Params:
        return jax.grad(language_loss, has_aux=True)(params, run.config, batch, HERE, run.settings)

    whole = PartitionSpec()
    gradients, _ = jax.jit(HERE.spread(local, whole, whole))(run.params, run.batches[0])
    return gradients


def norms(params: Params, run: Run) -> dict[str, float]:
    """The norm of each tensor that the original has, by its path there."""
    flat, text = flatten(params), run.config.text_vocab
    parts: dict[str, Any] = {NORM: flat["norm"]}
    for ours, paths in TABLES.items():
        parts |= dict(zip(paths, (flat[ours][:text], flat[ours][text:]), strict=True))
    for ours, theirs in {**KERNELS, **NORMS}.items():
        stack = flat[f"layers.{ours}"]
        parts[f"transformer/h/scan_decoder/{theirs}/kernel"] = stack
        for layer, tensor in enumerate(stack):
            parts[f"transformer/h/{layer}/{theirs}/kernel"] = tensor
    return {path: float(np.linalg.norm(np.asarray(part))) for path, part in parts.items()}


def test_steps_equal_the_original(run: Run) -> None:
    assert len(run.noted["steps"]) == STEPS
    for (state, ours), theirs in zip(run.steps(), run.noted["steps"], strict=True):
        for name in NAMES.keys() & theirs.keys():
            assert ours[NAMES[name]] == pytest.approx(theirs[name], abs=2e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
        assert ours["learning_rate"] == pytest.approx(theirs["schedule_at_step_before_update"])
        assert ours["skipped"] == 0
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)]
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
        assert norm == pytest.approx(theirs["param_norm"], rel=1e-4)
    expected = run.noted["final_tensor_norms"]
    found = norms(state.params, run)
    assert {path: found[path] for path in expected} == pytest.approx(expected, rel=1e-4)


def test_schedule_equals_the_original(run: Run) -> None:
    """It logged the rate of the step to come."""
    schedule = make_schedule(run.settings, STEPS)
    logged = [step["learning_rate"] for step in run.noted["steps"]]
    assert [float(schedule(n + 1)) for n in range(STEPS)] == pytest.approx(logged)


def test_first_gradients_equal_the_original(run: Run) -> None:
    expected = run.noted["first_step_grad_tensor_norms"]
    found = norms(first_gradients(run), run)
    assert {path: found[path] for path in expected} == pytest.approx(expected, rel=1e-4)


def test_accumulation_equals_the_original(reference: Path) -> None:
    """Two of its batches are two parts of one of ours; it noted each part by itself."""
    run = opened("text_text_a", reference, noted="text_text_a_accumulate2", accumulate=2)
    noted = run.noted["steps"]
    pairs = [jax.tree.map(lambda *x: np.concatenate(x), *run.batches[n : n + 2]) for n in (0, 2)]
    alone = opened("text_text_a", reference)
    params = run.params
    for index, (state, metrics) in enumerate(run._replace(batches=pairs).steps()):
        for part in (2 * index, 2 * index + 1):
            one = alone._replace(params=params, batches=[alone.batches[part]])
            _, ours = next(one.steps())
            assert ours["loss"] == pytest.approx(noted[part]["loss"], abs=2e-5)
            assert ours["gradient_norm"] == pytest.approx(noted[part]["gradient_norm"], rel=1e-4)
        mean = (noted[2 * index]["loss"] + noted[2 * index + 1]["loss"]) / 2
        assert metrics["loss"] == pytest.approx(mean, abs=2e-5)
        params = state.params
    expected = run.noted["final_tensor_norms"]
    found = norms(params, run)
    assert {path: found[path] for path in expected} == pytest.approx(expected, rel=1e-4)


def test_losses_and_accuracies_equal_the_original(reference: Path) -> None:
    """On logits of its own; rows without targets and weights between 0 and 1 among them."""
    with np.load(reference / "loss.npz") as stored:
        golden = dict(stored)
    golden["none"] = np.ones_like(golden["mask"])
    vocab = golden["logits"].shape[-1]
    config = ModelConfig(
        text_vocab=vocab, hidden=vocab, intermediate=8, layers=1, heads=1, kv_heads=1, head_dim=8,
        max_length=32,
    )  # fmt: skip

    def local(hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        balanced, _ = balance(config, batch, "rows")
        # With the identity as output head the hidden states are the logits.
        losses, _, right = token_losses(config, jnp.eye(vocab), hidden, batch.targets)
        return (losses * balanced.weights).sum(), (right * balanced.weights).sum()

    whole = PartitionSpec()
    mean = jax.jit(HERE.spread(local, whole, whole))
    ids = golden["tokens"]
    for case in ("none", "mask", "mask_with_empty_row", "fractional_mask"):
        loss, accuracy = mean(golden["logits"], Batch(ids, ids, ids, ids, golden[case]))
        np.testing.assert_allclose(loss, golden[f"{case}.loss"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(accuracy, golden[f"{case}.accuracy"], atol=1e-6, rtol=0)


# Number by number, with what is too large to ship


class Stored:
    """Tensors by the original's paths, to be read as those of one of its files."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.path, self.paths = "", [tuple(path.split("/")) for path in arrays]
        self._arrays = arrays

    def __getitem__(self, keys: tuple[str, ...]) -> StoredTensor:
        return StoredTensor(self._arrays["/".join(keys)])

    def release(self) -> None: ...


class StoredTensor(NamedTuple):
    whole: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    def read(self, layer: int | None = None) -> np.ndarray:
        return self.whole if layer is None else self.whole[layer]


def ours_of(stored: Mapping[str, np.ndarray], below: str, run: Run) -> dict[str, np.ndarray]:
    """Tensors stored below a path, by our names and in our orientation."""
    names = [name for name in stored if name.startswith(below)]
    arrays = Stored({name.removeprefix(below): stored[name] for name in names})
    sizes = OriginalSizes(run.config.heads, run.config.max_length, run.config.rope_theta)
    weights = LwmJaxWeights(arrays, sizes)  # type: ignore[arg-type]
    return dict(read_stacked(weights, run.config, np.dtype(np.float32)))


def assert_near(ours: Params, theirs: dict[str, np.ndarray], tolerance: float) -> None:
    flat = flatten(ours)
    assert flat.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(flat[name], tensor, atol=tolerance, rtol=0, err_msg=name)


def test_every_first_gradient_equals_the_original(shared: Path) -> None:
    run = opened("text_text_a", shared / "reference")
    with np.load(shared / "reference/train/text_text_a.npz") as stored:
        assert_near(first_gradients(run), ours_of(stored, "grad0/", run), 2e-5)


def test_every_final_weight_of_vision_equals_the_original(shared: Path) -> None:
    run = opened("vision_vision_small", shared / "reference")
    *_, (state, _) = run.steps()
    with np.load(shared / "reference/train/vision_vision_small.npz") as stored:
        assert_near(state.params, ours_of(stored, "final/", run), 1e-4)


def test_every_final_weight_and_moment_of_text_equals_the_original(shared: Path) -> None:
    """Its whole state of training after the last step."""
    run = opened("text_text_a", shared / "reference")
    *_, (state, _) = run.steps()
    file = read_streaming(shared / "reference/train/text_a_streaming_train_state")
    stored = {"/".join(keys): array for keys, array in file.items()}
    assert_near(state.params, ours_of(stored, "params/params/", run), 1e-4)
    adam = optax.tree.get(state.moments, "ScaleByAdamState")
    for name, tolerance in (("mu", 2e-6), ("nu", 1e-7)):
        theirs = ours_of(stored, f"opt_state/1/0/{name}/params/", run)
        assert_near(getattr(adam, name), theirs, tolerance)
    assert int(state.step) == stored["step"] == int(adam.count) == STEPS
