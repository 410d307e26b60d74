"""The walls between rooms: the table of docs/architecture.md, checked against every import in the repository."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from tests.imports import FOLDERS, ROOT, Import, circles, imports_of, imports_of_house, reached, read_sources

LONGEST = 400
"""Lines of a file outside tests."""


@dataclass(frozen=True)
class Room:
    """A row of the table.

    Attributes:
        paths: folders and files of the room, from the root of the repository, without `/` and `.py` at their ends.
        may_import: names of other rooms.
        at_import: packages of extras that its modules load when they are imported.
        on_call: further ones, that only its functions load.
    """

    paths: tuple[str, ...]
    may_import: frozenset[str]
    at_import: frozenset[str]
    on_call: frozenset[str]

    @property
    def name(self) -> str:
        """As other rows call it."""
        return self.paths[0].split("/")[-1]


def read_table(text: str) -> list[Room]:
    """Rows of the table in the section "The rooms", from the ground floor to the top."""
    section = text.partition("\n## The rooms\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [_room(*row) for row in rows]


def _room(paths: str, _what: str, may_import: str, packages: str) -> Room:
    at_import, _, on_call = packages.partition("on call:")
    places = (name.removesuffix("/").removesuffix(".py") for name in _quoted(paths))
    return Room(tuple(places), *(frozenset(_quoted(cell)) for cell in (may_import, at_import, on_call)))


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def rooms_of(modules: Iterable[str], rooms: Sequence[Room]) -> dict[str, Room]:
    """Module → its room, the innermost one; the roots `emma` and `emma.tools` have none."""
    places = {path: room for room in rooms for path in room.paths}
    found = {}
    for module in modules:
        parts = module.split(".")
        if parts[0] == "emma" and len(parts) > 1 and parts[1] in FOLDERS:
            parts = parts[1:]
        inner = (places.get("/".join(parts[:count])) for count in range(len(parts), 0, -1))
        if (room := next((room for room in inner if room is not None), None)) is not None:
            found[module] = room
    return found


@cache
def extra_packages() -> frozenset[str]:
    """Modules that a plain installation lacks: what the extras for users bring."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {"fasttext-predict": "fasttext", "megatron-core": "megatron", "fonttools": "fontTools"}
    packages = {
        re.split(r"[\[<>=; ]", requirement)[0]
        for extra, requirements in extras.items()
        if extra not in ("bench", "dev", "docs", "all")
        for requirement in requirements
    }
    return frozenset(modules.get(name, name.replace("-", "_")) for name in packages) - {"emma_recipes"}


ROOTS = frozenset(["emma", "emma.tools"])
"""Packages above all rooms; they import nothing, and importing a room imports them."""


@dataclass(frozen=True)
class Facts:
    """What the rooms import, whether allowed or not.

    Attributes:
        crossings: room and imported room → the places.
        at_import: room → packages of extras that its modules load when they are imported.
        on_call: room → further ones, that only its functions load.
        homeless: imports to or from a module that is in no room.
    """

    crossings: Mapping[tuple[str, str], Sequence[str]]
    at_import: Mapping[str, set[str]]
    on_call: Mapping[str, set[str]]
    homeless: Sequence[str]


def facts_of(rooms: Sequence[Room], imports: Sequence[Import], modules: Iterable[str]) -> Facts:
    """Facts of a house of `modules`; of a row, only its paths are looked at."""
    home = {module: room.name for module, room in rooms_of(modules, rooms).items()}
    edges: dict[str, set[str]] = {}
    for found in imports:
        if found.when == "import":
            edges.setdefault(found.module, set()).add(found.target)

    @cache
    def loads(target: str) -> frozenset[str]:
        return frozenset(name.split(".")[0] for name in reached([target], edges)) & extra_packages()

    crossings: dict[tuple[str, str], list[str]] = {}
    at_import: dict[str, set[str]] = {room.name: set() for room in rooms}
    on_call: dict[str, set[str]] = {room.name: set() for room in rooms}
    homeless = []
    for module, room in home.items():
        at_import[room] |= loads(module)
    for found in imports:
        place = f"{found.module}:{found.line} imports {found.target}"
        if found.module not in home or (found.target in modules and found.target not in home.keys() | ROOTS):
            homeless.append(f"{place}: in no room")
            continue
        room, target = home[found.module], home.get(found.target)
        if target not in (None, room):
            crossings.setdefault((room, str(target)), []).append(place)
        if found.when == "call":
            on_call[room] |= loads(found.target)
    for room, packages in on_call.items():
        packages -= at_import[room]
    return Facts(crossings, at_import, on_call, homeless)


