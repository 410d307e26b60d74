"""Context parallelism with masked documents: on any number of ranks each token has the loss that it has on one, and weights
get the same gradients.

What runs is the product up to the call of the kernel. The kernel is the local one with a dense mask, as on a cluster
without GPUs, or takes packed documents as Transformer Engine's does (`documents_by_hand.PlainAttention`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.small_recipe import small_recipe

torch = pytest.importorskip("torch")

LENGTH = 32
WINDOW = "model.sliding_window=5"
KINDS = "model.layer_kinds=[sliding,full,sliding,full]"
THETA = "model.rope_theta_sliding=10000"
# Lengths of the documents of a micro-batch's samples: single tokens, one document over all, none that any number of
# ranks divides, ends next to the cuts.
DOCUMENTS = [
    [[1] * LENGTH, [LENGTH]],
    [[LENGTH], [7, 1, 1, 5, 18]],
    [[15, 2, 15], [16, 16]],
    [[1, 30, 1], [3, 29]],
]


def micro_batches(dense: bool) -> list[dict[str, Any]]:
    from torch.utils.data import default_collate

    from tests.tools.training.documents_by_hand import random_lengths, sample_of

    generator = torch.Generator().manual_seed(1)
    cases = [
        *DOCUMENTS,
        *([random_lengths(LENGTH, most, most), random_lengths(LENGTH, 9, most)] for most in (4, 20)),
    ]
    return [
        default_collate(
            [
                sample_of(row, torch.randint(512, (LENGTH + 1,), generator=generator), dense=dense)
                for row in case
            ]
        )
        for case in cases
    ]


def build(flags: list[str], shape: Any, plain: bool, divided: bool) -> Any:
    """In a rank: the recipe's model as the worker builds it; with `PlainAttention` for a kernel, if asked for."""
    import sys

    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron

    from emma.tools.training.context import divide_heads
    from emma.tools.training.network import configure_model
    from tests.tools.training.documents_by_hand import PlainAttention

    sys.argv = ["train", *flags]
    args = parse_and_validate_args()
    initialize_megatron(allow_no_cuda=True)
    config = gpt_config_from_args(args)
    configure_model(config, shape)
    if plain:
        spec = config.transformer_layer_spec

        def packed(config: Any, vp_stage: int | None = None) -> Any:
            layer = spec(config, vp_stage)
            layer.submodules.self_attention.submodules.core_attention = PlainAttention
            return layer

        config.transformer_layer_spec = packed
    if divided:
        divide_heads(config, LENGTH)
    (model,) = config.get_builder_cls()(config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(), wrap_with_ddp=False
    )
    return model


def computed(
    flags: list[str], shape: Any, dense: bool, divided: bool
) -> list[tuple[Any, int, dict[str, Any]]]:
    """In a rank, for each micro-batch: losses of its tokens ([rows, tokens]), number of those that count, and, without
    tensor parallelism, gradients of all weights as the ranks sum them."""
    from megatron.core import mpu

    from emma.tools.training.forward import ForwardStep

    model = build(flags, shape, not dense, divided)
    found = []
    for batch in micro_batches(dense):
        model.zero_grad()
        output, loss = ForwardStep()(iter([batch]), model)
        total, count, _ = loss(output)
        total.backward()
        gradients: dict[str, Any] = {}
        if mpu.get_tensor_model_parallel_world_size() == 1:
            for name, weight in model.named_parameters():
                torch.distributed.all_reduce(weight.grad, group=mpu.get_context_parallel_group())
                gradients[name] = weight.grad.clone()
        found.append((output.detach(), int(count), gradients))
    torch.distributed.destroy_process_group()
    return found


def flags_of(recipe: Any) -> list[str]:
    from emma.tools.runs.checkpoints import LoadPlan
    from emma.tools.training.arguments import megatron_arguments

    return megatron_arguments(recipe, LoadPlan("scratch"), 1, Path("unused"), None)


@pytest.mark.parametrize(
    ("context", "tensor", "dense", "model"),
    [
        (2, 1, False, "model.query_groups=2"),
        (2, 1, True, "model.query_groups=4"),
        (4, 1, False, "model.query_groups=2"),
        (2, 2, False, "model.query_groups=4"),
        pytest.param(2, 2, True, "model.query_groups=2", marks=pytest.mark.slow),
        # Three groups: neither divides the other. Six heads and their channels stay whole.
        pytest.param(
            2,
            1,
            False,
            "model.attention_heads=6 model.query_groups=3 model.head_dim=16",
            marks=pytest.mark.slow,
        ),
        pytest.param(8, 1, False, "model.attention_heads=8 model.head_dim=8", marks=pytest.mark.slow),
        pytest.param(4, 1, True, f"model.architecture=mistral {WINDOW}", marks=pytest.mark.slow),
        # Layers of two kinds, each with its own rotary embedding; a norm over all heads.
        pytest.param(
            2, 1, True, f"model.architecture=gemma3 {WINDOW} {KINDS} {THETA}", marks=pytest.mark.slow
        ),
        pytest.param(2, 2, True, f"model.architecture=olmo3 {WINDOW} {KINDS}", marks=pytest.mark.slow),
    ],
)
def test_every_token_has_the_loss_of_one_rank(
    context: int, tensor: int, dense: bool, model: str, tmp_path: Path
) -> None:
    plain = small_recipe(tmp_path / "one", model.split())
    layout = f"parallelism={{context: {context}, tensor: {tensor}, sequence: {str(tensor > 1).lower()}}}"
    cut = small_recipe(
        tmp_path / "cut", [*model.split(), f"cluster.gpus_per_node={context * tensor}", layout]
    )
    (expected,) = run_ranks(computed, 1, flags_of(plain), plain.model, dense, False)
    ranks = run_ranks(computed, context * tensor, flags_of(cut), cut.model, dense, True)
    for case, (losses, count, gradients) in enumerate(expected):
        parts = [rank[case] for rank in ranks[::tensor]]
        assert sum(part[1] for part in parts) == count
        torch.testing.assert_close(torch.cat([part[0] for part in parts], 1), losses, rtol=1e-5, atol=1e-5)
        for name, gradient in parts[0][2].items():
            scale = float(gradients[name].abs().max())
            assert scale > 0 or name.endswith("bias")
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5 * scale)


