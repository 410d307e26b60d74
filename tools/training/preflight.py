"""A short test of every device of a job before training, one process per rank, started by srun as the ranks
are: `python -P -m emma.tools.training.preflight FOLDER GPUS_PER_NODE`.

Each rank writes `FOLDER/preflight-<rank>.json` with its node and the faults it found: too few devices, memory
that someone else holds, a wrong or slow matrix product, an all-reduce that is wrong or never returns, a disk
that cannot be written. The exit code is 1 if this rank found a fault. `slurm/link.py` makes a list of faulty
nodes of the reports, and `slurm/templates/ranks.sh.j2` continues without them.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from emma.base.claims import temporary_name
from emma.base.files import write_json
from emma.base.system_errors import report

__all__ = ["check_device", "check_disk", "check_network", "main"]

# A healthy device is far from these bounds: they find what is broken, not what is slow.
MIN_FREE_MEMORY = 0.9
MIN_TFLOPS = 20.0
NETWORK_SECONDS = 120
_SIZE = 4096
_CPU_SIZE = 256


def check_device(local_rank: int, expected: int) -> list[str]:
    """Faults of this rank's device: number of devices on the node, free memory, a matrix product compared
    with its exact value and, on a GPU, its speed in BF16."""
    import torch

    if torch.cuda.device_count() < expected:
        return [f"{torch.cuda.device_count()} GPUs are visible, {expected} are expected"]
    device = torch.device("cuda", local_rank) if expected else torch.device("cpu")
    faults = []
    if device.type == "cuda":
        torch.cuda.set_device(device)
        free, total = torch.cuda.mem_get_info(device)
        if free < MIN_FREE_MEMORY * total:
            faults.append(f"GPU {local_rank}: only {free / 2**30:.0f} of {total / 2**30:.0f} GiB are free")
    return faults + _check_product(device)


def _check_product(device: Any) -> list[str]:
    """In FP32 and TF32, small whole numbers add up exactly, in any order, so a wrong bit shows."""
    import torch

    on_gpu = device.type == "cuda"
    size = _SIZE if on_gpu else _CPU_SIZE
    rows = (torch.arange(size, device=device) % 3).float().repeat(size, 1)
    exact = float((torch.arange(size) % 3).square().sum())
    if not bool((rows @ rows.T == exact).all()):
        return [f"{device}: a matrix product is wrong"]
    if not on_gpu:
        return []
    rows, rounds = rows.bfloat16(), 20
    torch.mm(rows, rows.T)
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(rounds):
        torch.mm(rows, rows.T)
    torch.cuda.synchronize(device)
    tflops = rounds * 2 * size**3 / (time.perf_counter() - begun) / 1e12
    return [f"{device}: {tflops:.0f} TFLOP/s in BF16, below {MIN_TFLOPS:.0f}"] if tflops < MIN_TFLOPS else []


def check_network(rank: int, world_size: int, on_gpu: bool) -> list[str]:
    """Faults of an all-reduce over all ranks, which also shows whether they find each other."""
    import torch

    distributed = torch.distributed
    limit = datetime.timedelta(seconds=NETWORK_SECONDS)
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo", rank=rank, world_size=world_size, timeout=limit
        )
        numbers = torch.full((1024,), float(rank + 1), device="cuda" if on_gpu else "cpu")
        distributed.all_reduce(numbers)
        right = bool((numbers == world_size * (world_size + 1) / 2).all())
        distributed.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        # torch's distributed errors are RuntimeErrors; NCCL without a device raises ValueError.
        return [f"all-reduce over {world_size} ranks: {str(error).splitlines()[0]}"]
    return [] if right else [f"all-reduce over {world_size} ranks gave a wrong sum"]


def check_disk(folder: Path, rank: int) -> list[str]:
    """Faults of writing to the run's folder and to the node's temporary folder."""
    faults = []
    for place in (folder, Path(os.environ.get("TMPDIR", "/tmp"))):
        probe = place / temporary_name(f"preflight-{rank}")
        try:
            with probe.open("wb") as handle:
                handle.write(b"\0" * (1 << 20))
                handle.flush()
                os.fsync(handle.fileno())
            probe.unlink()
        except OSError as error:
            faults.append(f"{place}: cannot be written: {error.strerror}")
    return faults


def main(arguments: list[str]) -> int:
    """Entry point of a rank."""
    if len(arguments) != 2 or not arguments[1].isdigit():
        print("usage: python -P -m emma.tools.training.preflight FOLDER GPUS_PER_NODE", file=sys.stderr)
        return 2
    folder, expected, env = Path(arguments[0]), int(arguments[1]), os.environ
    rank, world_size, local_rank = (int(env[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))
    report, node = folder / f"preflight-{rank}.json", env.get("SLURMD_NODENAME", socket.gethostname())
    faults = check_disk(folder, rank)
    try:
        faults += check_device(local_rank, expected)
    except RuntimeError as error:
        # What a broken device or driver raises.
        faults.append(f"device {local_rank}: {str(error).splitlines()[0]}")
    # Written before the all-reduce, so that a broken node is named even if the network test hangs on it.
    write_json(report, {"node": node, "rank": rank, "faults": faults, "network": ["not tested"]})
    # A rank with faults takes part too, so that the others do not wait for it in vain.
    network = check_network(rank, world_size, expected > 0)
    write_json(report, {"node": node, "rank": rank, "faults": faults, "network": network})
    for fault in faults + network:
        print(f"{node}: {fault}", file=sys.stderr)
    return 1 if faults or network else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        if (code := report(error)) is None:
            raise
        sys.exit(code)
