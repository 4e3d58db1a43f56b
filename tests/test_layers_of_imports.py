"""The layers of the package: imports point down, the core never speaks, nothing runs from files."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import lwm_cli
import lwm_core

CORE = Path(lwm_core.__file__).parent
CLI = Path(lwm_cli.__file__).parent

LAYERS = (
    {"errors", "types", "wording", "backend"},
    {"config", "registry", "atomic", "hardware", "quantize", "four_bits", "distributed"},
    {"axes", "execution", "collectives", "integers"},
    {"kernels"},
    {"costs", "mesh", "ring", "cache"},
    {"plan", "attention", "memory", "number_formats"},
    {"presets"},
    {"layers", "convolution", "parameters", "tokenizer", "tensor_files", "world", "media"},
    {"tokenizer_json", "weight_tree"},
    {"vocabulary", "chat_templates"},
    {"tokens", "transformer", "vqgan", "sampling", "hub"},
    {"frame_batches"},
    {"weights"},
    {"formats", "rounded"},
    {"checkpoint", "data", "download"},
    {"lora"},
    {"source"},
    {"load"},
    {"identity"},
    {"context"},
    {"decode"},
    {"generate"},
    {"needle", "convert", "tokenize"},
    {"train"},
    {"ahead", "bench"},
)
"""Modules and packages of the core from the bottom up; each uses only what stands below it."""

STANDARD_LIBRARY_ONLY = (
    "errors",
    "config",
    "registry",
    "hardware",
    "axes",
    "costs",
    "plan",
    "number_formats",
)
FORBIDDEN_CALLS = {"print", "input", "exit", "quit", "eval", "exec", "compile", "__import__"}
WRITES_PICKLES = "lwm_core/formats/lwm_jax_writer.py"
"""It writes the original's format, which is a pickle, and reads none."""
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "typer", "rich"}

ROOT = Path(__file__).parents[1]

CORE_FILES = sorted(CORE.rglob("*.py"))
CLI_FILES = sorted(CLI.rglob("*.py"))


def part(path: Path) -> str:
    """The module or package of the core that a file belongs to."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports when it runs, wherever that stands in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used_parts(path: Path) -> set[str]:
    """Parts of the core that a file uses."""
    names = (name.split(".") for name in imports(path))
    return {name[1] for name in names if name[0] == "lwm_core" and len(name) > 1}


def relative(path: Path) -> str:
    return str(path.relative_to(CORE.parent))


def test_every_part_has_a_layer() -> None:
    parts = {part(path) for path in CORE_FILES} - {"__init__"}
    assert parts == set().union(*LAYERS)


@pytest.mark.parametrize("path", CORE_FILES, ids=relative)
def test_imports_point_down(path: Path) -> None:
    height = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    own = part(path)
    for used in used_parts(path) - {own}:
        assert height[used] < height[own], f"{own} imports {used}"


@pytest.mark.parametrize("path", CORE_FILES, ids=relative)
def test_the_core_neither_speaks_nor_runs_what_it_reads(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    writes = {"pickle"} if relative(path) == WRITES_PICKLES else set()
    assert not roots & (FORBIDDEN_MODULES | {"lwm_cli"}) - writes
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert node.value.id != "pickle" or node.attr == "dump"
            assert name not in {"sys.exit", "sys.stdout", "sys.stderr", "os._exit", "os.system"}


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_values_need_the_standard_library_only(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(CORE / f"{name}.py")}
    assert roots <= sys.stdlib_module_names | {"lwm_core"}


def test_packages_that_are_imported_are_declared() -> None:
    """Those that come along with another today may not come along tomorrow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names_in(lines: list[str]) -> set[str]:
        return {re.match(r"[\w-]+", line)[0].replace("_", "-") for line in lines}

    declared = names_in(project["dependencies"])
    optional = project["optional-dependencies"]
    extras = names_in(optional["logs"] + optional["data"])
    owners = packages_distributions()
    roots = {name.split(".")[0] for path in (*CORE_FILES, *CLI_FILES) for name in imports(path)}
    used = {
        root: {owner.lower().replace("_", "-") for owner in owners.get(root, [root])}
        for root in roots - sys.stdlib_module_names - {"lwm_core", "lwm_cli"}
    }
    for root, names in used.items():
        assert (declared | extras) & names, root
    assert declared <= set().union(*used.values())


@pytest.mark.parametrize("path", [*CORE_FILES, *CLI_FILES], ids=relative)
def test_every_file_says_its_idea(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
