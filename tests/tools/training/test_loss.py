"""The loss counts tokens, no padding of samples and no padding of the vocabulary."""

from __future__ import annotations

import pytest
import torch

from emma.tools.training.forward import LOSS, loss_sum
from emma.tools.training.vocabulary import _Mask


def test_only_tokens_that_count_are_summed_and_counted() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    total, count, report = loss_sum(mask, losses)
    assert (total.item(), count.item()) == (11.0, 3)
    assert count.dtype == torch.int
    assert report[LOSS].tolist() == [11.0, 3.0]


@pytest.mark.parametrize("real", [1, 5, 7])
def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient(real: int) -> None:
    logits = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    masked, bias = _Mask(real)(torch.nn.Identity(), (), (logits, None))
    assert bias is None
    probability = masked.softmax(-1)
    assert probability[..., real:].abs().max() == 0
    assert torch.equal(probability[..., :real], logits[..., :real].softmax(-1))
    masked.logsumexp(-1).sum().backward()
    assert logits.grad is not None
    assert logits.grad[..., real:].abs().max() == 0 and (logits.grad[..., :real] > 0).all()
