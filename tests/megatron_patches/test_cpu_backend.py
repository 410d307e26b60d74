"""Megatron on the CPU: what fails without the patch, and what torch.cuda answers with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.megatron_patches.conftest import Reference
from tests.megatron_patches.small_run import furthest, train, train_without
from tests.ranks import RanksError, run_ranks, start_ranks


def answers() -> dict[str, Any]:
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    with torch.cuda.stream(torch.cuda.Stream()):
        made = torch.empty(3, device="cuda")
    end.record()
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    first = torch.rand(4, device="cuda:0")
    torch.cuda.set_rng_state(state)
    again = torch.rand(4, device="cuda")
    stats = torch.cuda.memory_stats()
    return {
        "available": torch.cuda.is_available(),
        "devices": (torch.cuda.current_device().type, torch.cuda.device_count()),
        "made": (made.device.type, made.cuda().device.type, made.to("cuda").device.type),
        "module": torch.nn.Linear(2, 2).cuda().weight.device.type,
        "types": (
            parameter.type(),
            torch.zeros(1).type(),
            parameter.type(torch.float32).dtype == torch.float32,
        ),
        "same": torch.equal(first, again),
        "elapsed": start.elapsed_time(end) >= 0,
        "memory": stats["allocated_bytes.all.current"] == stats["reserved_bytes.all.current"] > 100e6,
        "peak": torch.cuda.max_memory_allocated() >= torch.cuda.memory_allocated() > 100e6,
        "capability": torch.cuda.get_device_capability(),
    }


def compiled() -> bool:
    """Whether torch.compile compiles: Megatron decorates its small kernels with it."""
    import torch

    seen = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2))
    return bool(seen)


def test_pretrain_fails_without_the_patch() -> None:
    with pytest.raises(RanksError, match="parallel group is not initialized"):
        run_ranks(train_without, 1, "cpu-backend", patched=False)


def test_pretrain_learns_with_the_patch(reference: Reference) -> None:
    assert [step for step, _ in reference.losses] == list(range(1, 9))
    assert reference.losses[-1][1] < reference.losses[0][1] - 0.1


def test_torch_cuda_answers_for_the_cpu() -> None:
    first, second = run_ranks(answers, 2)
    assert first == {
        "available": False,
        "devices": ("cpu", 2),
        "made": ("cpu", "cpu", "cpu"),
        "module": "cpu",
        "types": ("torch.cuda.BFloat16Tensor", "torch.cuda.FloatTensor", True),
        "same": True,
        "elapsed": True,
        "memory": True,
        "peak": True,
        "capability": (9, 0),
    }
    assert second == first


def test_torch_compile_stays_out() -> None:
    assert run_ranks(compiled, 1, patched=False) == [True]
    assert run_ranks(compiled, 1) == [False]


def test_interleaved_pipeline_in_bf16_with_validation(reference: Reference) -> None:
    flags = "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --bf16"
    job = start_ranks(
        train, 2, *flags.split(), "--eval-iters", "1", "--eval-interval", "2", "--load", str(reference.folder)
    )
    *_, losses = job.wait()
    assert furthest(losses, reference.second_half) < 5e-3
    validated = re.findall(r"validation loss at iteration (\d+) \| lm loss value: ([\d.E+-]+)", job.output(1))
    assert [step for step, _ in validated] == ["6", "8"]
    assert all(abs(float(loss) - losses[-1][1]) < 1.0 for _, loss in validated)


def run_python(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )


def test_gpu_libraries_are_hidden_and_the_run_says_that_it_is_on_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "transformer_engine.py").write_text(
        "raise OSError('libcuda.so.1: cannot open shared object file')"
    )
    done = run_python(
        tmp_path,
        "from emma.megatron_patches.cpu_backend import install\n"
        "install()\n"
        "try:\n    import transformer_engine\n"
        "except ImportError:\n    print('hidden')\n",
    )
    assert done.stdout == "hidden\n", done.stderr
    assert done.stderr.count("no GPU: Megatron trains on the CPU") == 1


def test_a_library_that_is_imported_already_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "transformer_engine.py").write_text("")
    done = run_python(
        tmp_path,
        "import transformer_engine\n"
        "from emma.megatron_patches.cpu_backend import hide_gpu_libraries\n"
        "hide_gpu_libraries()\n",
    )
    assert done.returncode == 1
    assert "transformer_engine was imported before the CPU backend" in done.stderr
