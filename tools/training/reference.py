"""The base model's own loss, before a run may change a weight: `python -P -m emma.tools.training.reference
RUN_FOLDER`.

A wrong import first shows as a loss that is too high, and training then hides it. So the loss of the first
validation samples is computed with `transformers` from the Hugging Face folder that the run names
(`start.reference`), and the run's first launch compares its own loss with it before the first update
(`session/reference.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.base.system_errors import report
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.inspection.models import loading, model_options
from emma.tools.runs.run_folder import RunFolder

__all__ = ["main", "reference_losses"]


def reference_losses(recipe: Recipe) -> dict[str, float]:
    """Mean loss in nats per token of the first `start.reference_samples` samples of each validation group.

    With document masking, documents are computed one by one, which comes to the same: only differences of
    rotary positions count.
    """
    from emma import megatron_patches

    folder = Path(str(recipe.start.reference))
    megatron_patches.apply()
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from transformers import AutoModelForCausalLM

    from emma.tools.training.dataset import open_dataset, read_mix

    mix = read_mix(recipe.mix_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with loading(folder):
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, **model_options(folder)
        )
    model.to(device).eval()
    config = GPTDatasetConfig(
        random_seed=recipe.seed,
        sequence_length=mix.sequence_length,
        tokenizer=SimpleNamespace(eod=mix.end_id, pad=-1, vocab_size=mix.vocab_size, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    losses = {}
    for name in recipe.validation.groups if recipe.validation.groups is not None else mix.groups:
        dataset = open_dataset(recipe.mix_folder / "validation" / name, config)
        total = count = 0.0
        for index in range(min(recipe.start.reference_samples, len(dataset))):
            sample = dataset[index]
            with torch.no_grad():
                loss = _token_losses(
                    model, sample, mix.end_id if recipe.batch.document_masking else None, device
                )
            total += float((loss * sample["loss_mask"]).double().sum())
            count += float(sample["loss_mask"].sum())
        losses[name] = total / count
    return losses


def _token_losses(model: Any, sample: dict[str, Any], eos: int | None, device: str) -> Any:
    """Loss of each label of a sample, float32 [sequence]."""
    import torch

    tokens = sample["tokens"]
    ends = [] if eos is None else (torch.nonzero(tokens == eos).flatten() + 1).tolist()
    pieces = torch.tensor_split(tokens, [end for end in ends if end < len(tokens)])
    logits = torch.cat([model(piece[None].to(device)).logits[0].float().cpu() for piece in pieces])
    return torch.nn.functional.cross_entropy(logits, sample["labels"], reduction="none")


def main(arguments: list[str]) -> int:
    """Writes `RUN_FOLDER/reference.json`."""
    folder = Path(arguments[0])
    recipe = load_recipe(folder)
    try:
        losses = reference_losses(recipe)
    except (OSError, ValueError) as error:
        # What `transformers` raises for a folder without a model that it can load.
        raise UserError(f"start.reference: {recipe.start.reference} cannot be loaded ({error})") from None
    write_json(
        RunFolder(folder).reference_file,
        {"model": recipe.start.reference, "samples": recipe.start.reference_samples, "losses": losses},
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        if (code := report(error)) is None:
            raise
        sys.exit(code)
