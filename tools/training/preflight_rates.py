"""How fast a device multiplies and how fast its links are, each against what it should be.

A product is compared with the device's peak (`recipes/devices.yaml`) and with the other ranks', a link with the other
ranks' only: what a network should reach is known of few clusters, but a broken cable shows beside the others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Rates", "link_rates", "product_seconds", "product_tflops", "slow_parts"]

MIN_SHARE_OF_PEAK = 0.4
"""Published runs reach 44 to 56 % of the BF16 peak over a whole step (recipes of `tools/plan/published.yaml`); a bare
product that is slower than a step keeps every other rank waiting."""
MIN_SHARE_OF_OTHERS = 0.85
"""Boards of one kind differ by a few percent; a throttled one loses more."""
MIN_SHARE_OF_LINKS = 0.5
"""Links are shared with other jobs; a lane that is down halves them."""
_SIZE, _ROUNDS = 8192, 20
_BYTES = 256 << 20
_CPU_BYTES = 1 << 16


@dataclass(frozen=True)
class Rates:
    """What one rank measured; None where there is nothing to measure."""

    tflops: float | None
    """Matrix product in BF16, TFLOP/s."""
    inside: float | None
    """All-reduce over the ranks of the node, GB/s over each rank's link (bus bandwidth as nccl-tests counts it)."""
    from_before: float | None
    """What arrives from the node before in the ring of nodes, GB/s."""


def product_tflops(device: Any, size: int = _SIZE, rounds: int = _ROUNDS) -> float:
    """Speed of a `size` × `size` matrix product in BF16 on a GPU, TFLOP/s."""
    return 2 * size**3 / product_seconds(device, size, rounds) / 1e12


def product_seconds(device: Any, size: int, rounds: int) -> float:
    """Seconds of one such product, mean of `rounds` after a first."""
    import torch

    rows = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    return _seconds(lambda: torch.mm(rows, rows), lambda: torch.cuda.synchronize(device), rounds)


def link_rates(rank: int, world_size: int, per_node: int, on_gpu: bool) -> tuple[float | None, float | None]:
    """Rates of a rank's links: within its node, and from the node before. Collective over the default group.

    Args:
        rank: of this process; ranks of a node are consecutive.
        world_size: number of ranks.
        per_node: ranks of each node.
        on_gpu: whether to send from GPU memory, in pieces large enough to fill a link.
    """
    import torch

    distributed, place = torch.distributed, "cuda" if on_gpu else "cpu"
    size = _BYTES if on_gpu else _CPU_BYTES
    wait: Callable[[], Any] = torch.cuda.synchronize if on_gpu else lambda: None
    content, received = (torch.ones(size // 4, device=place) for _ in range(2))
    groups = [
        distributed.new_group(range(first, first + per_node)) for first in range(0, world_size, per_node)
    ]
    inside = before = None
    if per_node > 1:
        seconds = _seconds(lambda: distributed.all_reduce(content, group=groups[rank // per_node]), wait)
        inside = 2 * (per_node - 1) / per_node * size / seconds / 1e9
    nodes, node = world_size // per_node, rank // per_node
    for sender in _phases(nodes, node):
        # Alone in its phase, either as sender or as receiver: one slow link shows at one rank.
        to, peer = sender == node, rank + (per_node if sender == node else -per_node)
        operation = distributed.P2POp(
            distributed.isend if to else distributed.irecv, content if to else received, peer % world_size
        )

        def pass_on(operation: Any = operation) -> None:
            for request in distributed.batch_isend_irecv([operation]):
                request.wait()

        seconds = _seconds(pass_on, wait)
        before = before if to else size / seconds / 1e9
    return inside, before


def _phases(nodes: int, node: int) -> list[int]:
    """Senders of the phases in which a node takes part: even nodes send to the next, then odd ones, then the last of
    an odd number of nodes to the first."""
    order = [*range(0, nodes - 1, 2), *range(1, nodes, 2), *([nodes - 1] if nodes % 2 else [])]
    return [sender for sender in order if node in (sender, (sender + 1) % nodes)] if nodes > 1 else []


def _seconds(action: Callable[[], Any], wait: Callable[[], Any], rounds: int = 5) -> float:
    """Mean seconds of an action, after a first that sets it up."""
    action()
    wait()
    begun = time.perf_counter()
    for _ in range(rounds):
        action()
    wait()
    return (time.perf_counter() - begun) / rounds


def slow_parts(rates: Sequence[Rates], per_node: int, peak: float | None) -> dict[int, list[str]]:
    """What is too slow, by rank; ranks with nothing to say are left out.

    The ring shows a slow link at one rank; of its two ends the node at fault is the one whose other neighbour finds it
    slow too. With fewer than three nodes nothing tells the ends apart.

    Args:
        rates: of each rank.
        per_node: ranks of each node.
        peak: dense BF16 peak of the device, TFLOP/s.
    """
    found: dict[int, list[str]] = {}

    def below(values: Sequence[float | None], share: float) -> tuple[list[int], float]:
        """Ranks below a share of the median of all, and the median."""
        known = [value for value in values if value is not None]
        # Of an even number the higher of both in the middle: where one of two nodes is slow, so is half of all ranks.
        usual = statistics.median_high(known) if known else 0.0
        return [
            rank for rank, value in enumerate(values) if value is not None and value < share * usual
        ], usual

    tflops = [rate.tflops for rate in rates]
    lagging, usual = below(tflops, MIN_SHARE_OF_OTHERS)
    for rank, speed in enumerate(tflops):
        if speed is None:
            continue
        if peak is not None and speed < MIN_SHARE_OF_PEAK * peak:
            text = f"{speed:.0f} TFLOP/s in BF16, below {MIN_SHARE_OF_PEAK:.0%} of the device's {peak:.0f}"
        elif rank in lagging:
            text = f"{speed:.0f} TFLOP/s in BF16, the median of {len(rates)} ranks is {usual:.0f}"
        else:
            continue
        found.setdefault(rank, []).append(text)
    inside = [rate.inside for rate in rates]
    lagging, usual = below(inside, MIN_SHARE_OF_LINKS)
    for rank in lagging:
        text = f"all-reduce within the node at {inside[rank]:.1f} GB/s, the median is {usual:.1f}"
        found.setdefault(rank, []).append(text)
    before = [rate.from_before for rate in rates]
    lagging, usual = below(before, MIN_SHARE_OF_LINKS)
    for rank in lagging if len(rates) > 2 * per_node else ():
        if (rank + per_node) % len(rates) in lagging:
            text = f"{before[rank]:.1f} GB/s from the node before and to the next, the median is {usual:.1f}"
            found.setdefault(rank, []).append(text)
    return found
