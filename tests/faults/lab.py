"""A stage's command, run over and over in one folder under faults; what it left is compared with an undisturbed run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.shim import Shim
from tests.faults.stages import Stage

__all__ = ["Ended", "Lab", "Running"]

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST = 300.0
"""Seconds that any command may take."""

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN of fs/ext4/ext4.h
_NO_LOG_FLUSH = 2


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    said: str


class Running:
    """A command that was started."""

    def __init__(self, lab: Lab, pid: int, log: Path) -> None:
        self._lab, self._log, self.pid = lab, log, pid

    def poll(self, seconds: float = 0.0) -> Ended | None:
        code = self._lab.ask({"do": "wait", "pid": self.pid, "seconds": seconds})
        return None if code is None else Ended(code, self._log.read_text(errors="replace"))

    def end(self) -> Ended:
        ended = self.poll(LONGEST)
        if ended is None:
            os.killpg(self.pid, signal.SIGKILL)
            said = self._log.read_text(errors="replace")
            self.poll(5.0)
            raise AssertionError(f"it still ran after {LONGEST:.0f} s\n{said}")
        return ended


class Lab:
    """One stage in its folder `out`, with the server that forks its command under the shim.

    Attributes:
        out: where the stage writes; empty before each case.
        undisturbed: what it writes there without a fault, by path.
        kinds: the operations of that run, one letter each.
        seconds: how long that run took.
        bytes: what it takes on the disk.
        largest: bytes of its largest file.
    """

    def __init__(self, stage: Stage, inputs: Path, folder: Path, library: Path) -> None:
        self.stage, self.folder, self.out = stage, folder, folder / "out"
        self.inputs = inputs
        self.out.mkdir(parents=True)
        self.shim = Shim(folder / "state")
        self._runs = 0
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "FAULTS_STATE": str(self.shim.path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "EMMA_PROGRESS": "0",
            "EMMA_CACHE": str(inputs / "cache"),
            "PYTHONPATH": str(ROOT),
        }
        environment.pop("EMMA_DEBUG", None)
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.faults.server", stage.entry, *stage.modules],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "server.log").open("w"),
            text=True,
            bufsize=1,
        )
        assert self._answer() == "ready"
        # Fills the caches of the inputs, and tells which modules each further run would import again.
        modules = folder / "modules"
        ended = self.start(modules=str(modules)).end()
        assert ended.code == 0, ended.said
        self.ask({"do": "import", "modules": modules.read_text().split("\n")})
        self.clear()
        self.shim.arm(self.out)
        begun = time.monotonic()
        ended = self.run(armed=True)
        self.seconds = time.monotonic() - begun
        assert ended.code == 0, ended.said
        self.kinds = self.shim.kinds
        self.undisturbed = self.content()
        files = [path.stat() for path in self.out.rglob("*") if path.is_file() and not path.is_symlink()]
        self.bytes = sum(file.st_blocks * 512 for file in files)
        self.largest = max(file.st_size for file in files)

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, (self.folder / "server.log").read_text()
        return json.loads(line)

    def start(self, *, modules: str = "", **limits: int) -> Running:
        self._runs += 1
        log = self.folder / f"log-{self._runs}"
        log.unlink(missing_ok=True)
        argv = [part.format(out=self.out, inputs=self.inputs) for part in self.stage.argv]
        pid = self.ask({"do": "start", "argv": argv, "log": str(log), "limits": limits, "modules": modules})
        return Running(self, pid, log)

    def run(self, *, armed: bool = False, **limits: int) -> Ended:
        """Runs the command to its end; without a fault unless it is armed."""
        if not armed:
            self.shim.arm(self.out)
        return self.start(**limits).end()

    def pause(self, at: int) -> Running:
        """Starts the command and returns when it stands before operation `at`."""
        self.shim.arm(self.out, "pause", at)
        running = self.start()
        deadline = time.monotonic() + LONGEST
        while not self.shim.state.paused:
            assert time.monotonic() < deadline and running.poll() is None, "it never came there"
            time.sleep(0.002)
        return running

    def content(self) -> dict[str, str]:
        return self.stage.content(self.out)

    def half_written(self) -> list[str]:
        """Files with their final names that are not what an undisturbed run writes."""
        if not self.stage.final_names:
            return []
        now, faults = self.content(), []
        for name, value in now.items():
            if any(part.startswith(".") for part in Path(name).parts) or name.endswith(".jsonl"):
                continue
            if self.undisturbed.get(name) != value:
                faults.append(name)
        return faults

    def clear(self) -> None:
        """Empties `out`; it may be a mount."""
        self.shim.disarm()
        if self.out.is_symlink() or self.out.is_file():
            self.out.unlink()
        self.out.mkdir(exist_ok=True)
        for path in self.out.iterdir():
            if path.name == "lost+found":
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    @contextmanager
    def ext4(self, megabytes: int = 64) -> Iterator[Path]:
        """A file system of its own at `out`, in a file; yields the file."""
        image = self.folder / "image"
        with image.open("wb") as handle:
            handle.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "4096", str(image)], check=True)
        self.mount(image)
        try:
            yield image
        finally:
            self.unmount()
            image.unlink()

    def mount(self, image: Path) -> None:
        subprocess.run(["mount", "-o", "loop", str(image), str(self.out)], check=True)
        with suppress(FileNotFoundError):
            (self.out / "lost+found").rmdir()

    def unmount(self) -> None:
        """Returns when the file system is gone: one that is only hidden would be mounted again as it is, without its
        disk being read."""
        for _ in range(50):
            if subprocess.run(["umount", str(self.out)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", str(self.out)], check=True)
        deadline = time.monotonic() + LONGEST
        while any(self._holds_image(device) for device in Path("/sys/block").glob("loop*")):
            assert time.monotonic() < deadline, f"somebody else still has {self.out} mounted"
            time.sleep(0.05)

    def _holds_image(self, device: Path) -> bool:
        with suppress(OSError):  # the device is free, or becomes so while it is looked at
            return (device / "loop" / "backing_file").read_text().strip() == str(self.folder / "image")
        return False

    @contextmanager
    def tmpfs(self, size: int) -> Iterator[None]:
        """A file system in memory of `size` bytes at `out`."""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={max(4096, size)}", "tmpfs", str(self.out)], check=True
        )
        try:
            yield
        finally:
            self.unmount()

    def shut_down(self) -> None:
        """What is not on disk yet is lost, and each later call fails with EIO: a power cut, or a dead disk."""
        descriptor = os.open(self.out, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def abort(self) -> None:
        """The kernel gives up on the file system as after a fault of the disk: it is read-only from now on."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.out)], check=False, capture_output=True)
