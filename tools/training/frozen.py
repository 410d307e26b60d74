"""Training a part of the model: the rest stands in a parameter group of Megatron's whose learning rate is 0.

Every parameter keeps its moments, its place in checkpoints and its share of the layout, so nothing else changes. An
update of 0 leaves a weight bit for bit as it is, with its weight decay off; `session/frozen.py` proves it at each save.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["freeze_all_but", "is_trained"]

_NAMES = {"embeddings": ("embedding.word_embeddings.weight", "output_layer.weight")}
"""Parts that may be trained alone, by the ends of their parameters' names."""


def is_trained(name: str, only: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of the parts."""
    return any(name.endswith(_NAMES[part]) for part in only)


def freeze_all_but(only: Sequence[str]) -> None:
    """Gives all other parameters a group of their own with a learning rate of 0 and no weight decay.

    Args:
        only: parts that are trained.
    """
    from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
    from megatron.training import training

    settings = training.get_megatron_optimizer_config
    frozen = ParamKey(
        with_name_predicate=ParamWithNamePredicate(
            name="frozen", fn=lambda parameter, name: not is_trained(name, only)
        )
    )

    def with_frozen_group(args: Any) -> tuple[Any, dict[Any, Any]]:
        config, overrides = settings(args)
        return config, {**(overrides or {}), frozen: {"max_lr": 0.0, "min_lr": 0.0, "wd_mult": 0.0}}

    training.get_megatron_optimizer_config = with_frozen_group
