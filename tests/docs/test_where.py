"""docs/where.md is correct: every file exists, and defines what the row names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "where.md"

_PLACE = re.compile(r"`([^`\s]+)::([^`]+)`")


def rows() -> list[tuple[str, list[tuple[str, str]]]]:
    """Behaviour → places (file, name) of every row of the page's tables."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) >= 2 and not set(cells[0]) <= {"-"} and cells[1] != "Where":
            found.append((cells[0], _PLACE.findall(cells[1])))
    return found


def python_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes, methods (`Class.method`), and names and attributes that are assigned at these levels."""
    bodies: list[tuple[str, list[ast.stmt]]] = [("", tree.body)]
    while bodies:
        prefix, body = bodies.pop()
        for statement in body:
            match statement:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    yield prefix + name
                case ast.ClassDef(name=name):
                    yield prefix + name
                    bodies.append((f"{prefix}{name}.", statement.body))
                case ast.Assign(targets=targets):
                    yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))
                case ast.AnnAssign(target=ast.Name(id=name)):
                    yield prefix + name


def yaml_names(value: Any, prefix: str = "") -> Iterator[str]:
    """Keys; nested ones as `a.b`."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield f"{prefix}{key}"
            yield from yaml_names(below, f"{prefix}{key}.")


def fault(file: str, name: str) -> str | None:
    """Why a place does not exist; None if it does.

    A Python file has to define the name, YAML has to have the key (`a.b` below `a`), a template holds the text.
    """
    path = ROOT / file
    if not path.is_file():
        return f"{file}: no such file"
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".py":
            there = name in set(python_names(ast.parse(text)))
        case ".yaml":
            there = name in set(yaml_names(YAML(typ="safe").load(text)))
        case ".j2":
            there = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
        case _:
            return f"{file}: only Python, YAML and templates define names"
    return None if there else f"{file}: does not define {name}"


def test_every_place_exists() -> None:
    assert [why for _, places in rows() for place in places if (why := fault(*place))] == []


def test_there_are_enough_rows_and_each_has_a_place() -> None:
    assert len(rows()) >= 30
    assert [behaviour for behaviour, places in rows() if not places] == []
    behaviours = [behaviour for behaviour, _ in rows()]
    assert len(set(behaviours)) == len(behaviours)


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("emma/base/no_such_file.py", "read_json", "no such file"),
        ("emma/base/files.py", "no_such_function", "does not define"),
        ("emma/base/errors.py", "UserError", None),
        ("recipes/corpus/categories.yaml", "monolingual", None),
        ("recipes/corpus/categories.yaml", "monolingual.no_such_key", "does not define"),
        ("slurm/templates/job.sh.j2", "block setup", None),
        ("slurm/templates/job.sh.j2", "block no_such_block", "does not define"),
        ("README.md", "EMMA", "only Python"),
    ],
)
def test_places_that_do_not_exist_are_found(file: str, name: str, message: str | None) -> None:
    found = fault(file, name)
    assert found is None if message is None else message in (found or "")
