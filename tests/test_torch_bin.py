"""PyTorch's weight files: every number comes out exactly, and nothing in them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from test_formats import HOSTILE_PICKLES

from lwm_core.errors import FormatError
from lwm_core.formats.stored_zip import MAX_TABLE
from lwm_core.formats.torch_bin import INDEX, WEIGHTS, TorchFile, TorchFiles
from lwm_core.tensor_files import TensorFiles

WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)
TENSORS = {
    **{
        kind: np.arange(6).reshape(2, 3).astype(kind)
        for kind in (
            *("float64", "float32", "float16", "bfloat16", "bool"),
            *("int64", "int32", "int16", "int8", "uint8"),
        )
    },
    "parameter": WHOLE[:1],
    "whole": WHOLE,
    "transposed": WHOLE.T,
    "rows": WHOLE[1:3],
    "columns": WHOLE[:, 1:6:2],
    "scalar": WHOLE[2, 3],
    "axes": WHOLE.reshape(2, 3, 4).transpose(2, 0, 1),
    "empty": np.zeros((0, 3), np.float32),
}
"""What `reference/torch/kinds.bin` holds, beside the state of a module."""


# What PyTorch wrote


@pytest.mark.parametrize("folder", ["bin", "bin_bf16_sharded"])
def test_hugging_face_directories_equal_safetensors(
    reference: Path, shared: Path, folder: str
) -> None:
    stored = TorchFiles(shared / "reference/hf" / folder)
    expected = TensorFiles(reference / "hf/safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert set(stored.names) - extra == set(expected.names)
    for name, shape in shapes_of(reference / "hf/safetensors").items():
        tensor = stored.read(name, shape)
        assert tensor.dtype == (np.float32 if folder == "bin" else ml_dtypes.bfloat16)
        same_bits(tensor, expected.read(name, shape).astype(tensor.dtype))


def test_kinds_of_tensors(reference: Path) -> None:
    """All types of numbers; views by offset and strides into one storage; parameters."""
    file = TorchFile(reference / "torch/kinds.bin")
    assert set(file.names) == {*TENSORS, "0.weight", "0.bias"}
    for name, expected in TENSORS.items():
        assert file.shape(name) == expected.shape
        same_bits(file.tensor(name), expected)


def test_a_file_from_before_the_zip_says_what_to_do(reference: Path) -> None:
    message = refused_file(reference / "torch/legacy.bin")
    assert "before 1.6" in message
    assert "torch.load" not in message  # it would run what the file says
    assert "as safetensors" in message


def shapes_of(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in the headers of safetensors."""
    found = {}
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        header.pop("__metadata__", None)
        found |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return found


def same_bits(tensor: np.ndarray, expected: np.ndarray) -> None:
    assert tensor.dtype == expected.dtype
    assert tensor.shape == expected.shape
    assert tensor.tobytes() == expected.tobytes()


# Files made by hand


def literal(value: object) -> bytes:
    """The operations that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(kind: str = "FloatStorage", key: object = "0", size: object = 6) -> bytes:
    name = f"ctorch\n{kind}\n".encode()
    return b"(" + literal("storage") + name + literal(key) + literal("cpu") + literal(size) + b"tQ"


def tensor(
    stored: bytes | None = None,
    offset: object = 0,
    shape: object = (2, 3),
    strides: object = (3, 1),
) -> bytes:
    arguments = storage() if stored is None else stored
    arguments += literal(offset) + literal(shape) + literal(strides) + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def table(value: bytes) -> bytes:
    """A pickle of a dict with one entry, `t`."""
    return b"\x80\x02}" + literal("t") + value + b"s."


NUMBERS = np.arange(6, dtype=np.float32)


def zipped(
    content: bytes,
    data: bytes = NUMBERS.tobytes(),
    others: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A file as PyTorch writes it, with one storage, `0`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, bytes_ in {"m/data.pkl": content, "m/data/0": data, **(others or {})}.items():
            archive.writestr(name, bytes_)
    return file.getvalue()


def write(directory: Path, content: bytes) -> Path:
    path = directory / WEIGHTS
    path.write_bytes(content)
    return path


def refused_file(path: Path) -> str:
    """The message of the error, which names the file in one line."""
    with pytest.raises(FormatError) as caught:
        TorchFile(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def refused_tensor(directory: Path) -> str:
    """The message of the error that the reader of `t` gets, at the latest."""
    with pytest.raises(FormatError) as caught:
        TorchFiles(directory).read("t", (2, 3))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_the_hostile_files_would_be_without_malice(tmp_path: Path) -> None:
    metadata = b"ccollections\nOrderedDict\n)R" + literal({"_metadata": {"version": 1}}) + b"b"
    ordered = b"\x80\x02" + metadata + literal("t") + tensor() + b"s."
    for content in (table(tensor()), ordered):
        write(tmp_path, zipped(content, others={"m/byteorder": b"little"}))
        np.testing.assert_array_equal(TorchFiles(tmp_path).read("t", (2, 3)), NUMBERS.reshape(2, 3))


def test_reading_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Each file is parsed once, and what was read is let go."""
    size = 1 << 20
    places = {f"t{n}": f"model-{n}.bin" for n in range(4)}
    for name, file in places.items():
        content = table(tensor(storage(size=size), shape=(size,), strides=(1,)))
        content = content.replace(literal("t"), literal(name))
        (tmp_path / file).write_bytes(zipped(content, bytes(4 * size)))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    tracemalloc.start()
    files = TorchFiles(tmp_path)
    for name in files.names:
        assert not files.read(name, (size,)).any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 4 * size


