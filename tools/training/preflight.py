"""A short test of every device of a job before training, one process per rank, started by srun as the ranks
are: `python -P -m emma.tools.training.preflight FOLDER RANKS_PER_NODE DEVICE`.

Each rank writes `FOLDER/preflight-<rank>.json` with its node and the faults it found: too few devices, memory
that someone else holds, a wrong or slow matrix product, an all-reduce that is wrong or never returns, slow links, a
disk that cannot be written. The exit code is 1 if this rank found a fault. `slurm/link.py` makes a list of faulty
nodes of the reports, and `slurm/templates/ranks.sh.j2` continues without them.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emma.base.claims import temporary_name
from emma.base.files import write_json
from emma.base.system_errors import report
from emma.recipes.devices import device
from emma.tools.training.preflight_rates import Rates, link_rates, product_tflops, slow_parts

__all__ = ["check_device", "check_disk", "check_network", "main"]

# A healthy device is far from this bound: someone else's process holds more.
MIN_FREE_MEMORY = 0.9
NETWORK_SECONDS = 120
_SIZE = 4096
_CPU_SIZE = 256


def check_device(local_rank: int, expected: int) -> list[str]:
    """Faults of this rank's device: number of devices on the node, free memory, a matrix product compared
    with its exact value."""
    import torch

    if torch.cuda.device_count() < expected:
        return [f"{torch.cuda.device_count()} GPUs are visible, {expected} are expected"]
    place = torch.device("cuda", local_rank) if expected else torch.device("cpu")
    faults = []
    if place.type == "cuda":
        torch.cuda.set_device(place)
        free, total = torch.cuda.mem_get_info(place)
        faults += occupied(local_rank, free, total)
    return faults + _check_product(place)


def _check_product(place: Any) -> list[str]:
    """In FP32 and TF32, small whole numbers add up exactly, in any order, so a wrong bit shows."""
    import torch

    size = _SIZE if place.type == "cuda" else _CPU_SIZE
    rows = (torch.arange(size, device=place) % 3).float().repeat(size, 1)
    exact = float((torch.arange(size) % 3).square().sum())
    if not bool((rows @ rows.T == exact).all()):
        return [f"{place}: a matrix product is wrong"]
    return []


def occupied(local_rank: int, free: int, total: int) -> list[str]:
    """The fault of a device whose memory (bytes) somebody else holds."""
    if free >= MIN_FREE_MEMORY * total:
        return []
    return [f"GPU {local_rank}: only {free / 2**30:.0f} of {total / 2**30:.0f} GiB are free"]


def check_network(
    rank: int, world_size: int, per_node: int, kind: str, healthy: bool
) -> tuple[list[str], list[str], Rates | None]:
    """Faults of the network, what is slow about this rank, and what it measured.

    An all-reduce over all ranks shows whether they find each other; then each measures its rates and sees all others'.

    Args:
        rank: of this process.
        world_size: number of ranks.
        per_node: ranks of each node.
        kind: value of `cluster.device`.
        healthy: whether this rank's device can be measured.
    """
    import torch

    distributed, on_gpu = torch.distributed, kind != "cpu"
    slow: list[str] = []
    mine: Rates | None = None
    limit = datetime.timedelta(seconds=NETWORK_SECONDS)
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo", rank=rank, world_size=world_size, timeout=limit
        )
        numbers = torch.full((1024,), float(rank + 1), device="cuda" if on_gpu else "cpu")
        distributed.all_reduce(numbers)
        right = bool((numbers == world_size * (world_size + 1) / 2).all())
        if right:
            tflops = product_tflops(torch.device("cuda")) if on_gpu and healthy else None
            mine = Rates(tflops, *link_rates(rank, world_size, per_node, on_gpu))
            everyone: list[Any] = [None] * world_size
            distributed.all_gather_object(everyone, mine)
            if on_gpu:  # ranks on a CPU share its cores
                peak = device(kind).peak_tflops("bf16")
                slow = slow_parts(everyone, per_node, peak).get(rank, [])
        distributed.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        # torch's distributed errors are RuntimeErrors; NCCL without a device raises ValueError.
        return [f"all-reduce over {world_size} ranks: {str(error).splitlines()[0]}"], slow, mine
    return ([] if right else [f"all-reduce over {world_size} ranks gave a wrong sum"]), slow, mine


def check_disk(folder: Path, rank: int) -> list[str]:
    """Faults of writing to the run's folder and to the node's temporary folder."""
    faults = []
    for place in (folder, Path(os.environ.get("TMPDIR", "/tmp"))):
        probe = place / temporary_name(f"preflight-{rank}", "probe")
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
    if len(arguments) != 3 or not arguments[1].isdigit():
        print(
            "usage: python -P -m emma.tools.training.preflight FOLDER RANKS_PER_NODE DEVICE", file=sys.stderr
        )
        return 2
    folder, per_node, kind, env = Path(arguments[0]), int(arguments[1]), arguments[2], os.environ
    rank, world_size, local_rank = (int(env[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))
    report, node = folder / f"preflight-{rank}.json", env.get("SLURMD_NODENAME", socket.gethostname())
    faults = check_disk(folder, rank)
    try:
        faults += check_device(local_rank, 0 if kind == "cpu" else per_node)
    except RuntimeError as error:
        # What a broken device or driver raises.
        faults.append(f"device {local_rank}: {str(error).splitlines()[0]}")
    # Written before the all-reduce, so that a broken node is named even if the network test hangs on it.
    write_json(report, {"node": node, "rank": rank, "faults": faults, "network": ["not tested"]})
    # A rank with faults takes part too, so that the others do not wait for it in vain.
    network, slow, rates = check_network(rank, world_size, per_node, kind, not faults)
    faults += slow
    measured = None if rates is None else asdict(rates)
    write_json(report, {"node": node, "rank": rank, "faults": faults, "network": network, "rates": measured})
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
