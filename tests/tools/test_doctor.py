"""`emma doctor` on the machine at hand, and on machines made up of small scripts on the PATH."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from emma.commands.doctor import command
from emma.tools import doctor

NO_GPU = {
    "version": "2.13.0",
    "cuda_build": "13.0",
    "cuda_available": False,
    "gpus": 0,
    "gloo": True,
    "nccl": None,
}
ONE_GPU = NO_GPU | {"cuda_available": True, "gpus": 1, "nccl": "2.29.7"}


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def torch_says(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> None:
    monkeypatch.setattr(doctor, "_ask_torch", lambda problems: answer)


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Makes the packages look installed in these versions (None: not at all); underscores stand for hyphens."""
    real = metadata.version

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key not in versions:
            return real(name)
        found = versions[key]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_this_machine_as_json() -> None:
    result = CliRunner().invoke(command, ["--json"])
    report = json.loads(result.output)
    assert report["trains_on"] in ("cpu", "gpu"), report["problems"]
    assert 1 <= report["cores"] <= (os.cpu_count() or 1)
    assert 0 < report["memory_available_gib"] <= report["memory_gib"]
    assert report["disk_free_gib"] > 0
    assert report["packages"]["megatron-core"] == metadata.version("megatron-core")
    assert report["torch"]["version"].startswith(metadata.version("torch").partition("+")[0])
    assert {patch["name"] for patch in report["patches"]} >= {
        "cpu-backend",
        "torch-adam-resume",
        "rope-scaling",
    }
    assert all(patch["reason"] and patch["why"] and patch["upstream"] for patch in report["patches"])


def test_the_command_fails_only_where_nothing_can_train(
    monkeypatch: pytest.MonkeyPatch, bin_folder: Path
) -> None:
    torch_says(monkeypatch, NO_GPU)
    result = CliRunner().invoke(command, standalone_mode=False)
    assert result.return_value == 0
    assert "ready to train on the CPU" in result.output
    installed(monkeypatch, megatron_core=None)
    result = CliRunner().invoke(command, standalone_mode=False)
    assert result.return_value == 1
    assert "megatron-core is not installed. Fix: pip install 'emma-recipes[train]'" in result.output
    assert "cannot train here" in result.output


def test_every_patch_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
    torch_says(monkeypatch, NO_GPU)
    report = doctor.examine()
    text = doctor.format_report(report)
    for patch in report.patches:
        assert f"{'on ' if patch.on else 'off'}  {patch.name}: {patch.why}" in text
        assert patch.reason in text and patch.upstream in text


def test_gpus_are_what_the_driver_lists(monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
    script(bin_folder, "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 81559, 580.65.06, 9.0'")
    torch_says(monkeypatch, ONE_GPU)
    report = doctor.examine()
    assert report.gpus == [doctor.Gpu("NVIDIA H100 80GB HBM3", 79.6, "580.65.06", "9.0")]
    assert report.trains_on == "gpu"
    assert any("Transformer Engine is missing" in problem for problem in report.problems)
    assert any("no C compiler" in problem for problem in report.problems)
    script(bin_folder, "gcc", "exit 0")
    assert not any("no C compiler" in problem for problem in doctor.examine().problems)
    assert "compute capability 9.0, driver 580.65.06" in doctor.format_report(report)


def test_gpus_that_torch_cannot_use_are_a_problem(monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
    script(bin_folder, "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 81559, 470.1, 9.0'")
    torch_says(monkeypatch, NO_GPU)
    report = doctor.examine()
    assert report.trains_on == "cpu"
    assert any(
        "lists 1 GPU(s) and torch 2.13.0 (CUDA 13.0) uses none" in problem for problem in report.problems
    )


def test_a_broken_driver_is_a_problem_and_not_the_end(
    monkeypatch: pytest.MonkeyPatch, bin_folder: Path
) -> None:
    script(bin_folder, "nvidia-smi", "echo 'cannot communicate with the driver' >&2; exit 9")
    torch_says(monkeypatch, NO_GPU)
    report = doctor.examine()
    assert report.gpus == [] and report.trains_on == "cpu"
    assert any("nvidia-smi fails (exit code 9: cannot communicate" in problem for problem in report.problems)


def test_a_torch_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ASK_TORCH", "import os; os.abort()")
    report = doctor.examine()
    assert report.trains_on is None
    assert any("torch is installed but cannot be imported" in problem for problem in report.problems)


def test_an_untested_version_prevents_training(monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
    torch_says(monkeypatch, NO_GPU)
    installed(monkeypatch, megatron_core="0.20.0")
    report = doctor.examine()
    assert report.trains_on is None
    assert any(
        "patch rope-scaling was tested with megatron-core 0.19.2" in problem for problem in report.problems
    )


@pytest.mark.parametrize(
    ("sbatch", "said"),
    [
        ("echo 'slurm 24.05.4'", "Slurm        slurm 24.05.4: sbatch, sinfo"),
        ("echo 'no configuration' >&2; exit 1", "not usable (exit code 1: no configuration): sbatch, sinfo"),
    ],
)
def test_slurm(sbatch: str, said: str, monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
    torch_says(monkeypatch, NO_GPU)
    script(bin_folder, "sbatch", sbatch)
    script(bin_folder, "sinfo", "true")
    report = doctor.examine()
    assert report.slurm["sbatch"] == str(bin_folder / "sbatch") and report.slurm["srun"] is None
    assert said in doctor.format_report(report)


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
    torch_says(monkeypatch, NO_GPU)
    assert "Slurm        not installed" in doctor.format_report(doctor.examine())
