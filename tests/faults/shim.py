"""The shared state of shim.c, and its compiler."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from pathlib import Path

__all__ = ["ACTIONS", "Shim", "compile_shim"]

ACTIONS = {"none": 0, "kill": 1, "signal": 2, "error": 3, "error from then on": 4, "pause": 5, "clock": 6}
_LOGGED = 1 << 20


class _State(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int64),
        ("at", ctypes.c_int64),
        ("action", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("paused", ctypes.c_int32),
        ("resumed", ctypes.c_int32),
        ("back", ctypes.c_int64),
        ("root", ctypes.c_char * 1024),
        ("kinds", ctypes.c_char * _LOGGED),
    ]


def compile_shim(folder: Path) -> Path:
    """Compiles shim.c with gcc; returns the library."""
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Shim:
    """What the processes under the library share: the counter, and the fault that waits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_State)))
        with path.open("r+b") as handle:
            self._map = mmap.mmap(handle.fileno(), 0)
        self.state = _State.from_buffer(self._map)

    def arm(self, root: Path, action: str = "none", at: int = 0, error: int = 0) -> None:
        """Begins to count below `root`; the operation with number `at`, from 1, meets the fault."""
        ctypes.memset(ctypes.addressof(self.state), 0, ctypes.sizeof(_State))
        self.state.root = str(root).encode()
        self.state.action, self.state.at, self.state.error = ACTIONS[action], at, error

    def disarm(self) -> None:
        """Lets everything pass, whatever is armed; a paused operation goes on."""
        self.state.action, self.state.back, self.state.resumed = 0, 0, 1

    @property
    def met(self) -> bool:
        """Whether the fault has happened."""
        return 0 < self.state.at <= self.state.count

    @property
    def kinds(self) -> str:
        """One letter for each operation so far."""
        start = ctypes.addressof(self.state) + _State.kinds.offset
        return ctypes.string_at(start, min(self.state.count, _LOGGED)).decode()