def test_missing_or_of_another_shape(tmp_path: Path) -> None:
    assert "missing" in refused_tensor(tmp_path)
    write(tmp_path, zipped(table(tensor())))
    files = TorchFiles(tmp_path)
    with pytest.raises(FormatError, match="other is missing from the weights"):
        files.read("other", (2, 3))
    with pytest.raises(FormatError, match=r"shape \(2, 3\), config.json says \(3, 2\)"):
        files.read("t", (3, 2))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"s": WEIGHTS, "t": "other.bin"}}))
    files = TorchFiles(tmp_path)
    with pytest.raises(FormatError, match="s is not there"):
        files.read("s", (2, 3))
    with pytest.raises(FormatError, match=r"other\.bin: missing"):
        files.read("t", (2, 3))


def test_a_file_that_shrinks_or_goes_after_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path, zipped(table(tensor())))
    files = TorchFiles(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="cut off"):
        files.read("t", (2, 3))
    path.unlink()
    with pytest.raises(FormatError, match="can't be read"):
        files.read("t", (2, 3))


@pytest.mark.parametrize(
    "file",
    [
        *("../t.bin", "/etc/passwd", "..", ".", "", "a/../t.bin", "a\\t.bin", "t\0.bin"),
        *("t.bin\n", "\ud800.bin", "x" * 5000, ".hidden", 3, None, ["t.bin"]),
    ],
    ids=lambda file: repr(file)[:20],
)
def test_indexes_name_files_beside_them_only(tmp_path: Path, file: object) -> None:
    (tmp_path / "a").mkdir()
    inside = write(tmp_path / "a", zipped(table(tensor())))
    inside.rename(tmp_path / "t.bin")
    (tmp_path / "a" / INDEX).write_text(json.dumps({"weight_map": {"t": file}}))
    assert "weight_map" in refused_tensor(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000, "1" * 9999])
def test_damaged_indexes(tmp_path: Path, text: str) -> None:
    write(tmp_path, zipped(table(tensor())))
    (tmp_path / INDEX).write_text(text)
    assert INDEX in refused_tensor(tmp_path)


# Hostile files

GLOBALS = {
    "os.system": b"cos\nsystem\n" + literal("true") + b"\x85R",
    "builtins.eval": b"cbuiltins\neval\n" + literal("1") + b"\x85R",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n"
    + literal("")
    + b"\x85R",
    "torch.storage.UntypedStorage": storage().replace(
        b"torch\nFloatStorage", b"torch.storage\nUntypedStorage"
    ),
    "torch._utils._rebuild_tensor_v3": b"ctorch._utils\n_rebuild_tensor_v3\n)R",
    "torch.ComplexFloatStorage": tensor(storage("ComplexFloatStorage")),
}


@pytest.mark.parametrize("name", GLOBALS)
def test_names_that_weights_never_need(tmp_path: Path, name: str) -> None:
    message = refused_file(write(tmp_path, zipped(table(GLOBALS[name]))))
    assert f"it asks for '{name}', which weights never need" in message


