"""The arithmetic of context parallelism in the forward step: which rank sees what, and that the loss is that of the
whole sequence.

Attention itself needs Transformer Engine (test_gpu_training.py).
"""

from __future__ import annotations

from tests.ranks import run_ranks

LENGTH, SEQUENCES = 16, 3


def seen_by_a_rank(context: int) -> tuple[list[list[int]], list[list[int]], float, int]:
    """In a rank: positions and labels that reach the model, the sum of losses, and the number of labels that
    count.

    The model's stand-in gives each label itself as its loss.
    """
    import torch
    from megatron.core import mpu

    from emma.tools.training.forward import ForwardStep

    torch.distributed.init_process_group("gloo")
    mpu.initialize_model_parallel(context_parallel_size=context)
    tokens = torch.arange(SEQUENCES * LENGTH).reshape(SEQUENCES, LENGTH)
    mask = torch.ones(SEQUENCES, LENGTH)
    mask[2, 11:] = 0
    batch = {
        "tokens": tokens,
        "labels": tokens + 1,
        "loss_mask": mask,
        "position_ids": torch.arange(LENGTH).repeat(SEQUENCES, 1),
    }
    seen: dict[str, torch.Tensor] = {}

    def model(
        tokens: torch.Tensor, positions: torch.Tensor, attention_mask: None, labels: torch.Tensor, **_: object
    ) -> torch.Tensor:
        seen.update(positions=positions, labels=labels)
        assert torch.equal(tokens + 1, labels)
        return labels.float()

    output, loss = ForwardStep()(iter([batch]), model)  # type: ignore[arg-type]
    total, count, _ = loss(output)
    mpu.destroy_model_parallel()
    return seen["positions"].tolist(), seen["labels"].tolist(), float(total), int(count)


def test_ranks_share_each_sequence_and_their_losses_add_up() -> None:
    ((_, labels, total, count),) = run_ranks(seen_by_a_rank, 1, 1)
    assert count == 2 * LENGTH + 11
    parts = run_ranks(seen_by_a_rank, 2, 2)
    # First and last quarter on one rank, the middle on the other, so that both have the same work under a
    # causal mask.
    assert [part[0][0] for part in parts] == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]
    for sequence in range(SEQUENCES):
        assert sorted(parts[0][1][sequence] + parts[1][1][sequence]) == labels[sequence]
    assert sum(part[2] for part in parts) == total and sum(part[3] for part in parts) == count
