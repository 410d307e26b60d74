"""What runs programs: toolchains as data (recipes/evaluation/programs.yaml), each tried before it is trusted."""

from __future__ import annotations

import functools
import glob
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from emma.base.errors import UserError
from emma.base.processes import available_cores, memory
from emma.recipes.compose import ROOT, nearest
from emma.recipes.reading import read_yaml
from emma.tools.evaluation.sandbox.proof import prove
from emma.tools.evaluation.sandbox.sandbox import Limits, Outcome, Sandbox, Step

__all__ = ["Executor", "Run", "Toolchain", "get_toolchain"]

_FILE = ROOT / "evaluation" / "programs.yaml"
_EXTRA = "/programs"
_MIB = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Command(_Strict):
    """A step of running a program."""

    command: tuple[str, ...]
    seconds: float


class Toolchain(_Strict):
    """How programs of one language are run; see programs.yaml."""

    name: str
    needs: tuple[str, ...]
    root: tuple[str, ...] = ()
    version: tuple[str, ...]
    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    file: str
    steps: tuple[Command, ...]
    silent: bool = False
    forbidden: str | None = None
    ends: str | None = None
    passes: str
    fails: str

    def passed(self, outcome: Outcome, mark: str) -> bool:
        """Whether an outcome is that of a program that passes its tests, and writes `mark` at its end if it can."""
        if not outcome.succeeded or (self.silent and outcome.stderr):
            return False
        if self.ends is not None and mark not in outcome.stdout:
            return False
        return self.forbidden is None or self.forbidden not in outcome.stdout + outcome.stderr


@functools.cache
def _tables() -> dict[str, Any]:
    return read_yaml(_FILE).values


def get_toolchain(name: str) -> Toolchain:
    """The toolchain of this name.

    Raises:
        UserError: there is none, or its entry is wrong.
    """
    known = _tables()["toolchains"]
    if name not in known:
        raise UserError(f"{_FILE}: no toolchain {name}; {nearest(name, list(known))}")
    try:
        return Toolchain.model_validate({"name": name, **known[name]})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["toolchains", name, *map(str, first["loc"])])
        raise UserError(f"{_FILE}: {key}: {first['msg']}") from None


@dataclass(frozen=True)
class Run:
    """A program that was run: whether it passed, and how it ended."""

    passed: bool
    outcome: Outcome

    def describe(self) -> str:
        """In words: `passed`, or how it ended."""
        if self.passed:
            return "passed"
        if self.outcome.succeeded:
            return f"ended before its tests did, or against them: {self.outcome.describe()}"
        return self.outcome.describe()


@dataclass(frozen=True)
class _Ready:
    """A toolchain that was tried: its sandbox, and the first line of its version."""

    toolchain: Toolchain
    sandbox: Sandbox
    version: str
    mark: str

    def run(self, program: str) -> Run:
        """Runs a program and judges how it ended."""
        steps = [Step(step.command, step.seconds) for step in self.toolchain.steps]
        if self.toolchain.ends is not None:
            half = len(self.mark) // 2
            ends = self.toolchain.ends.replace("HEAD", self.mark[:half]).replace("TAIL", self.mark[half:])
            program += f"\n{ends}\n"
        outcome = self.sandbox.run({self.toolchain.file: program}, steps)
        return Run(self.toolchain.passed(outcome, self.mark), outcome)