def faults_of(rooms: Sequence[Room], facts: Facts) -> list[str]:
    """What the table does not allow, and what it allows although nothing needs it."""
    faults = list(facts.homeless)
    allowed = {(room.name, name) for room in rooms for name in room.may_import}
    for (room, target), places in facts.crossings.items():
        if (room, target) not in allowed:
            faults += [f"{place}: {room} may not import {target}" for place in places]
    faults += [f"{room} may import {name} and does not" for room, name in allowed - facts.crossings.keys()]
    order = [room.name for room in rooms]
    faults += [
        f"{room} may import {name}, which does not stand above it"
        for room, name in allowed
        if name not in order[: order.index(room)]
    ]
    for room in rooms:
        for when, loaded, permitted in (
            ("when imported", facts.at_import[room.name], room.at_import),
            ("on call", facts.on_call[room.name], room.on_call),
        ):
            faults += [f"{room.name} loads {name} {when} and may not" for name in loaded - permitted]
            faults += [f"{room.name} may load {name} {when} and does not" for name in permitted - loaded]
    return sorted(faults)


TABLE = read_table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
SOURCES = read_sources()
IMPORTS = imports_of_house(SOURCES)


FACTS = facts_of(TABLE, IMPORTS, SOURCES.keys())


def file_edges(imports: Iterable[Import]) -> dict[str, set[str]]:
    """Module → modules of the house that it imports, at any time."""
    edges: dict[str, set[str]] = {}
    for found in imports:
        if found.target in SOURCES:
            edges.setdefault(found.module, set()).add(found.target)
    return edges


def test_the_table_and_the_imports_are_the_same() -> None:
    assert faults_of(TABLE, FACTS) == []
    assert SOURCES.keys() - rooms_of(SOURCES, TABLE).keys() == ROOTS


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(file_edges(IMPORTS)) == []


def test_only_benchmarks_import_from_tests() -> None:
    users = {found.module.split(".")[0] for found in IMPORTS if found.target.split(".")[0] == "tests"}
    assert users == {"benchmarks"}


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("emma.base.files", "import emma.recipes.load", "base may not import recipes"),
        ("emma.tools.corpus.keys", "from emma.tools.pack import store", "corpus may not import pack"),
        (
            "emma.tools.mix.index",
            "def f():\n    from emma.tools.training.launch import x",
            "mix may not import training",
        ),
        (
            "emma.tools.plan.memory",
            "if TYPE_CHECKING:\n    import emma.tools.report.page",
            "plan may not import report",
        ),
        ("emma.recipes.load", "import_module('emma.tools.hub.cards')", "recipes may not import hub"),
        (
            "emma.tools.pack.run",
            "COMMANDS = {'x': 'emma.commands.pack:group'}",
            "pack may not import commands",
        ),
        ("emma.tools.runs.metrics", "from ..charts import scales", "runs may not import charts"),
        ("emma.tools.report.page", "import emma.slurm.query", "report may not import slurm"),
        ("emma.slurm.render", "import torch", "slurm loads torch when imported"),
        ("emma.slurm.render", "def f():\n    from torch import nn", "slurm loads torch on call"),
        ("emma.tools.mix.index", "def f():\n    import torch.utils.data", "mix loads torch on call"),
        (
            "emma.tools.pack.run",
            "importlib.import_module('transformers')",
            "pack loads transformers when imported",
        ),
        # A room loads what the modules load that it imports.
        (
            "emma.slurm.checks",
            "import emma.checkpoints_conversion.weights",
            "slurm loads torch when imported",
        ),
        (
            "emma.slurm.checks",
            "def f():\n    import emma.checkpoints_conversion.weights",
            "slurm loads torch on call",
        ),
    ],
)
def test_an_import_against_the_table_is_found(module: str, text: str, fault: str) -> None:
    others = [found for found in IMPORTS if found.module != module]
    changed = [*others, *imports_of(module, f"{SOURCES[module]}\n{text}\n", SOURCES)]
    faults = faults_of(TABLE, facts_of(TABLE, changed, SOURCES.keys()))
    assert any(fault in found for found in faults), faults


