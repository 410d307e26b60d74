"""The datasets of a rank: training data for `pretrain`, and the evaluator over the validation groups.

Answers no seam: `pretrain` takes it as its dataset provider. Each rank opens its own files, so nothing is
broadcast.
"""

from __future__ import annotations

from typing import Any

from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.training import get_args, get_tokenizer

from emma.recipes.schema import Recipe
from emma.tools.training.dataset import MixInfo, open_dataset
from emma.tools.training.evaluator import Evaluator

__all__ = ["Datasets"]


class Datasets:
    """Dataset provider; `evaluator` is None until Megatron has called it."""

    is_distributed = True  # asks Megatron to call it on every rank

    def __init__(self, recipe: Recipe, mix: MixInfo) -> None:
        self.recipe, self.mix = recipe, mix
        self.evaluator: Evaluator | None = None

    def __call__(self, num_samples: list[int], vp_stage: int | None = None) -> tuple[Any, None, None]:
        """Training data; Megatron gets no validation and no test data, since it never evaluates."""
        config, folder = _dataset_config(), self.recipe.mix_folder
        if self.evaluator is None:
            validation, batch = self.recipe.validation, self.recipe.batch
            names = validation.groups if validation.groups is not None else list(self.mix.groups)
            groups = {name: open_dataset(folder / "validation" / name, config) for name in names}
            guarded = self.recipe.guard.groups if self.recipe.guard is not None else ()
            self.evaluator = Evaluator(
                groups, batch.micro, batch.sequence_length, validation.samples, guarded
            )
        return open_dataset(folder / "train", config), None, None


def _dataset_config() -> GPTDatasetConfig:
    args = get_args()
    return GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=False,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        inter_document_masking=args.dataloader_inter_document_masking,
    )
