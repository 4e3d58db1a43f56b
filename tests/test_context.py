"""Contexts: what is read once answers as if it were read each time, from memory and from files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lwm_core import decode, load
from lwm_core.context import Context, check_space, open_context, save_context
from lwm_core.errors import ContextTooLong, DoesNotFit, FormatError, OutputError, UsageError
from lwm_core.execution import Execution
from lwm_core.generate import Message, opening, read_context, reply
from lwm_core.load import LoadedModel, load_model
from lwm_core.mesh import make_mesh
from lwm_core.sampling import Sampling
from lwm_core.source import open_source
from lwm_core.types import Progress
from lwm_core.weights import read_stacked

GREEDY = Sampling(temperature=0.0)
CLIP = np.arange(128, dtype=np.int32).reshape(2, 64) % 32
BOOK = Message("user", "notes.txt:\nEmma is clever. Mr Knightley is rich.\n", (CLIP,))
QUESTIONS = ("Who is Emma?", "And Mr Knightley?")
PLACES = {"dp=1": 1, "sp=2,tp=2": 4, "sp=3": 3}
"""Meshes, and how many devices they take."""


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


def placed(model: LoadedModel, mesh: str, cache: str | None = None) -> LoadedModel:
    """The model on another mesh, with keys and values in another format."""
    how = Execution(make_mesh(mesh, jax.devices()[: PLACES[mesh]]))
    tensors = read_stacked(open_source(model.name).weights, model.config)
    params = load.placed(tensors, model.config, how)
    return replace(model, how=how, params=params, cache_dtype=jnp.dtype(cache or "float32"))


@pytest.fixture(scope="module")
def saved(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contexts") / "book.safetensors"
    save_context(path, tiny, read_context(tiny, opening(tiny, BOOK)))
    return path


def ask(model: LoadedModel, question: str, context: Context | None = None) -> str:
    asked = [Message("user", question)]
    begun = opening(model, BOOK)
    return "".join(
        reply(model, asked, sampling=GREEDY, max_tokens=24, opening=begun, context=context)
    )


@pytest.mark.parametrize(
    ("mesh", "cache"),
    [("dp=1", None), slow("sp=2,tp=2", None), ("sp=3", "int8"), slow("dp=1", "bfloat16")],
)
def test_answers_are_those_without_a_context(
    mesh: str, cache: str | None, tiny: LoadedModel, tmp_path: Path
) -> None:
    """In memory, where the second question forgets the first, and from a file."""
    model = placed(tiny, mesh, cache)
    plain = [ask(model, question) for question in QUESTIONS]
    context = read_context(model, opening(model, BOOK))
    save_context(tmp_path / "x", model, context)
    assert [ask(model, question, context) for question in QUESTIONS] == plain
    opened = [ask(model, one, open_context(tmp_path / "x", model)) for one in QUESTIONS]
    assert opened == plain


def test_another_mesh_opens_it(saved: Path, tiny: LoadedModel) -> None:
    plain = ask(tiny, QUESTIONS[0])
    for mesh in PLACES:
        model = placed(tiny, mesh)
        assert ask(model, QUESTIONS[0], open_context(saved, model)) == plain


def test_int8_is_close(tiny: LoadedModel) -> None:
    """Each number is off by half a step of its run at most."""
    ids = opening(tiny, BOOK)
    exact, rounded = (
        read_context(model, ids).cache for model in (tiny, placed(tiny, "dp=1", "int8"))
    )
    for plain, eight in ((exact.keys, rounded.keys), (exact.values, rounded.values)):
        first = np.asarray(plain[0])  # of later layers the inputs differ too
        values, scales = map(np.asarray, eight[0])
        restored = values.astype(np.float32) * scales[..., None]
        assert (np.abs(first - restored) <= scales[..., None] * 0.5001).all()
        assert values.any()


@pytest.mark.parametrize(("cache", "head"), [(None, 4 * 8), ("bfloat16", 2 * 8), ("int8", 8 + 4)])
def test_a_file_holds_the_tokens_and_no_more(
    cache: str | None, head: int, tiny: LoadedModel, tmp_path: Path
) -> None:
    model, path = placed(tiny, "dp=1", cache), tmp_path / "x.safetensors"
    ids = opening(model, BOOK)
    save_context(path, model, read_context(model, ids))
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    layers, heads = 2, 2
    assert path.stat().st_size == header + len(ids) * (4 + 2 * layers * heads * head)
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("ids").tolist() == ids
        assert file.metadata()["name"] == model.name


def test_only_what_is_new_is_read(tiny: LoadedModel) -> None:
    """A turn of a conversation reads the last answer's end and the question."""
    read: list[int] = []

    def note(event: Progress) -> None:
        if event.phase == "reading":
            read.append(event.total)

    context, turns = Context(), [Message("user", "a long story " * 20)]
    for question in QUESTIONS:
        options = {"sampling": GREEDY, "max_tokens": 8, "on_progress": note}
        whole = "".join(reply(tiny, turns, **options))
        assert "".join(reply(tiny, turns, context=context, **options)) == whole
        turns += [Message("assistant", whole), Message("user", question)]
    assert read[0] == read[1] >= 128
    assert read[2] >= 128
    assert read[3] < 128


