"""Whether a document's logits depend on the document before it, with Transformer Engine's packed
sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from emma.tools.runs.checkpoints import LoadPlan
from emma.tools.training.arguments import megatron_arguments
from tests.gpu import require_gpus, run_on_gpus
from tests.tools.training.conftest import Small
from tests.tools.training.samples import dataset_config
from tests.tools.training.test_masking import changes_behind, two_documents

pytestmark = pytest.mark.gpu


def packed_differences(flags: list[str], mix: str, eos: int, mask_documents: bool) -> dict[str, float]:
    """In a rank: largest change of the second document's logits when the first changes in content or in
    length."""
    import sys

    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron

    from emma.tools.training.dataset import open_dataset
    from emma.tools.training.forward import to_device

    sys.argv = ["train", *flags]
    args = parse_and_validate_args()
    initialize_megatron()
    config = gpt_config_from_args(args)
    (model,) = config.get_builder_cls()(config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(), wrap_with_ddp=False
    )
    model.eval()
    dataset = open_dataset(Path(mix) / "train", dataset_config(args.seq_length, eod=eos))
    sample, end = two_documents(dataset, eos)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        length = len(tokens)
        batch = {"tokens": tokens[None], "position_ids": torch.arange(length)[None]}
        if mask_documents:
            ends = [int(place) + 1 for place in (tokens == eos).nonzero().flatten()]
            bounds = sorted({0, *ends, length})
            lengths = [after - before for before, after in itertools.pairwise(bounds)]
            batch["position_ids"] = torch.cat([torch.arange(count) for count in lengths])[None]
            batch["cu_seqlens"] = torch.tensor([bounds], dtype=torch.int32)
            batch["max_seqlen"] = torch.tensor([max(lengths)], dtype=torch.int32)
        flat, packed = to_device(batch)
        with torch.no_grad():
            output = model(flat["tokens"], flat["position_ids"], None, packed_seq_params=packed)
        return output.reshape(length, -1).float().cpu()

    return changes_behind(logits, sample["tokens"], end, eos, args.vocab_size)


@pytest.mark.parametrize("masked", [True, False])
def test_a_document_sees_only_itself(
    masked: bool, make_small: Callable[[int], Small], tmp_path: Path
) -> None:
    from emma.tools.training.dataset import read_mix

    recipe = make_small(10).recipe(
        "masking",
        f"cluster={{name: test, gpus_per_node: 1, device: {require_gpus()}}}",
        "precision={name: bf16, compute: bf16}",
        "batch={micro: 1, global: 8, sequence_length: 32}",
        f"batch.document_masking={str(masked).lower()}",
        start="scratch",
    )
    eos = read_mix(recipe.mix_folder).end_id
    flags = megatron_arguments(recipe, LoadPlan("scratch"), eos, Path("unused"), None)
    (found,) = run_on_gpus(packed_differences, 1, tmp_path, flags, str(recipe.mix_folder), eos, masked)
    print(
        f"masked {masked}: change of logits by content {found['content']:.2g}, by length {found['length']:.2g}"
    )
    if masked:
        assert found["content"] == 0, "bit for bit"
        # Another place in the packed sequence, so other tiles of the kernel; BF16.
        assert found["length"] < 0.05
    else:
        assert found["content"] > 1e-3
