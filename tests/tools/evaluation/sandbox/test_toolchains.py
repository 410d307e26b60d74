"""Toolchains: what runs right and wrong programs on this machine, and what is refused instead of failing them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.sandbox import toolchains
from emma.tools.evaluation.sandbox.toolchains import Executor, _prefix, _tables, get_toolchain

NAMES = list(_tables()["toolchains"])

# Programs that fail in other ways than a false assertion: they cannot be compiled, raise, end by a signal, never end.
# Those that leave with success before a test has failed are among them where that can be told.
BROKEN = {
    "python": [
        "def f(:\n",
        "raise ValueError",
        "import os\nos.kill(os.getpid(), 11)",
        "import os\nos._exit(0)",
    ],
    "bash": ["if [", "exit 3", "kill -SEGV $$", "exit 0", "cat <<X"],
    "cpp": ["int main() { return x; }", "int main() { throw 1; }", "int main() { *(volatile int*)0 = 1; }"],
    "php": ["<?php\nfunction(", "<?php\nexit(0);", "<?php\n?>"],
    "perl": ["sub {", "exit 0;", "__END__"],
    "r": ["f <- function(", "quit('no', 0)", "stop(1)"],
    "ruby": ["def f(", "raise 1"],
    "lua": ["x = = 1", "error(1)"],
    "csharp": ["class {", "class P { public static void Main() { throw new System.Exception(); } }"],
    "typescript": ["let x: number = 'a';", "throw 1;"],
    "javascript": ["let = ;;(", "throw new Error('no')", "process.abort()", "process.exit(0)"],
    "java": [
        "class Problem {",
        "class Problem { public static void main(String[] a) { throw new Error(); } }",
    ],
    "rust": ["fn main() { x }", "fn main() { panic!() }", "fn main() { std::process::abort() }"],
}


_SLOW = ("cpp", "csharp", "go", "java", "rust", "scala", "swift", "typescript")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in NAMES]
)
def test_programs_that_pass_and_fail(name: str, with_files: Executor) -> None:
    if (why := with_files.lack(name)) is not None:
        pytest.skip(f"{name}: {why}")
    toolchain = get_toolchain(name)
    programs = [toolchain.passes, toolchain.fails, *BROKEN.get(name, ())]
    found = with_files.run(name, programs)
    assert [run.passed for run in found] == [True, False, *(False for _ in BROKEN.get(name, ()))]
    assert with_files.facts(name)["version"]


def test_every_toolchain_here_is_complete() -> None:
    """Those whose commands this machine has are tried, not passed over."""
    from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_benchmark

    used = {
        program.toolchain
        for name in benchmark_names(on_demand=True)
        if (program := get_benchmark(name).program) is not None
    }
    assert used == set(NAMES)
    for name in NAMES:
        assert get_toolchain(name).name == name


def test_absent_and_broken_toolchains_are_named(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    good = get_toolchain("python")

    def give(**changes: Any) -> None:
        changed = good.model_copy(update={"name": "other", **changes})
        monkeypatch.setattr(toolchains, "get_toolchain", lambda name: changed)

    give(needs=("nosuch", "python3"))
    assert executor.lack("other") == "no nosuch on the path"
    give(passes="import nosuch\n", files=("nosuch.py",))
    why = executor.lack("other") or ""
    assert why.startswith("it fails its own trial (exit code 1: ") and "No module named 'nosuch'" in why
    assert why.endswith("it may need nosuch.py in the folder `programs` of the mirror")
    # Whatever happens, this one exits with 0: its programs would all pass.
    give(steps=(toolchains.Command(command=("python3", "--version"), seconds=15),), ends=None)
    assert (executor.lack("other") or "").startswith("it passes its own trial (exit code 0: Python")
    give(version=("python3", "--nosuch"))
    assert "tells no version" in (executor.lack("other") or "")
    give(root=("python3", "-c", "raise SystemExit('no root')"))
    assert "prints no folder: no root" in (executor.lack("other") or "")
    with pytest.raises(UserError, match="toolchain other: "):
        executor.run("other", ["1"])


def test_output_counts_where_the_exit_code_does_not(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = get_toolchain("python")
    strict = good.model_copy(
        update={"name": "strict", "silent": True, "forbidden": "ERROR", "fails": "print('an ERROR')"}
    )
    monkeypatch.setattr(toolchains, "get_toolchain", lambda name: strict)
    programs = ["print('fine')", "print('ERROR 3')", "import sys\nprint('x', file=sys.stderr)"]
    assert [run.passed for run in executor.run("strict", programs)] == [True, False, False]


def test_equal_programs_run_once(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executor.lack("python") is None
    ran: list[str] = []
    run = toolchains._Ready.run
    monkeypatch.setattr(toolchains._Ready, "run", lambda self, text: (ran.append(text), run(self, text))[1])
    found = executor.run("python", ["1", "raise 1", "1", "1"])
    assert [run.passed for run in found] == [True, False, True, True]
    assert sorted(ran) == ["1", "raise 1"]


def test_no_home_folder_is_shown_because_a_command_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    assert _prefix(home / "bin" / "tool") == home / "bin" / "tool"
    assert _prefix(home / ".local" / "bin" / "tool") == home / ".local" / "bin" / "tool"
    assert _prefix(home / "tool") == home / "tool"
    assert _prefix(tmp_path / "bin" / "tool") == tmp_path / "bin" / "tool"
    assert _prefix(home / "miniconda3" / "bin" / "python3.12") == home / "miniconda3"
    assert (
        _prefix(home / ".pyenv" / "versions" / "3.12.1" / "bin" / "python3")
        == home / ".pyenv/versions/3.12.1"
    )
    assert _prefix(Path("/appl/gcc/13/bin/g++")) == Path("/appl/gcc/13")
    assert os.environ["HOME"] == str(home)


def test_a_toolchain_that_is_unknown_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"programs\.yaml: no toolchain pyton; .*python"):
        get_toolchain("pyton")
    tables = _tables()
    changed = {**tables, "toolchains": {"one": {**tables["toolchains"]["python"], "step": []}}}
    monkeypatch.setattr(toolchains, "_tables", lambda: changed)
    with pytest.raises(UserError, match=r"programs\.yaml: toolchains\.one\.step: "):
        get_toolchain("one")
