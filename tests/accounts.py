"""Other users of this machine, for tests as root: accounts, and a Python that they may run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
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
        without = shutil.ignore_patterns(
            "site-packages", "test", "idlelib", "tkinter", "__pycache__", "config-*"
        )
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
    """Makes accounts that share a group besides their own, and removes them at the end."""
    made: list[list[str]] = []
    try:
        _run("groupadd", group)
        made.append(["groupdel", group])
        for name in names:
            _run("useradd", "--no-create-home", "--user-group", "--groups", group, name)
            made.append(["userdel", name])
        yield
    finally:
        for command in reversed(made):
            _run(*command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
