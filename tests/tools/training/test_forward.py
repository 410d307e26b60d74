"""The forward step: what it asks of the device, and how documents are packed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

WAITS = (
    "item",
    "tolist",
    "nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "cpu",
    "numpy",
    "masked_select",
)
"""What makes the host wait for a GPU: each needs a number that the GPU has yet to compute."""


class OnDevice(torch.Tensor):
    """A tensor that a device holds: asking for its values is an error."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS:
            raise AssertionError(f"{name} waits for the device")
        return super().__torch_function__(func, types, args, kwargs or {})


def batch() -> dict[str, Any]:
    """Two samples of eight tokens: documents of 3 and 5, and of 2, 2 and 4 tokens."""
    positions = [[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 0, 1, 0, 1, 2, 3]]
    return {
        "tokens": torch.arange(16).reshape(2, 8),
        "labels": torch.arange(1, 17).reshape(2, 8),
        "loss_mask": torch.ones(2, 8),
        "position_ids": torch.tensor(positions),
        "cu_seqlens": torch.tensor([[0, 3, 8, 8], [0, 2, 4, 8]], dtype=torch.int32),
        "max_seqlen": torch.tensor([5, 4], dtype=torch.int32),
    }


def test_documents_are_packed_over_the_samples_of_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from emma.tools.training.forward import to_device

    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, **_: tensor)
    flat, packed = to_device(batch())
    assert packed is not None
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == [0, 3, 8, 10, 12, 16]
    assert packed.max_seqlen_q == packed.max_seqlen_kv == 5
    assert flat["tokens"].tolist() == [list(range(16))] and set(flat) == {
        *("tokens", "labels", "loss_mask", "position_ids")
    }


@pytest.mark.parametrize(("documents", "ranks"), [(True, 1), (False, 1), (True, 2)])
def test_a_micro_batch_never_waits_for_the_device(
    documents: bool, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core import mpu

    from emma.tools.training.forward import ForwardStep

    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, **_: tensor.as_subclass(OnDevice))
    monkeypatch.setattr(mpu, "get_context_parallel_world_size", lambda: ranks)
    monkeypatch.setattr(mpu, "get_context_parallel_rank", lambda: 1)
    given = batch()
    if not documents:
        del given["cu_seqlens"], given["max_seqlen"]

    def model(tokens: Any, positions: Any, mask: None, labels: Any, packed_seq_params: Any) -> Any:
        assert isinstance(tokens, OnDevice) and isinstance(labels, OnDevice)
        if ranks > 1:
            assert isinstance(packed_seq_params.positions, OnDevice)
            packed_seq_params = packed_seq_params.documents
        if documents:
            assert isinstance(packed_seq_params.cu_seqlens_q, OnDevice)
            assert type(packed_seq_params.max_seqlen_q) is int
        return labels.float()

    output, loss = ForwardStep()(iter([given]), model)  # type: ignore[arg-type]
    total, count, _ = loss(output)
    labels = list(range(1, 17))[8 * (ranks - 1) :]
    assert float(total.as_subclass(torch.Tensor)) == sum(labels)
    assert int(count.as_subclass(torch.Tensor)) == len(labels)


@pytest.mark.gpu
def test_a_micro_batch_never_waits_for_the_gpu() -> None:
    from megatron.core import mpu

    from emma.tools.training.forward import ForwardStep
    from tests.gpu import require_gpus

    require_gpus()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mpu, "get_context_parallel_world_size", lambda: 1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            output, loss = ForwardStep()(iter([batch()]), lambda tokens, *_, labels, **__: labels.float())
            total, _, _ = loss(output)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert float(total) == sum(range(1, 17))
