from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from emma.tools.evaluation.sandbox.toolchains import Executor
from tests.tools.evaluation.sandbox.isolation import needs_isolation


@pytest.fixture(scope="session")
def executor() -> Executor:
    """Proven, without further files."""
    needs_isolation()
    return Executor(lambda name: None)


@pytest.fixture(scope="session")
def with_files(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    """Proven, and finds Java's further classes: a jar with the package's name, made here where there is a compiler."""
    needs_isolation()
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "programs").mkdir()
    if shutil.which("javac") and shutil.which("jar"):
        source = folder / "Pair.java"
        source.write_text("package org.javatuples;\npublic class Pair {}\n")
        subprocess.run(["javac", "-d", folder / "classes", source], check=True)
        jar = folder / "programs" / "javatuples-1.2.jar"
        subprocess.run(["jar", "cf", jar, "-C", folder / "classes", "."], check=True)

    def extra(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    return Executor(extra)