class Executor:
    """Runs programs in sandboxes, after a proof that these hold on this machine.

    Args:
        extra: finds a further file of a toolchain by its path in the mirror; None: it is not there.

    Raises:
        UserError: the machine does not allow the isolation, or it does not hold.
    """

    def __init__(self, extra: Callable[[str], Path | None]) -> None:
        self._extra = extra
        self._ready: dict[str, _Ready] = {}
        show, variables = _view(get_toolchain("python"))
        prove(show, {**_tables()["environment"], **variables})

    def lack(self, name: str) -> str | None:
        """Why a toolchain cannot be used on this machine, in words; None if it can.

        It is not there, or it fails on a program that must pass, or passes one that must not.
        """
        if name in self._ready:
            return None
        toolchain = get_toolchain(name)
        if absent := [need for need in toolchain.needs if _find(need) is None]:
            return f"no {', '.join(absent)} on the path"
        try:
            ready = self._prepare(toolchain)
        except UserError as error:
            return str(error)
        for program, wanted in ((toolchain.passes, True), (toolchain.fails, False)):
            run = ready.run(program)
            if run.passed is not wanted:
                what = "fails" if wanted else "passes"
                absent = [file for file in toolchain.files if self._extra(f"programs/{file}") is None]
                hint = (
                    f"; it may need {', '.join(absent)} in the folder `programs` of the mirror"
                    if absent
                    else ""
                )
                return f"it {what} its own trial ({run.outcome.describe()}){hint}"
            if run.outcome.stopped == "time":
                return f"it takes longer than its limits for its own trial ({run.outcome.seconds:.0f} s)"
        self._ready[name] = ready
        return None

    def _prepare(self, toolchain: Toolchain) -> _Ready:
        show, variables = _view(toolchain)
        for file in toolchain.files:
            if (found := self._extra(f"programs/{file}")) is not None:
                show[f"{_EXTRA}/{file}"] = str(found.resolve())
        limits = _tables()["limits"]
        sandbox = Sandbox(
            show,
            {**_tables()["environment"], **toolchain.environment, **variables},
            Limits(
                memory=limits["memory_mib"] * _MIB,
                processes=limits["processes"],
                disk=limits["disk_mib"] * _MIB,
                file=limits["file_mib"] * _MIB,
                open_files=limits["open_files"],
            ),
        )
        told = sandbox.run({}, [Step(toolchain.version, 60)])
        lines = (told.stdout.strip() or told.stderr.strip()).splitlines()
        if not told.succeeded or not lines:
            raise UserError(f"`{' '.join(toolchain.version)}` tells no version ({told.describe()})")
        return _Ready(toolchain, sandbox, lines[0].strip(), secrets.token_hex(8))

    def facts(self, name: str) -> dict[str, Any]:
        """What determines a program's result: the toolchain, its version, the limits.

        Raises:
            UserError: the toolchain cannot be used.
        """
        ready = self._get(name)
        how = ready.toolchain.model_dump(mode="json", exclude={"passes", "fails"})
        return {"version": ready.version, "toolchain": how, "limits": dict(_tables()["limits"])}

    def run(self, name: str, programs: Sequence[str]) -> list[Run]:
        """Runs programs, equal ones once, as many at a time as cores and memory allow.

        Raises:
            UserError: the toolchain cannot be used.
        """
        ready = self._get(name)
        each = ready.sandbox.limits.memory + ready.sandbox.limits.disk
        workers = max(1, min(available_cores(), (memory()[1] or memory()[0]) // each))
        distinct = list(dict.fromkeys(programs))
        with ThreadPoolExecutor(workers) as pool:
            runs = dict(zip(distinct, pool.map(ready.run, distinct), strict=True))
        return [runs[text] for text in programs]

    def _get(self, name: str) -> _Ready:
        if problem := self.lack(name):
            raise UserError(f"toolchain {name}: {problem}")
        return self._ready[name]


def _find(command: str) -> Path | None:
    """A command's real path."""
    # The interpreter that runs this project, whatever is first on the path.
    found = sys.executable if command == "python3" else shutil.which(command)
    return Path(found).resolve() if found else None


def _view(toolchain: Toolchain) -> tuple[dict[str, str], dict[str, str]]:
    """What a toolchain's sandbox shows, and its search paths, of commands and (as in environment modules) of libraries."""
    show = {path: path for pattern in _tables()["show"] for path in sorted(glob.glob(pattern))}  # noqa: PTH207
    folders: list[Path] = []
    if toolchain.root:
        told = subprocess.run(toolchain.root, capture_output=True, text=True, check=False)
        root = Path(told.stdout.strip())
        if told.returncode or not root.is_absolute():
            raise UserError(f"`{' '.join(toolchain.root)}` prints no folder: {told.stderr.strip()[-300:]}")
        show[str(root)] = str(root)
        folders.append(root / "bin")
    for need in toolchain.needs:
        found = _find(need)
        if found is not None and not (toolchain.root and need == toolchain.root[0]):
            place = str(_prefix(found))
            _add(show, place)
            folders.append(found.parent)
    path = ":".join(dict.fromkeys([*map(str, folders), "/usr/local/bin", "/usr/bin", "/bin"]))
    variables = {"PATH": path}
    libraries = [
        Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(":") if Path(name).is_absolute()
    ]
    if kept := [folder for folder in libraries if folder.is_dir() and not _is_private(folder)]:
        for folder in kept:
            _add(show, str(folder))
        variables["LD_LIBRARY_PATH"] = ":".join(map(str, kept))
    return show, variables


def _add(show: dict[str, str], place: str) -> None:
    if not any(place == shown or place.startswith(shown + "/") for shown in show):
        show[place] = place


def _prefix(path: Path) -> Path:
    """The folder that a command was installed into; the command alone if that holds a home folder or is a hidden folder
    in one, where secrets are."""
    folder = path.parent.parent if path.parent.name in ("bin", "sbin") else path.parent
    return path if _is_private(folder) else folder


def _is_private(folder: Path) -> bool:
    """Whether a folder holds the home folder, or is a hidden folder in it."""
    home = Path.home()
    holds_home = folder == home or folder in home.parents
    return holds_home or (folder.parent == home and folder.name.startswith("."))
