"""Samples of a mix, read without the trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["dataset_config", "validation_samples"]


def dataset_config(length: int, *, eod: int = 0, mask_documents: bool = False) -> Any:
    """Megatron's dataset config as the trainer makes it, with a tokenizer that only knows its end of
    document."""
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

    tokenizer = SimpleNamespace(eod=eod, pad=-1, vocab_size=512, unique_identifiers={"class": "test"})
    return GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        tokenizer=tokenizer,
        reset_position_ids=mask_documents,
        reset_attention_mask=mask_documents,
        eod_mask_loss=False,
        create_attention_mask=True,
    )


def validation_samples(mix: Path, length: int) -> dict[str, list[dict[str, Any]]]:
    """All samples of each validation group."""
    from emma.tools.training.dataset import open_dataset, read_mix

    groups = {}
    for name in read_mix(mix).groups:
        dataset = open_dataset(mix / "validation" / name, dataset_config(length))
        groups[name] = [dataset[index] for index in range(len(dataset))]
    return groups