def test_a_sample_is_cut_without_loss() -> None:
    """Each token is on exactly one rank, with its own label, mask and position."""
    from emma.tools.training.context import share

    for batch in micro_batches(False) + micro_batches(True):
        for ranks in (1, 2, 4, 8, 32):
            parts = [share(batch, rank, ranks) for rank in range(ranks)]
            for key in ("tokens", "labels", "loss_mask", "position_ids"):
                assert torch.equal(torch.cat([part[key] for part in parts], 1), batch[key])
            for key in {"cu_seqlens", "max_seqlen", "attention_mask"} & batch.keys():
                assert all(torch.equal(part[key], batch[key]) for part in parts)
            positions = torch.cat([part["positions"] for part in parts])
            packed = "cu_seqlens" in batch
            assert torch.equal(positions, batch["position_ids"][0] if packed else torch.arange(LENGTH))
    with pytest.raises(ValueError, match="32 tokens cannot be divided over 5"):
        share(batch, 0, 5)


def _as_pieces(batch: Any, packed: Any) -> None:
    """Positions begin anew with each rank's piece."""
    packed.positions = torch.arange(len(packed.positions))


def _one_token_more(batch: Any, packed: Any) -> None:
    """Documents begin a token early."""
    if packed.documents is None:
        batch["attention_mask"][:, :, 6, 5] = False
    else:
        begins = packed.documents.cu_seqlens_q.clone()
        begins[2:-1] -= 1
        packed.documents.cu_seqlens_q = packed.documents.cu_seqlens_kv = begins.unique()


def _one_document(batch: Any, packed: Any) -> None:
    """Two documents are taken for one."""
    if packed.documents is None:
        batch["attention_mask"][:, :, 3:6, 1:3] = False
    else:
        begins = packed.documents.cu_seqlens_q
        packed.documents.cu_seqlens_q = packed.documents.cu_seqlens_kv = torch.cat([begins[:2], begins[3:]])


def proven(
    flags: list[str], recipe: Any, dense: bool
) -> tuple[float, dict[str, float], list[str], list[str]]:
    """In a rank: the difference that the proof sees, the ones with faults, and what it says of right and wrong."""
    from emma.base.errors import UserError
    from emma.tools.training import context
    from emma.tools.training.session import context as proof

    model = build(flags, recipe.model, not dense, True)
    batch = proof.awkward_documents(recipe.batch.micro, LENGTH, dense=dense)
    layer = model.decoder.layers[-1].self_attention
    exchange, real = context.all_to_all, proof.to_device

    def difference() -> float:
        return float(proof.largest_difference(layer, model.rotary_pos_emb, batch))

    def with_fault(fault: Any) -> Any:
        def to_device(batch: Any, *place: int) -> Any:
            found, packed = real({key: value.clone() for key, value in batch.items()}, *place)
            if place:
                fault(found, packed)
            return found, packed

        return to_device

    right, wrong = difference(), {}
    for fault in (_as_pieces, _one_token_more, _one_document):
        proof.to_device = with_fault(fault)
        wrong[fault.__name__] = difference()
    proof.to_device = real
    for name, other in {
        "heads of another rank": lambda group, given: exchange(group, given.roll(1, 0)),
        "half the gradient": lambda group, given: exchange(group, given.detach() / 2 + given / 2),
    }.items():
        context.all_to_all = other
        wrong[name] = difference()
    said, trained = [], []
    for context.all_to_all in (exchange, lambda group, given: exchange(group, given.flip(0))):
        try:
            proof.DividedAttention(recipe).train(lambda *_: trained.append("trained"), None, [model])
        except UserError as error:
            said.append(str(error))
    torch.distributed.destroy_process_group()
    return right, wrong, said, trained


