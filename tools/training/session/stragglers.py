"""Stragglers: the rank that every step waits for, named while the run goes on.

Answers `training_log` (after Megatron's log, at the steps that are logged). The ranks of a step all take as long as the
slowest, so step times tell nothing apart. What differs is measured instead: the time of one fixed matrix product, which
shows a device that is throttled or shared, and the time that the rank waited for its samples, which shows a slow disk or
host. On a CPU, whose cores the ranks share, nothing is measured.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from emma.recipes.schema import Recipe
from emma.tools.runs.metrics import append_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.forward import ForwardStep
from emma.tools.training.preflight_rates import product_seconds
from emma.tools.training.session.claim import Claim

__all__ = ["Stragglers", "slow_ranks"]

# Boards of one kind differ by a few percent; a throttled one loses a fifth and more.
SLOW_PRODUCT = 1.15
# Below a twentieth of a step, waiting for samples is not worth a word.
LONG_WAIT = 0.05
_SIZE, _ROUNDS = 4096, 8


def slow_ranks(products: Sequence[float], waits: Sequence[float], step: float) -> dict[int, str]:
    """What is slow about which rank, in words.

    Args:
        products: seconds of the matrix product, by rank.
        waits: seconds a step that each rank waited for samples.
        step: seconds of a step.
    """
    # Of an even number of ranks the lower of both in the middle: where one of two nodes is slow, so is half of all ranks.
    usual_product, usual_wait = statistics.median_low(products), statistics.median_low(waits)
    found = {}
    for rank, (product, wait) in enumerate(zip(products, waits, strict=True)):
        if product > SLOW_PRODUCT * usual_product:
            found[rank] = f"a matrix product takes {product / usual_product:.2f} times as long as the median"
        elif wait - usual_wait > LONG_WAIT * step:
            found[rank] = (
                f"waits {wait * 1000:.0f} ms a step for samples, the median {usual_wait * 1000:.0f} ms"
            )
    return found


class Stragglers:
    """Compares the ranks at each logged step; the last rank writes `stragglers.jsonl` and a line for each new one."""

    def __init__(self, recipe: Recipe, run: RunFolder, forward_step: ForwardStep, claim: Claim) -> None:
        self.recipe, self.run, self.forward_step, self.claim = recipe, run, forward_step, claim
        self._product: Callable[[], float] | None = (
            None if recipe.cluster.device == "cpu" else partial(product_seconds, "cuda", _SIZE, _ROUNDS)
        )
        self._places: list[str] = []
        self._suspected: set[int] = set()
        self._named: set[int] = set()
        self._begun, self._steps = time.perf_counter(), 0

    def training_log(
        self,
        original: Callable[..., Any],
        loss_dict: Any,
        total: Any,
        rate: Any,
        iteration: int,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Measures before the waits are reset, then logs."""
        self._steps += 1
        if self._product is not None and iteration % self.recipe.logging.interval == 0:
            self._compare(iteration, self._product())
        return original(loss_dict, total, rate, iteration, *rest, **named)

    def _compare(self, iteration: int, product: float) -> None:
        step = (time.perf_counter() - self._begun) / self._steps
        mine = torch.tensor([product, self.forward_step.data_wait_seconds / self._steps], device="cuda")
        everyone = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everyone, mine)
        if not self._places:
            place = (
                f"{os.environ.get('SLURMD_NODENAME') or socket.gethostname()}, GPU {os.environ['LOCAL_RANK']}"
            )
            self._places = [""] * len(everyone)
            torch.distributed.all_gather_object(self._places, place)
        self._begun, self._steps = time.perf_counter(), 0
        if torch.distributed.get_rank() != len(everyone) - 1 or not self.claim.held():
            return
        products, waits = torch.stack(everyone).T.tolist()
        slow = slow_ranks(products, waits, step)
        row = {
            "step": iteration,
            "product_ms": {"median": 1000 * statistics.median(products), "longest": 1000 * max(products)},
            "wait_ms": {"median": 1000 * statistics.median(waits), "longest": 1000 * max(waits)},
            "slow": {str(rank): f"{self._places[rank]}: {what}" for rank, what in slow.items()},
        }
        append_metrics(self.run.stragglers_file, row, self.claim.fence.append)
        # Once can be chance.
        for rank in sorted((set(slow) & self._suspected) - self._named):
            self._named.add(rank)
            print(f"STRAGGLER: rank {rank} ({self._places[rank]}): {slow[rank]}", flush=True)
        self._suspected = set(slow)
        self._named &= set(slow)
