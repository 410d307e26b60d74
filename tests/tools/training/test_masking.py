"""Whether a document's logits depend on the document before it, in Megatron's model with the dataset's own
masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.tools.runs.checkpoints import LoadPlan
from emma.tools.training.arguments import megatron_arguments
from tests.ranks import run_ranks
from tests.tools.training.conftest import Small
from tests.tools.training.samples import dataset_config


def differences(flags: list[str], mix: str, eos: int, mask_documents: bool) -> dict[str, float]:
    """In a rank: largest change of the second document's logits when the first document changes.

    `content`: the first document keeps its length and gets other tokens; `length`: it is cut to half.
    """
    import sys

    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron

    from emma.tools.training.dataset import open_dataset

    sys.argv = ["train", *flags]
    args = parse_and_validate_args()
    initialize_megatron(allow_no_cuda=True)
    config = gpt_config_from_args(args)
    builder = config.get_builder_cls()(config)
    (model,) = builder.build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(), wrap_with_ddp=False
    )
    model.eval()
    dataset = open_dataset(
        Path(mix) / "train", dataset_config(args.seq_length, eod=eos, mask_documents=mask_documents)
    )
    sample, end = two_documents(dataset, eos)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

        mask, _, positions = _get_ltor_masks_and_position_ids(
            tokens, eos, mask_documents, mask_documents, False, True
        )
        with torch.no_grad():
            output: torch.Tensor = model(tokens[None], positions[None], mask[None])
        return output[0]

    tokens = sample["tokens"]
    if mask_documents:
        assert torch.equal(sample["attention_mask"], _mask_of(tokens, eos)), (
            "the mask tested is the dataset's"
        )
    return changes_behind(logits, tokens, end, eos, args.vocab_size)


def changes_behind(
    logits: Callable[[Any], Any], tokens: Any, end: int, eos: int, vocab_size: int
) -> dict[str, float]:
    """Largest change of the logits behind the first document's `end` when that document changes.

    `content`: it keeps its length and gets other tokens; `length`: it is cut to half.
    """
    import torch

    before = logits(tokens)
    other = tokens.clone()
    other[:end] = (tokens[:end] + 7) % vocab_size
    other[:end][other[:end] == eos] = (eos + 1) % vocab_size
    content = (logits(other)[end + 1 :] - before[end + 1 :]).abs().max().item()
    cut = end // 2 + 1
    shorter = torch.cat([tokens[cut:], tokens.new_full((cut,), eos)])
    moved = logits(shorter)[end + 1 - cut : len(tokens) - cut]
    return {"content": content, "length": (moved - before[end + 1 :]).abs().max().item()}


def _mask_of(tokens: Any, eos: int) -> Any:
    """Independent of Megatron: position i sees j ≤ i of the same document; True is masked."""
    import torch

    document = torch.cumsum(torch.cat([torch.zeros(1), (tokens[:-1] == eos).float()]), 0)
    same = document[:, None] == document[None, :]
    return ~(same & torch.ones_like(same).tril())[None]


def two_documents(dataset: Any, eos: int) -> tuple[Any, int]:
    """First sample with a document end well inside, and the place of that end."""
    for index in range(len(dataset)):
        sample = dataset[index]
        ends = (sample["tokens"] == eos).nonzero().flatten().tolist()
        if ends and 6 <= ends[0] <= len(sample["tokens"]) - 6:
            return sample, ends[0]
    raise AssertionError("no sample of the mix holds two documents")


@pytest.mark.parametrize("masked", [True, False])
def test_a_document_sees_only_itself(masked: bool, make_small: Callable[[int], Small]) -> None:
    from emma.tools.training.dataset import read_mix

    recipe = make_small(10).recipe(
        "masking", f"batch.document_masking={str(masked).lower()}", start="scratch"
    )
    eos = read_mix(recipe.mix_folder).end_id
    flags = megatron_arguments(recipe, LoadPlan("scratch"), eos, Path("unused"), None)
    (found,) = run_ranks(differences, 1, flags, str(recipe.mix_folder), eos, masked)
    if masked:
        assert found["content"] == 0, "bit for bit"
        # The dense path turns by absolute positions; only their difference counts, up to rounding.
        assert found["length"] < 1e-4
    else:
        assert found["content"] > 1e-3