@pytest.mark.parametrize("dense", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_launch_is_refused_where_divided_attention_is_another(dense: bool, tmp_path: Path) -> None:
    # With one sample, the cut goes through a document.
    recipe = small_recipe(tmp_path, ["cluster.gpus_per_node=2", "parallelism={context: 2}", "batch.micro=1"])
    flags = flags_of(recipe)
    if not dense:
        # The proof asks for the form of the documents by the device.
        recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"device": "h100"})})
    ranks = run_ranks(proven, 2, flags, recipe, dense)
    for right, _, said, trained in ranks:
        assert right < 1e-5
        (message,) = said
        assert "parallelism.context" in message and "Nothing was trained" in message
        assert trained == ["trained"]
    for name in ranks[0][1]:
        # A fault may show on one of the ranks only; all of them stop.
        assert max(rank[1][name] for rank in ranks) > 0.1, name


def in_threads(
    flags: list[str], shape: Any, ranks: int, length: int, dense: bool, plain: bool
) -> dict[str, float]:
    """In one process, whose threads stand for context-parallel ranks: how far outputs and gradients of attention are from
    the undivided one's, as a share of the largest value.

    The exchange between threads is part of one graph, so gradients go back through it without any thread.
    """
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from types import SimpleNamespace

    from emma.tools.training import context
    from emma.tools.training.forward import to_device
    from emma.tools.training.session import context as proof

    model = build(flags, shape, plain, False)
    model = getattr(model, "module", model)  # BF16 wraps it
    attention = model.decoder.layers[0].self_attention
    batch = proof.awkward_documents(1, length, dense=dense)
    barrier, given = threading.Barrier(ranks, timeout=120), [torch.empty(0)] * ranks

    def exchange(group: Any, mine: Any) -> Any:
        given[group.rank()] = mine
        barrier.wait()
        received = torch.stack([one[group.rank()] for one in given])
        barrier.wait()
        return received

    context.all_to_all = exchange

    def rank(number: int, mixed: Any) -> Any:
        group = SimpleNamespace(size=lambda: ranks, rank=lambda: number)
        kernel = context.over_heads(type(attention.core_attention))(
            config=attention.config,
            layer_number=attention.layer_number,
            attn_mask_type=attention.attn_mask_type,
            attention_type=attention.attention_type,
            cp_comm_type=None,
            softmax_scale=attention.config.softmax_scale,
            pg_collection=SimpleNamespace(cp=group, tp=attention.pg_collection.tp),
        )
        own, share = to_device(dict(batch), number, ranks)
        angles = context.RopeAtPositions(model.rotary_pos_emb, length)(share.positions)
        output, _ = proof._bare(attention, core_attention=kernel)(
            mixed.chunk(ranks)[number],
            own.get("attention_mask"),
            rotary_pos_emb=angles,
            packed_seq_params=share,
        )
        return output

    whole, documents = to_device(dict(batch))
    config, device = attention.config, whole["tokens"].device
    width = (config.num_attention_heads + 2 * config.num_query_groups) * config.kv_channels
    torch.manual_seed(0)
    mixed = torch.randn(length, 1, width).to(device, config.params_dtype)
    longest = length if documents is None else documents.max_seqlen_q
    angles = model.rotary_pos_emb(longest, packed_seq=True)
    expected = proof._run(proof._bare(attention), mixed, angles, whole, documents)
    mixed = mixed.detach().requires_grad_()
    with ThreadPoolExecutor(ranks) as threads:
        output = torch.cat(list(threads.map(rank, range(ranks), [mixed] * ranks)))
    (gradient,) = torch.autograd.grad(output.float().square().sum(), mixed)
    torch.distributed.destroy_process_group()
    return {
        name: float((found.float() - one.float()).abs().max() / one.float().abs().max())
        for name, found, one in zip(("output", "gradient"), (output, gradient), expected, strict=True)
    }


def test_threads_can_stand_for_ranks(tmp_path: Path) -> None:
    """Without a GPU too, so that the test below is known to work; and rounding stays within the proof's bounds."""
    from emma.tools.training.session.context import BOUNDS

    recipe = small_recipe(tmp_path, ["precision={name: fp32, compute: fp32}"])
    (found,) = run_ranks(in_threads, 1, flags_of(recipe), recipe.model, 4, LENGTH, False, True)
    assert max(found.values()) < BOUNDS["fp32"] / 4


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [2, 4])
def test_transformer_engine_divides_heads_on_one_gpu(ranks: int, tmp_path: Path) -> None:
    """The kernel, the fused rotary embedding and their gradients, with threads of one process for ranks; what this leaves
    to two GPUs is NCCL's exchange (test_gpu_training.py)."""
    from emma.tools.training.session.context import BOUNDS
    from tests.gpu import require_gpus, run_on_gpus

    device = require_gpus()
    recipe = small_recipe(
        tmp_path / "run",
        [
            f"cluster={{name: test, gpus_per_node: 1, device: {device}}}",
            "precision={name: bf16, compute: bf16}",
            "batch={micro: 1, global: 8, sequence_length: 256}",
            "model.max_position_embeddings=256",
        ],
    )
    (found,) = run_on_gpus(in_threads, 1, tmp_path, flags_of(recipe), recipe.model, ranks, 256, False, False)
    print(f"{ranks} ranks: {found}")
    assert max(found.values()) < BOUNDS["bf16"]
