"""Other users of this machine, for tests as root: accounts, and a Python that they may run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["accounts", "python_for_all"]


def python_for_all(folder: Path) -> Path:
    """A virtual environment in `folder` with the packages of this one, whose interpreter every user may run: the usual
    one may lie in somebody's home."""
    own = Path(sys.base_prefix)
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in Path(sys.executable).resolve().parents):
        base = Path(sys.executable).resolve()
    else:
        base = folder / "python" / "bin" / "python3.12"
        base.parent.mkdir(parents=True)
        shutil.copy2(Path(sys.executable).resolve(), base)
        library = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}"
        # With what was compiled: others cannot write it, so that each start would compile everything anew.
        without = shutil.ignore_patterns("site-packages", "test", "idlelib", "tkinter", "config-*")
        shutil.copytree(own / library, folder / "python" / library, ignore=without)
        for shared in own.glob("lib/libpython*"):
            shutil.copy2(shared, folder / "python" / "lib", follow_symlinks=False)
    venv = folder / "venv"
    subprocess.run([str(base), "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    places = [Path(sysconfig.get_path("purelib")), Path(__file__).resolve().parents[1]]
    (site / "packages.pth").write_text(
        "".join(f"import site; site.addsitedir({str(place)!r})\n" for place in places)
    )
    entry = venv / "bin" / "emma"
    entry.write_text(
        f'#!{venv}/bin/python -P\nfrom emma.cli import main\n\nif __name__ == "__main__":\n    main()\n'
    )
    entry.chmod(0o755)
    return venv / "bin" / "python"


@contextmanager
def accounts(*names: str, group: str) -> Iterator[None]:
    """Makes accounts that share a group besides their own, and removes them at the end, with what they still run.

    Those that an interrupted test left behind are removed first.
    """
    _remove(names, group)
    try:
        _run("groupadd", group)
        for name in names:
            _run("useradd", "--no-create-home", "--user-group", "--groups", group, name)
        yield
    finally:
        _remove(names, group)


def _remove(names: Sequence[str], group: str) -> None:
    for name in names:
        if not _known("passwd", name):
            continue
        # A supervisor may outlive its job by a moment; `userdel` refuses while any process is the account's.
        for _ in range(100):
            if subprocess.run(["pkill", "-KILL", "-u", name], check=False).returncode:
                break
            time.sleep(0.1)
        _run("userdel", name)
    if _known("group", group):
        _run("groupdel", group)


def _known(table: str, name: str) -> bool:
    return not subprocess.run(["getent", table, name], capture_output=True, check=False).returncode


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
