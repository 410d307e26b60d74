"""Frozen weights: what a run does not train must be the same, bit for bit, at each save and at the end.

Answers `train` and `save_checkpoint_and_time`. Each launch compares with what it began with; that this is what the
launch before saved is the business of the checkpoint's checksums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import xxhash

from emma.recipes.schema import Recipe
from emma.tools.training.frozen import is_trained
from emma.tools.training.main_weights import main_weights
from emma.tools.training.session.main_weights import stop_all

__all__ = ["Frozen"]

_CHUNK = 1 << 24  # elements hashed at once


class Frozen:
    """Looks at the frozen weights where the recipe has `train.only`."""

    def __init__(self, recipe: Recipe) -> None:
        self.only = recipe.train.only if recipe.train is not None else []
        self._optimizer: Any = None
        self._begun: dict[str, str] = {}

    def train(
        self,
        original: Callable[..., Any],
        forward_step: Any,
        model: list[Any],
        optimizer: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Trains, and compares when training has ended.

        Raises:
            UserError: a frozen weight has changed.
        """
        if not self.only:
            return original(forward_step, model, optimizer, *rest, **named)
        self._optimizer = optimizer
        self._begun = self._hashes(model)
        if torch.distributed.get_rank() == 0:
            print(f"frozen weights: only {', '.join(self.only)} will be trained", flush=True)
        result = original(forward_step, model, optimizer, *rest, **named)
        self.check(model)
        return result

    def save_checkpoint_and_time(
        self, original: Callable[..., Any], iteration: int, model: list[Any], *rest: Any, **named: Any
    ) -> Any:
        """Saves weights whose frozen part is as it was.

        Raises:
            UserError: a frozen weight has changed; nothing is written.
        """
        if self.only:
            self.check(model)
        return original(iteration, model, *rest, **named)

    def check(self, model: list[Any]) -> None:
        """Stops all ranks where a frozen weight differs from what the launch began with; a collective.

        Raises:
            UserError: the first that does.
        """
        now = self._hashes(model)
        changed = [name for name, found in now.items() if self._begun.get(name) != found]
        stop_all(
            f"rank {torch.distributed.get_rank()}: {changed[0]} is frozen (train.only: {', '.join(self.only)}) and has "
            f"changed, with {len(changed) - 1} more. Nothing is written; the checkpoint before is whole. Fix: report it"
            if changed
            else None
        )
        if torch.distributed.get_rank() == 0:
            print(
                f"frozen weights: {len(now)} tensors of this rank are as they were, bit for bit", flush=True
            )

    def _hashes(self, model: list[Any]) -> dict[str, str]:
        """Checksums of this rank's frozen weights, and of its share of their main weights."""
        found = {
            f"{number}.{name}": _hash(parameter)
            for number, chunk in enumerate(model)
            for name, parameter in chunk.named_parameters()
            if not is_trained(name, self.only)
        }
        mains = (
            each for each in main_weights(model, self._optimizer) if not is_trained(each.name, self.only)
        )
        for number, weight in enumerate(mains):
            found[f"main weights {number} of {weight.name}"] = _hash(weight.states()["param"])
        return found


def _hash(tensor: torch.Tensor) -> str:
    digest = xxhash.xxh3_128()
    flat = tensor.detach().reshape(-1)
    for part in flat.split(_CHUNK):
        digest.update(part.contiguous().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()
