"""The test of nodes before training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emma.base.files import read_json
from emma.tools.training.preflight import check_device, check_disk, occupied, too_slow

ROOT = Path(__file__).resolve().parents[3]


def start(folder: Path, rank: int, ranks: int, gpus: int, port: int) -> subprocess.Popen[str]:
    slurm = {"SLURM_PROCID": rank, "SLURM_NTASKS": ranks, "SLURM_LOCALID": 0, "SLURM_JOB_ID": 7}
    torch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    values = {key: str(value) for key, value in {**slurm, **torch}.items()}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "emma.tools.training.preflight", str(folder), str(gpus)],
        cwd=ROOT,
        env={**os.environ, **values, "SLURMD_NODENAME": f"n{rank}", "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("gpus", [0, 8])
def test_every_rank_reports_its_node(gpus: int, tmp_path: Path) -> None:
    """Two healthy CPU ranks pass; where GPUs are expected and none is there, both nodes say so."""
    port = free_port()
    ranks = (
        [start(tmp_path, rank, 2, gpus, port) for rank in range(2)]
        if gpus == 0
        else [start(tmp_path, 0, 1, 8, port)]
    )
    said = [process.communicate(timeout=300)[1] for process in ranks]
    for rank, process in enumerate(ranks):
        report = read_json(tmp_path / f"preflight-{rank}.json")
        assert report["node"] == f"n{rank}"
        if gpus:
            assert process.returncode == 1 and report["faults"] == ["0 GPUs are visible, 8 are expected"]
            assert "n0: 0 GPUs are visible" in said[0]
        else:
            assert process.returncode == 0 and report["faults"] == [] and report["network"] == [], said


def test_a_disk_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    assert check_disk(tmp_path, 0) == []
    assert check_disk(tmp_path / "gone", 0) == [
        f"{tmp_path}/gone: cannot be written: No such file or directory"
    ]


def test_slow_and_occupied_devices_are_faults() -> None:
    assert too_slow("cuda:3", 12.0) == ["cuda:3: 12 TFLOP/s in BF16, below 20"]
    assert too_slow("cuda:3", 400.0) == []
    assert occupied(3, 20 << 30, 80 << 30) == ["GPU 3: only 20 of 80 GiB are free"]
    assert occupied(3, 79 << 30, 80 << 30) == []


@pytest.mark.gpu
def test_a_healthy_gpu_passes() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert check_device(0, 1) == []
    assert check_device(0, torch.cuda.device_count() + 1) == [
        f"{torch.cuda.device_count()} GPUs are visible, {torch.cuda.device_count() + 1} are expected"
    ]
