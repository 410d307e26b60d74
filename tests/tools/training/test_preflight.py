"""The test of nodes before training."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from emma.base.files import read_json
from emma.recipes.devices import device
from emma.tools.training.preflight import check_device, check_disk, occupied
from emma.tools.training.preflight_rates import Rates, link_rates, product_tflops, slow_parts
from tests.ports import free_port
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[3]


def start(folder: Path, rank: int, ranks: int, per_node: int, kind: str, port: int) -> subprocess.Popen[str]:
    slurm = {"SLURM_PROCID": rank, "SLURM_NTASKS": ranks, "SLURM_LOCALID": 0, "SLURM_JOB_ID": 7}
    torch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    values = {key: str(value) for key, value in {**slurm, **torch}.items()}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "emma.tools.training.preflight", str(folder), str(per_node), kind],
        cwd=ROOT,
        env={**os.environ, **values, "SLURMD_NODENAME": f"n{rank}", "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("gpus", [0, 8])
def test_every_rank_reports_its_node(gpus: int, tmp_path: Path) -> None:
    """Two healthy CPU ranks pass; where GPUs are expected and none is there, both nodes say so."""
    port = free_port()
    ranks = (
        [start(tmp_path, rank, 2, 1, "cpu", port) for rank in range(2)]
        if gpus == 0
        else [start(tmp_path, 0, 1, 8, "h100", port)]
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
            assert report["rates"]["from_before"] > 0 and report["rates"]["inside"] is None


def test_a_disk_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    assert check_disk(tmp_path, 0) == []
    assert check_disk(tmp_path / "gone", 0) == [
        f"{tmp_path}/gone: cannot be written: No such file or directory"
    ]


def test_an_occupied_device_is_a_fault() -> None:
    assert occupied(3, 20 << 30, 80 << 30) == ["GPU 3: only 20 of 80 GiB are free"]
    assert occupied(3, 79 << 30, 80 << 30) == []


@pytest.mark.gpu
def test_a_healthy_gpu_passes() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert check_device(0, 1) == []
    name = torch.cuda.get_device_name(0)
    kind = next((kind for kind in ("h200", "gh200", "h100", "a100", "b200") if kind.upper() in name), None)
    peak = None if kind is None else device(kind).peak_tflops("bf16")
    speed = product_tflops(torch.device("cuda"))
    print(f"{name}: {speed:.0f} TFLOP/s in BF16, peak {peak}")
    assert slow_parts([Rates(speed, None, None)], 1, peak) == {}
    assert check_device(0, torch.cuda.device_count() + 1) == [
        f"{torch.cuda.device_count()} GPUs are visible, {torch.cuda.device_count() + 1} are expected"
    ]


def links(per_node: int) -> tuple[float | None, float | None]:
    """In a rank: what its links reach over gloo."""
    import torch

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo")
    return link_rates(rank, ranks, per_node, on_gpu=False)


@pytest.mark.parametrize(("ranks", "per_node"), [(6, 2), (4, 2), (3, 1), (2, 2), (1, 1)])
def test_every_link_of_the_ring_is_measured_once(ranks: int, per_node: int) -> None:
    for inside, before in run_ranks(links, ranks, per_node, timeout=120):
        assert (inside is not None) == (per_node > 1) and (before is not None) == (ranks > per_node)
        assert all(value > 0 for value in (inside, before) if value is not None)


def healthy(ranks: int) -> list[Rates]:
    """Nodes of four GPUs that differ as boards do."""
    return [Rates(600 + 10 * (rank % 3), 350 + rank % 5, 40 + rank % 2) for rank in range(ranks)]


def test_boards_that_differ_by_a_few_percent_pass() -> None:
    assert slow_parts(healthy(512), 4, 989.4) == {}
    assert slow_parts([Rates(None, None, None)] * 4, 2, None) == {}


def test_a_throttled_device_is_named() -> None:
    rates = healthy(16)
    rates[5] = replace(rates[5], tflops=450.0)
    assert slow_parts(rates, 4, 989.4) == {5: ["450 TFLOP/s in BF16, the median of 16 ranks is 610"]}
    assert slow_parts([replace(rate, tflops=300.0) for rate in rates], 4, 989.4) == {
        rank: ["300 TFLOP/s in BF16, below 40% of the device's 989"] for rank in range(16)
    }


def test_a_slow_node_of_two_is_named() -> None:
    rates = [replace(rate, tflops=500.0) if rank >= 4 else rate for rank, rate in enumerate(healthy(8))]
    assert set(slow_parts(rates, 4, 989.4)) == {4, 5, 6, 7}


def test_the_node_between_two_slow_links_is_at_fault() -> None:
    rates = healthy(16)
    for rank in (6, 10):  # into the second node from the first, and into the third from the second
        rates[rank] = replace(rates[rank], from_before=15.0)
    assert slow_parts(rates, 4, 989.4) == {
        6: ["15.0 GB/s from the node before and to the next, the median is 41.0"]
    }
    rates[10] = healthy(16)[10]
    assert slow_parts(rates, 4, 989.4) == {}, "one slow link has two ends"
    rates[3] = replace(rates[3], inside=100.0)
    assert slow_parts(rates, 4, 989.4) == {
        3: ["all-reduce within the node at 100.0 GB/s, the median is 352.0"]
    }