def test_each_row_and_each_permission_is_needed_and_none_can_be_added() -> None:
    names = {room.name for room in TABLE}
    for number, room in enumerate(TABLE):
        others = [*TABLE[:number], *TABLE[number + 1 :]]
        assert faults_of(others, facts_of(others, IMPORTS, SOURCES.keys())), room.name
        for field, known in (
            ("may_import", names - {room.name}),
            ("at_import", extra_packages()),
            ("on_call", extra_packages()),
        ):
            permitted: frozenset[str] = getattr(room, field)
            for name in known:
                changed = replace(room, **{field: permitted ^ {name}})
                faults = faults_of([*TABLE[:number], changed, *TABLE[number + 1 :]], FACTS)
                assert any(room.name in fault and name in fault for fault in faults), (room.name, field, name)


def test_circles_are_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a", "d"]}) == [["b", "c"]]
    back = Import("emma.slurm.results", "emma.slurm.results_page", 1, "call")
    assert circles(file_edges([*IMPORTS, back])) == [["emma.slurm.results", "emma.slurm.results_page"]]


@pytest.mark.parametrize(
    ("text", "target", "when"),
    [
        ("import emma.tools.pack.run", "emma.tools.pack.run", "import"),
        ("from emma.tools.pack import run", "emma.tools.pack.run", "import"),
        ("from emma.tools.pack.run import pack_store", "emma.tools.pack.run", "import"),
        ("from .run import pack_store", "emma.tools.pack.run", "import"),
        ("try:\n    import torch\nexcept ImportError:\n    pass", "torch", "import"),
        ("class A:\n    import torch", "torch", "import"),
        ("def f():\n    import torch", "torch", "call"),
        ("class A:\n    async def f(self):\n        from torch import nn", "torch", "call"),
        ("if TYPE_CHECKING:\n    import torch", "torch", "typing"),
        ("if typing.TYPE_CHECKING:\n    import numpy\nelse:\n    import torch", "torch", "import"),
        ("importlib.import_module('torch.nn')", "torch.nn", "import"),
        ("def f():\n    importlib.import_module('torch.nn')", "torch.nn", "call"),
        ("import_module('emma.tools.pack.run')", "emma.tools.pack.run", "call"),
        ("process_pool(2, preload=['emma.tools.pack.run'])", "emma.tools.pack.run", "call"),
        ("GROUPS = {'pack': ('emma.tools.pack.run:group', 'help')}", "emma.tools.pack.run", "call"),
        ("[sys.executable, '-P', '-m', 'emma.tools.pack.run']", "emma.tools.pack.run", "call"),
    ],
)
def test_every_form_of_import_is_seen(text: str, target: str, when: str) -> None:
    found = list(imports_of("emma.tools.pack.peek", text, ["emma.tools.pack", "emma.tools.pack.run"]))
    assert [(each.target, each.when) for each in found if each.target != "numpy"] == [(target, when)]


_IMPORT_ALL = """
import importlib, json, sys
absent, modules = json.load(sys.stdin)
for name in absent:
    sys.modules[name] = None  # an import of it fails, as if it were not installed
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"{module}: {error}")
"""


