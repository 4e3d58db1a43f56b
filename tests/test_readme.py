"""What README shows exists: files, commands, options, recipes, models, links, the library."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from lwm_cli.app import app
from lwm_cli.train import complete_recipe
from lwm_core import registry

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "benchmarks/README.md")
GROUP = typer.main.get_command(app)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)


def calls(program: str) -> list[list[str]]:
    """The arguments of every call of `program` in the shell blocks of all pages."""
    lines = [line for page in PAGES for line in "".join(blocks(page, "sh")).splitlines()]
    commands = [shlex.split(part) for line in lines for part in re.split(r" && | \| ", line)]
    return [arguments for name, *arguments in commands if Path(name).name == program]


def tree() -> list[str]:
    """The paths in the file tree; those of folders end in a slash."""
    paths: list[str] = []
    folders: list[str] = []
    for line in blocks("README.md", "text")[0].splitlines():
        indent, name = re.match(r"( *)(\S+)  +\S", line).groups()
        folders = folders[: len(indent) // 2]
        paths.append("".join([*folders, name]))
        if name.endswith("/"):
            folders.append(name)
    return paths


@pytest.mark.parametrize("path", tree())
def test_what_the_tree_names_is_there(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_the_tree_names_every_module() -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("lwm_cli", "lwm_core")
        for path in (ROOT / package).rglob("*.py")
        if not path.name.startswith("__")
    }
    assert modules - set(tree()) == set()


def test_it_leads_with_a_film_and_the_tests_in_a_line_each() -> None:
    film, tests = blocks("README.md", "sh")[:2]
    for block in (film, tests):
        assert block.count("\n") == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
    assert film.endswith('&& .venv/bin/lwm film "fireworks over a city" -o out.mp4\n')
    assert tests.endswith("-e '.[test]' && .venv/bin/python -m pytest -n auto\n")


@pytest.mark.parametrize("arguments", calls("lwm"), ids=" ".join)
def test_the_program_takes_the_commands(arguments: list[str]) -> None:
    name, *rest = arguments
    with GROUP.commands[name].make_context(name, rest) as context:
        if name == "train":
            assert context.params["config"] in complete_recipe("")
        if name == "download" and context.params["name"]:
            assert registry.get(context.params["name"])


def test_every_command_is_shown() -> None:
    assert {arguments[0] for arguments in calls("lwm")} == set(GROUP.commands)


def test_options_in_the_text_are_known() -> None:
    text = re.sub(r"^```.*?^```$", "", read("README.md"), flags=re.DOTALL | re.MULTILINE)
    known = {"-h"} | {
        option
        for command in (GROUP, *GROUP.commands.values())
        for parameter in command.params
        for option in parameter.opts
    }
    assert set(re.findall(r"`(--?[a-zA-Z][\w-]*)", text)) - known == set()


@pytest.mark.parametrize(
    "arguments", [words for words in calls("python") if "benchmarks" in words[1]], ids=" ".join
)
def test_benchmarks_take_the_commands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *rest = arguments[1:]
    package = (ROOT / module.replace(".", "/")).is_dir()
    monkeypatch.setattr(sys, "argv", [module, *rest])
    importlib.import_module(f"{module}.__main__" if package else module).arguments()


def test_models_and_extras_are_known() -> None:
    names = re.findall(r"`((?:text|chat)-[\w-]+)`", read("README.md"))
    models = [name for name in names if registry.find(name) or name not in complete_recipe("")]
    assert {registry.get(name) for name in models} == set(registry.PUBLISHED)
    extras = {
        one
        for group in re.findall(r"\.\[([\w,]+)\]", read("README.md"))
        for one in group.split(",")
    }
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert extras <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", read(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.is_file()
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [title.lower().replace(" ", "-") for title in headings]


@pytest.mark.parametrize("recipe", blocks("README.md", "toml"))
def test_recipes_are_valid(recipe: str) -> None:
    from lwm_core.train import read_recipe

    assert read_recipe(tomllib.loads(recipe))


def test_the_library_has_what_is_imported() -> None:
    program = "\n".join(blocks("README.md", "python"))
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lwm_core"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.slow
def test_the_library_does_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    from lwm_core.media import write_video

    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", np.zeros((4, 64, 64, 3), np.uint8), 4)
    exec(blocks("README.md", "python")[0], {})
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "speed --repeats 1",
        "training --repeats 1",
        "startup",
        "ring --rounds 1",
        "long",
        "quality --model nano",
    ],
)
def test_benchmarks_measure(command: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    name, *rest = command.split()
    smoke = ["-m", f"benchmarks.{name}", *rest, "--smoke", "--json", str(figures)]
    subprocess.run([sys.executable, *smoke], cwd=ROOT, check=True, capture_output=True)
    assert figures.is_file()