TENSORS_REFUSED = {
    "offset too large": tensor(offset=1),
    "offset negative": tensor(offset=-1),
    "offset a truth value": tensor(offset=True),
    "stride too large": tensor(strides=(4, 1)),
    "stride negative": tensor(offset=5, strides=(-3, -1)),
    "strides of another length": tensor(strides=(1,)),
    "stride a text": tensor(strides=(3, "1")),
    "shape too large": tensor(shape=(3, 3)),
    "shape absurd": tensor(shape=(1 << 40, 1 << 40), strides=(0, 0)),
    "shape beyond all numbers": tensor(shape=(1 << 8000, 3)),
    "shape negative": tensor(shape=(-2, -3)),
    "shape a list": tensor(shape=[2, 3]),
    "shape of many axes": tensor(shape=(1,) * 9, strides=(1,) * 9),
    "one number repeated": tensor(shape=(7,), strides=(0,)),
    "one number repeated without end": tensor(shape=(1 << 47,), strides=(0,)),
    "empty, behind the end": tensor(offset=7, shape=(0,), strides=(1,)),
    "too few numbers": tensor(storage(size=5)),
    "too many numbers": tensor(storage(size=7)),
    "far too many numbers": tensor(storage(size=1 << 60)),
    "negative count": tensor(storage(size=-6)),
    "count a text": tensor(storage(size="6")),
    "numbers of another width": tensor(storage("DoubleStorage")),
    "no such storage": tensor(storage(key="1")),
    "storage by a path": tensor(storage(key="../data/0")),
    "storage by a number": tensor(storage(key=0)),
    "storage of no kind": tensor(literal(("storage", "FloatStorage", "0", "cpu", 6)) + b"Q"),
    "storage of a function": tensor(
        storage().replace(b"torch\nFloatStorage", b"torch._utils\n_rebuild_tensor_v2")
    ),
    "not a storage": tensor(literal(("module", "0")) + b"Q"),
    "id a text": tensor(b"Pstorage\n"),
    "tensor of a tensor": tensor(tensor()),
    "tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "storage called": b"ctorch\nFloatStorage\n)R",
    "parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n)R",
    "parameter of a text": b"ctorch._utils\n_rebuild_parameter\n" + literal("x") + b"\x85R",
    "OrderedDict of pairs": b"ccollections\nOrderedDict\n](" + literal("a") + b"Nta\x85R",
    "OrderedDict with a list as state": b"ccollections\nOrderedDict\n)R]b",
    "tensor with a state": tensor() + b"}b",
    "huge text": b"\x8d" + struct.pack("<Q", 1 << 40) + b"x",
    "huge bytes": b"\x8e" + struct.pack("<Q", 1 << 62) + b"x",
    "huge integer": b"\x8b\xff\xff\xff\x7f",
    "cut off": tensor()[:-9],
    "nested": literal({"t": [1]}),
}


@pytest.mark.parametrize("name", TENSORS_REFUSED)
def test_hostile_tensors(tmp_path: Path, name: str) -> None:
    write(tmp_path, zipped(table(TENSORS_REFUSED[name])))
    tracemalloc.start()
    refused_tensor(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles(tmp_path: Path, name: str) -> None:
    write(tmp_path, zipped(HOSTILE_PICKLES[name]))
    refused_tensor(tmp_path)


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


GOOD = zipped(table(tensor()))
FILES = {
    "empty": b"",
    "text": b"These are no weights at all.",
    "zeros": bytes(1000),
    "a zip of nothing": b"PK\5\6" + bytes(18),
    "end alone": GOOD[-22:],
    "compressed": zipped(table(tensor()), compression=zipfile.ZIP_DEFLATED),
    "a bomb": zipped(table(tensor()), bytes(1 << 22), compression=zipfile.ZIP_DEFLATED),
    "big-endian": zipped(table(tensor()), others={"m/byteorder": b"big"}),
    "two tables": zipped(table(tensor()), others={"n/data.pkl": b""}),
    "no table": patched(GOOD, b"m/data.pkl", b"m/data.pkk"),
    "table not in a folder": patched(GOOD, b"m/data.pkl", b"mmdata.pkl"),
    "table too large": zipped(b"}" * (MAX_TABLE + 1)),
    "contents elsewhere": patched(GOOD, b"PK\3\4", b"PK\3\5"),
    "contents too large": zipped(table(tensor()), bytes(2 * MAX_TABLE))[:-10]
    + struct.pack("<IIH", MAX_TABLE + 1, 0, 0),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, FILES[name])
    tracemalloc.start()
    refused_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path / "pipe", tmp_path / WEIGHTS):
        assert "missing" in refused_file(path)


def test_truncated_anywhere(reference: Path, tmp_path: Path) -> None:
    content = (reference / "torch/kinds.bin").read_bytes()
    for size in range(0, len(content), 61):
        refused_file(write(tmp_path, content[:size]))


def test_damaged_anywhere(reference: Path, tmp_path: Path) -> None:
    """Damage in numbers goes unseen; any other gives an error of ours, or tensors that fit."""
    content = (reference / "torch/kinds.bin").read_bytes()
    draw = random.Random(0)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(500):
        write(tmp_path, damaged(content, draw))
        try:
            files = TorchFiles(tmp_path)
            for name in TENSORS.keys() & files.names:
                assert files.read(name, TENSORS[name].shape).shape == TENSORS[name].shape
            outcomes["read"] += 1
        except FormatError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, a piece put in or over another, or the end cut off."""
    changed = bytearray(content)
    kind = draw.choice(["bytes", "bytes", "bytes", "over", "into", "end"])
    size = draw.randrange(1, 64)
    source, target = (draw.randrange(len(content) - size) for _ in range(2))
    if kind == "end":
        del changed[target:]
    elif kind == "bytes":
        for _ in range(draw.randrange(1, 6)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    else:
        changed[target : target + size * (kind == "over")] = content[source : source + size]
    return bytes(changed)