def test_rooms_without_packages_of_extras_are_imported_without_them() -> None:
    light = {room.name for room in TABLE if not room.at_import and room.name != "benchmarks"}
    modules = [
        module
        for module, room in rooms_of(SOURCES, TABLE).items()
        if room.name in light and not module.endswith("__main__")
    ]
    assert {"recipes", "slurm", "pack", "mix", "plan", "report", "charts", "hub", "commands"} <= light
    done = subprocess.run(
        [sys.executable, "-P", "-c", _IMPORT_ALL],
        input=json.dumps([sorted(extra_packages()), modules]),
        cwd=ROOT,
        env={**os.environ, "EMMA_PROGRESS": "0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_no_file_is_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("emma", "benchmarks", *FOLDERS)
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".j2", ".css", ".js")
    }
    assert {name: count for name, count in lengths.items() if count > LONGEST} == {}


# A room imported by its bare name would be whatever package of that name Python finds first.
_BARE = "|".join(FOLDERS)
_IMPORTS = re.compile(
    rf"""(?:^|[;"'`])[ \t]*(?:>>>[ ])?(?:from[ ]+(?:{_BARE})(?:\.\w+)*[ ]+import\b|import[ ]+(?:{_BARE})(?:\.\w+)*[ \t]*(?:$|[;,"'`\\#]|as\b))""",
    re.MULTILINE,
)
_RUNS = re.compile(rf"""(?<![\w-])-m["',\s]+(?:{_BARE})\.\w""")
_TEXTS = frozenset(
    [".py", ".md", ".j2", ".yaml", ".yml", ".toml", ".sh", ".cff", ".cfg", ".html", ".txt", ".in", ""]
)


def bare_names(name: str, text: str) -> list[str]:
    """Places of a file where a room is imported, or run, without `emma.` before it."""
    found = [match[0].strip() for pattern in (_IMPORTS, _RUNS) for match in pattern.finditer(text)]
    if name.endswith(".py"):
        found += [target for node in ast.walk(ast.parse(text)) for target in _bare_targets(node)]
    return [f"{name}: {each}" for each in found]


def _bare_targets(node: ast.AST) -> list[str]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [str(node.module)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        module = node.value.partition(":")[0]
        names = [module] if "." in module and f"emma.{module}" in SOURCES else []
    return [name for name in names if name.split(".")[0] in FOLDERS]


def _texts() -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") or name in (".ci", ".github")]
        if Path(folder).relative_to(ROOT).parts[:1] in (("build",), ("dist",), ("site",), ("shared",)):
            folders.clear()
            continue
        for path in (Path(folder) / name for name in files):
            if path.suffix in _TEXTS and path.is_file():
                yield str(path.relative_to(ROOT)), path.read_bytes().decode("utf-8", "replace")


def test_no_room_is_imported_by_its_bare_name() -> None:
    texts = dict(_texts())
    assert {"Makefile", "README.md", "slurm/templates/job.sh.j2", "tests/test_rooms.py"} <= texts.keys()
    assert [fault for name, text in texts.items() for fault in bare_names(name, text)] == []


@pytest.mark.parametrize("room", FOLDERS)
def test_bare_names_are_found(room: str) -> None:
    for text in (f"import {room}", f"x = 1; from {room}.load import y", f"def f():\n    import {room} as r"):
        assert bare_names("a.py", text), text
    for text in (
        f"['python', '-P', '-m', '{room}.a']",
        f"run('python -m {room}.a')",
        f"S = '''\nimport {room}\n'''",
    ):
        assert bare_names("a.py", text), text
    for text in (f"\tpython -P -m {room}.demo", f"    >>> from {room} import y", f"`import {room}`"):
        assert bare_names("Makefile", text), text
    for text in (
        f"python -P -m emma.{room}.demo",
        f"from emma.{room} import y",
        f"import {room}s",
        f"-m {room}/a",
    ):
        assert not bare_names("docs/a.md", text), text
    assert bare_names("a.py", "preload = ['tools.pack.run']") == ["a.py: tools.pack.run"]
