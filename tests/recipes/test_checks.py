"""Combinations of valid sections that cannot work are refused with their numbers and a fix."""

from __future__ import annotations

import pytest

from emma.base.errors import RecipeError
from emma.recipes.load import load_recipe

# Name → overrides of emma_llama3_8b_bi (64 H100s, TP2 SP, micro-batch 2), the blamed key, the message.
IMPOSSIBLE: dict[str, tuple[list[str], str, list[str]]] = {
    "layout does not divide the ranks": (
        ["parallelism.pipeline=3"],
        "parallelism",
        ["2 × 3 × 1 = 6", "64 ranks"],
    ),
    "more tensor parallelism than a node": (
        ["parallelism.tensor=16"],
        "parallelism.tensor",
        ["16 exceeds the 8 GPUs of a node"],
    ),
    "tensor parallelism and attention heads": (
        ["parallelism.tensor=8", "model.attention_heads=36", "model.query_groups=12", "model.head_dim=128"],
        "parallelism.tensor",
        ["36 attention heads"],
    ),
    "tensor parallelism and query groups": (
        ["parallelism.tensor=4", "model.query_groups=2"],
        "parallelism.tensor",
        ["2 query groups"],
    ),
    "tensor parallelism and the feed-forward layer": (
        ["parallelism.tensor=4", "model.ffn_hidden_size=14338"],
        "parallelism.tensor",
        ["14338"],
    ),
    "pipeline stages and layers": (
        ["model.layers=31", "parallelism.pipeline=2"],
        "parallelism.pipeline",
        ["31 layers"],
    ),
    "chunks without a pipeline": (
        ["parallelism.virtual_pipeline=2"],
        "parallelism.virtual_pipeline",
        ["at least 2 stages"],
    ),
    "interleaving and micro-batches": (
        ["parallelism.pipeline=4", "parallelism.virtual_pipeline=2", "batch.global=1032", "batch.micro=1"],
        "batch.global",
        ["129 micro-batches", "4 pipeline stages"],
    ),
    "sequence parallelism alone": (["parallelism.tensor=1"], "parallelism.sequence", ["of which there is 1"]),
    "context parallelism with masked documents, and attention heads": (
        ["parallelism.context=32"],
        "parallelism.context",
        ["tensor × context = 2 × 32", "32 attention heads"],
    ),
    "packed documents, pipeline and micro-batch": (
        ["parallelism.pipeline=2"],
        "batch.micro",
        ["2 samples", "set it to 1"],
    ),
    "unmasked context parallelism without a GPU": (
        ["layout=local_cpu", "cluster=local_cpu_2", "parallelism.context=2", "batch.document_masking=false"],
        "parallelism.context",
        ["needs Transformer Engine"],
    ),
    "unmasked context parallelism and windows": (
        [
            "parallelism.context=2",
            "batch.document_masking=false",
            "model.architecture=mistral",
            "model.sliding_window=1024",
        ],
        "parallelism.context",
        ["windows", "document_masking to true"],
    ),
    "recomputed layers without recomputation": (
        ["parallelism.recompute_layers=4"],
        "parallelism.recompute_layers",
        ["recompute: full, not none"],
    ),
    "more recomputed layers than a chunk has": (
        [
            *("parallelism.pipeline=2", "parallelism.virtual_pipeline=2"),
            *("parallelism.recompute=full", "parallelism.recompute_layers=9"),
        ],
        "parallelism.recompute_layers",
        ["9 exceeds the 8 layers"],
    ),
    "recomputed parts without selective recomputation": (
        ["parallelism.recompute=full", "parallelism.recompute_modules=[mlp]"],
        "parallelism.recompute_modules",
        ["recompute: selective, not full"],
    ),
    "offloading on a CPU": (
        ["layout=local_cpu", "parallelism.offload_layers=1"],
        "parallelism.offload_layers",
        ["needs Transformer Engine"],
    ),
    "offloading all layers": (
        ["parallelism.offload_layers=32"],
        "parallelism.offload_layers",
        ["32 of 32 layers", "at most 31"],
    ),
    "offloading and recomputing": (
        ["parallelism.offload_layers=4", "parallelism.recompute=selective"],
        "parallelism.offload_layers",
        ["cannot be combined"],
    ),
    "tensor overlap without sequence parallelism": (
        ["parallelism.overlap_tensor=true", "parallelism.sequence=false"],
        "parallelism.overlap_tensor",
        ["set sequence to true"],
    ),
    "CUDA graphs over documents": (
        ["parallelism.cuda_graphs=true"],
        "parallelism.cuda_graphs",
        ["document_masking to false"],
    ),
    "gathering weights without reducing gradients": (
        ["parallelism.overlap_grad_reduce=false"],
        "parallelism.overlap_param_gather",
        ["overlap_grad_reduce"],
    ),
    "optimizer instances": (
        ["parallelism.distributed_optimizer_instances=3"],
        "parallelism.distributed_optimizer_instances",
        ["3 must divide the data-parallel size 32"],
    ),
    "global batch": (["batch.global=2000"], "batch.global", ["2 × 32 = 64", "multiple of 64"]),
    "sequence longer than the model": (
        ["batch.sequence_length=16384", "batch.global=1024"],
        "batch.sequence_length",
        ["16384 is longer than the model's 8192"],
    ),
    "sequence that sequence parallelism cannot cut": (
        ["batch.sequence_length=8191"],
        "batch.sequence_length",
        ["not a multiple of the 2 ranks"],
    ),
    "sequence that context parallelism cannot cut": (
        ["parallelism.context=2", "batch.document_masking=false", "batch.sequence_length=8190"],
        "batch.sequence_length",
        ["2 × context = 4"],
    ),
    "sequence that sequence and context parallelism cannot cut": (
        ["parallelism.context=2", "parallelism.tensor=8", "batch.sequence_length=8184"],
        "batch.sequence_length",
        ["not a multiple of the 16 ranks"],
    ),
    "FP8 without FP8 cores": (
        ["cluster.device=a100", "precision=fp8_tensorwise"],
        "precision.fp8",
        ["`a100`"],
    ),
    "FP8 on a CPU": (["layout=local_cpu", "precision=fp8_tensorwise"], "precision.fp8", ["`cpu`"]),
    "MXFP8 on Hopper": (["precision=fp8_mxfp8"], "precision.fp8", ["needs Blackwell", "`h100`"]),
    "blockwise FP8 on Blackwell": (
        ["cluster.device=b200", "precision=fp8_blockwise"],
        "precision.fp8",
        ["Hopper's", "`b200`"],
    ),
    "BF16 layers beside delayed scaling": (
        ["precision=fp8_delayed", "precision.first_last_layers_bf16=1"],
        "precision",
        ["fp8: delayed"],
    ),
    "blockwise scaling and FP8 weights": (
        ["precision=fp8_blockwise", "precision.fp8_params=true"],
        "precision",
        ["blockwise"],
    ),
    "nothing left in FP8": (
        ["precision=fp8_tensorwise", "precision.first_last_layers_bf16=16"],
        "precision.first_last_layers_bf16",
        ["none of 32 layers"],
    ),
    "more BF16 layers than a stage has": (
        [
            "precision=fp8_tensorwise",
            "parallelism.pipeline=4",
            "batch.micro=1",
            "precision.first_last_layers_bf16=9",
        ],
        "precision.first_last_layers_bf16",
        ["9 exceeds the 8 layers"],
    ),
    "FP8 weights without a distributed optimizer": (
        [
            *("precision=fp8_tensorwise", "parallelism.distributed_optimizer=false"),
            *("parallelism.overlap_param_gather=false",),
        ],
        "precision.fp8_params",
        ["distributed_optimizer"],
    ),
    "FP8 weights whose main weights cannot be told apart": (
        ["precision=fp8_tensorwise", "checkpoint.reshardable=false"],
        "precision.fp8_params",
        ["fully reshardable"],
    ),
    "FP8 and odd sizes": (
        ["precision=fp8_tensorwise", "model.ffn_hidden_size=14352"],
        "model.ffn_hidden_size",
        ["7176", "multiple of 16"],
    ),
    "16-bit optimizer states on a CPU": (
        ["layout=local_cpu", "optimizer.exp_avg_dtype=bf16"],
        "optimizer.exp_avg_dtype",
        ["Transformer Engine's optimizer", "`cpu`"],
    ),
    "16-bit optimizer states without a distributed optimizer": (
        [
            *("optimizer.exp_avg_dtype=bf16", "parallelism.distributed_optimizer=false"),
            *("parallelism.overlap_param_gather=false",),
        ],
        "optimizer.exp_avg_dtype",
        ["distributed_optimizer"],
    ),
    "background saves on a CPU": (
        ["layout=local_cpu", "checkpoint.asynchronous=true"],
        "checkpoint.asynchronous",
        ["GPU memory"],
    ),
    "checkpoints kept that are never saved": (
        ["checkpoint.keep_every=150"],
        "checkpoint.keep_every",
        ["150 is not a multiple of checkpoint.interval (100)"],
    ),
    "torchrun over nodes": (["cluster.launcher=torchrun"], "cluster.launcher", ["8 nodes", "srun"]),
    "an argument that undoes a guarantee": (
        ["megatron_args.allow-ambiguous-pad-tokens=true"],
        "megatron_args.allow-ambiguous-pad-tokens",
        ["masks the loss"],
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_combination_is_refused(name: str) -> None:
    overrides, key, expected = IMPOSSIBLE[name]
    with pytest.raises(RecipeError) as caught:
        load_recipe("emma_llama3_8b_bi", overrides)
    assert caught.value.key == key
    assert caught.value.origin is not None
    assert caught.value.fix
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallelism.pipeline=2", "parallelism.virtual_pipeline=2", "batch.micro=1"],
        ["parallelism.pipeline=2", "batch.document_masking=false"],
        ["parallelism.context=2", "batch.document_masking=false"],
        ["parallelism.context=2", "model.architecture=mistral", "model.sliding_window=1024"],
        ["layout=local_cpu", "cluster=local_cpu_4", "parallelism.context=4"],
        ["parallelism.recompute=full", "parallelism.recompute_layers=32"],
        ["cluster=b200_8", "precision=fp8_mxfp8"],
        ["layout=local_cpu", "cluster=local_cpu_4", "parallelism.pipeline=2"],
        ["megatron_args.log-params-norm=true"],
    ],
)
def test_possible_combination_is_taken(overrides: list[str]) -> None:
    load_recipe("emma_llama3_8b_bi", overrides)