def test_reading_may_stop_anywhere(tiny: LoadedModel) -> None:
    context = read_context(tiny, opening(tiny, BOOK))
    stream = reply(
        tiny, [Message("user", "x")], sampling=GREEDY, max_tokens=200,
        opening=opening(tiny, BOOK), context=context,
    )  # fmt: skip
    next(stream)
    stream.close()
    assert ask(tiny, QUESTIONS[0], context) == ask(tiny, QUESTIONS[0])
    for array in jax.tree.leaves(context.cache):
        array.delete()  # as a program that was interrupted leaves them
    assert ask(tiny, QUESTIONS[0], context) == ask(tiny, QUESTIONS[0])


def test_what_was_read_before_a_stop_is_kept(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a book: only the rest of it is read again."""
    monkeypatch.setattr(decode, "PREFILL_CHUNKS", (64,))
    prompt, context = [1, *range(3, 303)], Context()
    parts: list[int] = []

    def read_on(stop: int) -> list[np.ndarray]:
        def note(progress: Progress) -> None:
            parts.append(progress.done)
            if len(parts) == stop:
                raise KeyboardInterrupt

        options = {"modality": "text", "sampling": GREEDY, "max_tokens": 5, "stops": False}
        return list(decode.generate(tiny, [prompt], **options, context=context, on_progress=note))

    with pytest.raises(KeyboardInterrupt):
        read_on(stop=3)
    assert context.ids == prompt[: 3 * 64 - (5 * 64 - 301)]  # the first chunk is filled up
    parts.clear()
    ids = read_on(stop=0)
    assert parts[:2] == [64, 128]
    context = Context()
    assert np.array_equal(np.concatenate(ids, 1), np.concatenate(read_on(stop=0), 1))


def test_what_is_forgotten_leaves_room(tiny: LoadedModel) -> None:
    """Questions that are asked and forgotten again take no more slots each time."""
    context = read_context(tiny, opening(tiny, BOOK))
    lengths = []
    for question in QUESTIONS * 2:
        ask(tiny, question, context)
        lengths.append(context.cache.positions.shape[1])
    assert lengths[-1] == lengths[len(QUESTIONS) - 1]


def test_a_context_is_of_one_prompt(tiny: LoadedModel) -> None:
    with pytest.raises(ValueError, match="one prompt"):
        next(
            decode.generate(
                tiny, [[1], [1]], modality="text", sampling=GREEDY, max_tokens=1, context=Context()
            )
        )


# Files


def test_of_another_model(saved: Path, tiny: LoadedModel, tiny_model: Path) -> None:
    params = jax.tree.map(lambda weight: weight * 1.01, tiny.params)
    trained = replace(tiny, params=params, name="other")
    with pytest.raises(UsageError, match="weights are not those of other"):
        open_context(saved, trained)
    for option in ("dtype", "cache"):
        model = load_model(str(tiny_model), **{option: "bfloat16"})
        with pytest.raises(UsageError, match=f"--{option} float32, not as"):
            open_context(saved, model)


def test_longer_than_the_model_may_hold(saved: Path, tiny: LoadedModel) -> None:
    short = replace(tiny, context=100)
    with pytest.raises(ContextTooLong, match="longer --ctx"):
        open_context(saved, short)
    with pytest.raises(ContextTooLong, match="leave no room"):
        read_context(short, opening(tiny, BOOK))


def damaged(whole: bytes) -> dict[str, bytes]:
    size = int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8 : 8 + size])

    def with_header(change: Callable[[dict], object]) -> bytes:
        new = json.loads(json.dumps(table))
        change(new)
        text = json.dumps(new).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size :]

    huge = [1 << 60, 1 << 60, 8]
    return {
        "empty": b"",
        "text": b"Emma Woodhouse, handsome, clever, and rich",
        "truncated": whole[:-1],
        "only a header": whole[: 8 + size],
        "header size": (1 << 62).to_bytes(8, "little") + whole[8:],
        "shape": with_header(lambda t: t["layers.0.keys"].update(shape=huge)),
        "negative": with_header(lambda t: t["layers.0.keys"].update(shape=[-1, 2, 8])),
        "dtype": with_header(lambda t: t["layers.0.keys"].update(dtype="I32")),
        "unknown dtype": with_header(lambda t: t["layers.0.keys"].update(dtype="PICKLE")),
        "missing": with_header(lambda t: t.pop("layers.1.values")),
        "ids": with_header(lambda t: t.update(ids=t.pop("layers.1.values"))),
        "no metadata": with_header(lambda t: t.pop("__metadata__")),
        "other kind": with_header(lambda t: t["__metadata__"].update(file="weights")),
        "cache": with_header(lambda t: t["__metadata__"].update(cache="object")),
        "name": with_header(lambda t: t["__metadata__"].update(name="nano\x1b]0;x\x07")),
        "long name": with_header(lambda t: t["__metadata__"].update(name="x" * 5000)),
        "no name": with_header(lambda t: t["__metadata__"].update(name="")),
        "tokens": with_header(lambda t: t["__metadata__"].update(tokens="0")),
        "offsets": with_header(lambda t: t["ids"].update(data_offsets=[0, 1 << 50])),
    }


@pytest.mark.parametrize(
    "how",
    ["empty", "text", "truncated", "only a header", "header size", "shape", "negative", "dtype",
     "unknown dtype", "missing", "ids", "no metadata", "other kind", "cache", "name", "long name",
     "no name", "tokens", "offsets"],
)  # fmt: skip
def test_hostile_files(how: str, saved: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(damaged(saved.read_bytes())[how])
    with pytest.raises(FormatError, match="is not whole, or no context of lwm") as caught:
        open_context(path, tiny)
    assert "\n" not in str(caught.value)


def test_other_ids_under_the_same_digest(saved: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    tensors = load_file(saved)
    tensors["ids"][3] += 1
    with safe_open(saved, "numpy") as file:
        save_file(tensors, tmp_path / "x", file.metadata())
    with pytest.raises(FormatError):
        open_context(tmp_path / "x", tiny)


def test_no_file(tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        open_context(tmp_path / "missing", tiny)
    with pytest.raises(UsageError, match="is no file"):
        open_context(tmp_path, tiny)
    with pytest.raises(OutputError, match="can't write"):
        save_context(tmp_path / "no/x", tiny, read_context(tiny, [1, 2, 3]))


def test_a_full_disk(
    saved: Path, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured beforehand is what the file then takes, but for its header."""
    whole = saved.read_bytes()
    size = len(whole) - 8 - int.from_bytes(whole[:8], "little")
    tokens = len(opening(tiny, BOOK))
    monkeypatch.setattr("lwm_core.context.free_bytes", lambda _: size)
    check_space(tmp_path / "new", tiny, tokens)
    monkeypatch.setattr("lwm_core.context.free_bytes", lambda _: size - 1)
    with pytest.raises(OutputError, match=r"new needs .* GB left; free some space"):
        check_space(tmp_path / "new", tiny, tokens)


KILLED = """
import os, signal, sys
from lwm_core import context
from lwm_core.generate import read_context
from lwm_core.load import load_model

model = load_model(sys.argv[1])
whole = context._taken_out
def half(*args):
    for count, tensor in enumerate(whole(*args)):
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield tensor
context._taken_out = half
context.save_context(context.Path(sys.argv[2]), model, read_context(model, [1, 2, 3]))
"""


def test_killed_while_it_is_written(tiny_model: Path, saved: Path, tmp_path: Path) -> None:
    """What was there stays; what was not, is not."""
    there, missing = tmp_path / "there.safetensors", tmp_path / "missing.safetensors"
    there.write_bytes(saved.read_bytes())
    for path in (there, missing):
        command = [sys.executable, "-c", KILLED, str(tiny_model), str(path)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert there.read_bytes() == saved.read_bytes()
    assert not missing.exists()
    assert any(name.startswith(".lwm-") for name in os.listdir(tmp_path))  # it was at it


# How long


def test_a_context_that_memory_can_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "free_memory", lambda devices: 300 << 20)
    nano = partial(load_model, "nano", dtype="float32")

    def longest(**options: str) -> int:
        with pytest.raises(DoesNotFit) as caught:
            nano(context=1 << 20, **options)
        assert ("--cache int8 holds more" in str(caught.value)) != bool(options)
        return int(str(caught.value).split("a context of ")[1].split()[0].replace(",", ""))

    fits = longest()
    assert nano(context=fits).context == fits
    with pytest.raises(DoesNotFit):
        nano(context=2 * fits)
    assert longest(cache="int8") > 1.5 * fits


def test_beyond_what_it_was_made_for(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), context=3000)
    prompt = [1, *range(3, 300)] * 5
    ids = decode.generate(
        model, [prompt], modality="text", sampling=GREEDY, max_tokens=4, stops=False
    )
    assert sum(part.shape[1] for part in ids) == 4


def test_an_unknown_cache(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="cache 'int4' is unknown; choose one of float32"):
        load_model(str(tiny_model), cache="int4")
