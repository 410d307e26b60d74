"""Who imports whom, read from the syntax trees of the repository's Python files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "FOLDERS",
    "ROOT",
    "Import",
    "circles",
    "imports_of",
    "imports_of_house",
    "read_sources",
    "reached",
]

ROOT = Path(__file__).parents[1]
FOLDERS = ("recipes", "megatron_patches", "tools", "slurm", "checkpoints_conversion")
"""Folders beside `emma/` that are importable inside it, and only there."""

_MODULE = re.compile(r"(emma(?:\.\w+)+)(?::\w+)?")


@dataclass(frozen=True)
class Import:
    """One import.

    Attributes:
        module: who imports, e.g. `emma.tools.pack.run`.
        target: a module of the house, or a name of another package, both in full.
        line: of the import.
        when: `import` when the module is imported, `call` inside a function or named by a string that a loader
            reads, `typing` only for type checkers.
    """

    module: str
    target: str
    line: int
    when: str


def read_sources(root: Path = ROOT) -> dict[str, str]:
    """Module name → source of every Python file of the house and of `benchmarks/`; tests aside."""
    found = {}
    for folder in ("emma", "benchmarks", *FOLDERS):
        # rglob does not follow the links in emma/, so every file is found once.
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            prefix = ("emma",) if folder in FOLDERS else ()
            name = ".".join((*prefix, *parts)).removesuffix(".__init__")
            found[name] = path.read_text(encoding="utf-8")
    return found


def imports_of_house(sources: Mapping[str, str]) -> list[Import]:
    """The imports of all modules."""
    return [
        found for module, source in sources.items() for found in imports_of(module, source, sources.keys())
    ]


def imports_of(module: str, source: str, known: Iterable[str]) -> Iterator[Import]:
    """The imports of one module.

    Args:
        module: its name.
        source: its text.
        known: names of the house's modules, to tell a module from a name inside one.
    """
    modules = frozenset(known)
    # A relative import starts at the package that holds the module, or at the module if it is a package.
    package = module if any(name.startswith(f"{module}.") for name in modules) else module.rpartition(".")[0]
    for node, when in _nodes(ast.parse(source), "import"):
        for target in _targets(node, package, modules):
            if target == module:  # its own name, for a process that is to import it
                continue
            # A string counts as read on a call, wherever it is.
            yield Import(module, target, node.lineno, "call" if isinstance(node, ast.Constant) else when)


type _Node = ast.Import | ast.ImportFrom | ast.Constant | ast.Call


def _nodes(parent: ast.AST, when: str) -> Iterator[tuple[_Node, str]]:
    for node in ast.iter_child_nodes(parent):
        inner = when
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "import":
            inner = "call"
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Constant | ast.Call):
            yield node, inner
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for child in node.body:
                yield from _nodes(ast.Module([child], []), "typing")
            for child in node.orelse:
                yield from _nodes(ast.Module([child], []), inner)
            continue
        yield from _nodes(node, inner)


def _is_type_checking(test: ast.expr) -> bool:
    return _last_name(test) == "TYPE_CHECKING"


def _targets(node: _Node, package: str, known: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ""
        if node.level:
            parts = package.split(".")
            parts = parts[: len(parts) - node.level + 1]
            start = ".".join([*parts, start] if start else parts)
        for alias in node.names:
            name = f"{start}.{alias.name}"
            yield name if name in known else start
    elif isinstance(node, ast.Constant):
        # "emma.commands.pack:group", preloaded modules, `python -m` and import_module of the house.
        match = _MODULE.fullmatch(node.value) if isinstance(node.value, str) else None
        if match and match[1] in known:
            yield match[1]
    elif _last_name(node.func) in ("import_module", "__import__") and node.args:
        argument = node.args[0]
        named = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        if named and not argument.value.startswith("emma."):  # those are found as strings
            yield argument.value


def _last_name(expression: ast.expr) -> str:
    """`b` of the expressions `a.b` and `b`; empty for others."""
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""


def reached(start: Iterable[str], edges: Mapping[str, Iterable[str]]) -> set[str]:
    """Everything that can be reached from `start`, itself included."""
    seen: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(edges.get(name, ()))
    return seen


def circles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of names that reach each other (strongly connected components of two or more), sorted."""
    order: list[str] = []
    seen: set[str] = set()
    for root in edges:
        _visit(root, edges, seen, order)
    back: dict[str, list[str]] = {}
    for source, targets in edges.items():
        for target in targets:
            back.setdefault(target, []).append(source)
    found: list[list[str]] = []
    seen = set()
    for root in reversed(order):
        group: list[str] = []
        _visit(root, back, seen, group)
        if len(group) > 1:
            found.append(sorted(group))
    return sorted(found)


def _visit(root: str, edges: Mapping[str, Iterable[str]], seen: set[str], order: list[str]) -> None:
    """Appends what is reached from `root` and was not seen before to `order`, the deepest first."""
    if root in seen:
        return
    seen.add(root)
    stack = [(root, iter(edges.get(root, ())))]
    while stack:
        name, rest = stack[-1]
        following = next((target for target in rest if target not in seen), None)
        if following is None:
            order.append(name)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(edges.get(following, ()))))
