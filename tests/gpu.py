"""Tests on real GPUs: what they need, and their own ranks (tests/ranks.py hides GPUs from its ranks)."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

__all__ = ["require_gpus", "run_on_gpus"]

ROOT = Path(__file__).resolve().parents[1]


def require_gpus(count: int = 1, *, hopper: bool = False) -> str:
    """Skips the test, with the reason, if GPUs or Transformer Engine are missing.

    Args:
        count: GPUs the test needs.
        hopper: whether FP8 tensor cores of Hopper or later are needed.

    Returns:
        `cluster.device` of this machine's GPUs.
    """
    import torch

    from benchmarks.gpus import device_of

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        pytest.skip(f"needs {count} NVIDIA GPU(s); this machine shows {found}")
    if find_spec("transformer_engine") is None:
        pytest.skip("needs transformer_engine (pip install 'emma-recipes[gpu]')")
    if hopper and torch.cuda.get_device_capability(0) < (9, 0):
        pytest.skip("needs Hopper or later for FP8")
    return device_of(torch.cuda.get_device_name(0))


def run_on_gpus(function: Callable[..., Any], ranks: int, folder: Path, *args: Any) -> list[Any]:
    """Runs `function(*args)` in one process per GPU, with torch's rank variables; returns the results rank by rank."""
    port = free_port()
    call = folder / "call.pickle"
    call.write_bytes(pickle.dumps((function.__module__, function.__qualname__, args)))
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_DEVICE_MAX_CONNECTIONS": 1}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.gpu", str(call), str(folder / f"result-{rank}.pickle")],
                cwd=ROOT,
                env={**os.environ, **{name: str(value) for name, value in place.items()}},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=600)[0] for process in processes]
    for process, output in zip(processes, said, strict=True):
        assert process.returncode == 0, output[-6000:]
    return [pickle.loads((folder / f"result-{rank}.pickle").read_bytes()) for rank in range(ranks)]


def main(call: Path, result: Path) -> None:
    """One rank: `python -m tests.gpu CALL RESULT`."""
    from emma import megatron_patches

    megatron_patches.apply()
    import torch

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    module, name, args = pickle.loads(call.read_bytes())
    result.write_bytes(pickle.dumps(getattr(importlib.import_module(module), name)(*args)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
