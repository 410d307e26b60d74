"""The arguments are read back by Megatron's own parser and validation, in a rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import RecipeError
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import LoadPlan
from emma.tools.training.arguments import megatron_arguments
from tests.ranks import run_ranks
from tests.small_recipe import small_recipe


def arguments(recipe: Recipe, load: LoadPlan | None = None) -> list[str]:
    return megatron_arguments(recipe, load or LoadPlan("scratch"), 2, Path("checkpoints"), None)


def parsed(flags: list[str], names: list[str]) -> dict[str, Any]:
    """Runs in a rank: what Megatron makes of the flags."""
    from megatron.training.arguments import parse_and_validate_args

    sys.argv = ["train", *flags]
    values = parse_and_validate_args()
    return {name: getattr(values, name) for name in names}


def test_megatron_reads_every_value(tmp_path: Path) -> None:
    recipe = small_recipe(
        tmp_path,
        [
            "cluster.gpus_per_node=4",
            "parallelism={tensor: 2, pipeline: 2, virtual_pipeline: 2, sequence: true}",
            "precision={name: bf16, compute: bf16}",
            "optimizer={beta2: 0.97, epsilon: 1e-7, weight_decay: 0.05, clip_grad: 0.5}",
            "schedule={steps: 100, learning_rate: 2e-4, min_learning_rate: 1e-5, warmup_steps: 7}",
        ],
    )
    want = {
        "num_layers": 4,
        "hidden_size": 64,
        "ffn_hidden_size": 128,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 16,
        "seq_length": 32,
        "max_position_embeddings": 64,
        "rotary_base": 500000,
        "layernorm_epsilon": 1e-5,
        "swiglu": True,
        "add_bias_linear": False,
        "untie_embeddings_and_output_weights": True,
        "vocab_size": 512,
        "make_vocab_size_divisible_by": 8,
        "null_tokenizer_eod_id": 2,
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "sequence_parallel": True,
        "micro_batch_size": 2,
        "global_batch_size": 8,
        "bf16": True,
        "accumulate_allreduce_grads_in_fp32": True,
        "train_iters": 100,
        "lr": 2e-4,
        "min_lr": 1e-5,
        "lr_warmup_iters": 7,
        "lr_decay_iters": 100,
        "lr_decay_style": "cosine",
        "adam_beta1": 0.9,
        "adam_beta2": 0.97,
        "adam_eps": 1e-7,
        "weight_decay": 0.05,
        "clip_grad": 0.5,
        "seed": 1234,
        "reset_attention_mask": True,
        "reset_position_ids": True,
        "save_interval": 5,
        "ckpt_format": "torch_dist",
        "dist_ckpt_optim_fully_reshardable": True,
        "use_distributed_optimizer": True,
        "calculate_per_token_loss": True,
        "exit_signal_handler": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    # One of four ranks is enough: they parse the same.
    results = run_ranks(parsed, 1, arguments(recipe), list(want), timeout=120, env={"WORLD_SIZE": "4"})
    assert results[0] == want


@pytest.mark.parametrize("mode", ["weights", "phase", "resume"])
def test_data_parallel_ranks_share_the_reading_of_a_checkpoint(mode: str, tmp_path: Path) -> None:
    flags = arguments(small_recipe(tmp_path), LoadPlan(mode, "base", 3))
    assert flags.count("--ckpt-fully-parallel-load") == 1
    assert "--ckpt-fully-parallel-load" not in arguments(small_recipe(tmp_path))
    alone = small_recipe(tmp_path, ["megatron_args={ckpt-fully-parallel-load: false}"])
    assert "--ckpt-fully-parallel-load" not in arguments(alone, LoadPlan(mode, "base", 3))


def test_16_bit_states_and_saving_in_the_background_reach_megatron() -> None:
    recipe = load_recipe("emma_llama3_8b_bi", ["layout=h200_1_bf16", "checkpoint.asynchronous=true"])
    want = {
        "use_precision_aware_optimizer": True,
        "exp_avg_dtype": "bf16",
        "exp_avg_sq_dtype": "bf16",
        "main_params_dtype": "fp32",
        "async_save": True,
        "async_strategy": "mcore",
        "use_persistent_ckpt_worker": True,
        "recompute_granularity": "full",
        "recompute_num_layers": 16,
    }
    (found,) = run_ranks(parsed, 1, arguments(recipe), list(want), timeout=120)
    names = ("exp_avg_dtype", "exp_avg_sq_dtype", "main_params_dtype")
    formats = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}
    assert {**found, **{name: formats.get(str(found[name]), found[name]) for name in names}} == want


FP8: dict[str, dict[str, object]] = {
    "tensorwise": {"fp8": "hybrid", "fp8_param_gather": True, "first_last_layers_bf16": True},
    "blockwise": {"fp8": "e4m3", "fp8_param_gather": False, "first_last_layers_bf16": True},
    "delayed": {
        "fp8": "hybrid",
        "fp8_param_gather": True,
        "first_last_layers_bf16": False,
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
    },
    "mxfp8": {
        "fp8": "e4m3",
        "fp8_param_gather": True,
        "first_last_layers_bf16": False,
        "reuse_grad_buf_for_mxfp8_param_ag": True,
    },
}


@pytest.mark.parametrize("scaling", FP8)
def test_megatron_reads_every_fp8_recipe(scaling: str) -> None:
    overrides = [f"precision=fp8_{scaling}", *(["cluster=b200_8"] if scaling == "mxfp8" else [])]
    if FP8[scaling]["first_last_layers_bf16"]:
        overrides.append("precision.first_last_layers_bf16=2")
    recipe = load_recipe("emma_llama3_8b_bi", overrides)
    want = {"bf16": True, "fp8_recipe": scaling, **FP8[scaling]}
    if want["first_last_layers_bf16"]:  # two of them: one is Megatron's default
        want |= {"num_layers_at_start_in_bf16": 2, "num_layers_at_end_in_bf16": 2}
    world = {"WORLD_SIZE": str(recipe.cluster.world_size)}
    (found,) = run_ranks(parsed, 1, arguments(recipe), list(want), timeout=120, env=world)
    assert found == want


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (
            ["parallelism.recompute=selective", "parallelism.recompute_modules=[core_attn, mlp]"],
            {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
        ),
        (["parallelism.offload_layers=4"], {"cpu_offloading_num_layers": 4, "cpu_offloading": True}),
        (["parallelism.overlap_tensor=true"], {"tp_comm_overlap": True, "tp_comm_bootstrap_backend": "nccl"}),
        (["parallelism.cuda_graphs=true", "batch.document_masking=false"], {"cuda_graph_impl": "local"}),
    ],
    ids=["recompute", "offload", "overlap", "graphs"],
)
def test_what_saves_memory_or_time_reaches_megatron(given: list[str], want: dict[str, Any]) -> None:
    recipe = load_recipe("emma_llama3_8b_bi", given)
    world = {"WORLD_SIZE": str(recipe.cluster.world_size)}
    (found,) = run_ranks(parsed, 1, arguments(recipe), list(want), timeout=120, env=world)
    assert found == want


def test_without_fp8_no_argument_speaks_of_it() -> None:
    assert not [
        flag for flag in arguments(load_recipe("emma_llama3_8b_bi", ["precision=bf16"])) if "fp8" in flag
    ]


def scheduled_rates(flags: list[str], steps: list[int]) -> list[float]:
    """Runs in a rank: the learning rate of Megatron's own scheduler before each of the steps."""
    import torch
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.global_vars import set_args
    from megatron.training.training import get_optimizer_param_scheduler

    sys.argv = ["train", *flags]
    values = parse_and_validate_args()
    set_args(values)
    group = {"params": [torch.zeros(1)], "max_lr": values.lr, "min_lr": values.min_lr, "wd_mult": 1.0}
    scheduler = get_optimizer_param_scheduler(torch.optim.SGD([group], lr=values.lr))
    rates = []
    for step in steps:
        scheduler.num_steps = step * values.global_batch_size
        rates.append(scheduler.get_lr(scheduler.optimizer.param_groups[0]))
    return rates


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        # Peak 1e-3, floor 1e-4, 10 steps of warm-up, 100 in all: after 10, 55, 80, 90 and 100 of them.
        ("{decay: wsd, wsd_decay_steps: 40}", [1e-3, 1e-3, 5.5e-4, 3.25e-4, 1e-4]),
        ("{decay: linear}", [1e-3, 5.5e-4, 3e-4, 2e-4, 1e-4]),
        ("{decay: cosine}", [1e-3, 5.5e-4, 2.0528e-4, 1.2714e-4, 1e-4]),
        ("{decay: constant}", [1e-3] * 5),
        (
            "{decay: wsd, wsd_decay_steps: 40, wsd_decay_style: cosine}",
            [1e-3, 1e-3, 5.5e-4, 2.31802e-4, 1e-4],
        ),
        (
            "{decay: wsd, wsd_decay_steps: 40, wsd_decay_style: exponential}",
            [1e-3, 1e-3, 4.72792e-4, 2.70286e-4, 1e-4],
        ),
        (
            "{decay: wsd, wsd_decay_steps: 40, wsd_decay_style: minus_sqrt}",
            [1e-3, 1e-3, 3.63604e-4, 2.20577e-4, 1e-4],
        ),
        # 20 steps further on along a curve of 120, and 100 of a warm-up from half the peak.
        ("{decay: linear, offset: 20}", [1e-3, 6.3182e-4, 4.2727e-4, 3.4545e-4, 2.6364e-4]),
        (
            "{decay: constant, warmup_from: 5e-4, warmup_steps: 99}",
            [5.50505e-4, 7.77778e-4, 9.0404e-4, 9.54545e-4, 1e-3],
        ),
    ],
)
def test_each_decay_has_its_curve(tmp_path: Path, decay: str, rates: list[float]) -> None:
    peak = "learning_rate: 1e-3, min_learning_rate: 1e-4, steps: 100"
    warm = "" if "warmup_steps" in decay else "warmup_steps: 10, "
    recipe = small_recipe(tmp_path, [f"schedule={{{peak}, {warm}{decay[1:]}"])
    (found,) = run_ranks(scheduled_rates, 1, arguments(recipe), [10, 55, 80, 90, 100])
    assert found == pytest.approx(rates, rel=1e-4)


def test_start_modes_choose_what_is_loaded(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    weights = arguments(recipe, LoadPlan("weights", "base"))
    assert {"--finetune", "--no-load-optim", "--no-load-rng"} <= set(weights)
    phase = arguments(recipe, LoadPlan("phase", "runs/a/checkpoints", 40))
    assert "--finetune" not in phase and "--no-load-optim" not in phase
    assert phase[phase.index("--ckpt-step") + 1] == "40"
    resume = arguments(recipe, LoadPlan("resume", "runs/small/checkpoints", 5))
    assert not {"--finetune", "--no-load-optim", "--no-load-rng"} & set(resume)


def test_megatron_args_win_and_false_drops_a_switch(tmp_path: Path) -> None:
    recipe = small_recipe(
        tmp_path,
        ['megatron_args={"log-params-norm": true, "timing-log-level": 2, "calculate-per-token-loss": false}'],
    )
    given = arguments(recipe)
    assert "--log-params-norm" in given and "--calculate-per-token-loss" not in given
    assert given[-2:] == ["--timing-log-level", "2"]


def test_megatron_args_leave_out_a_flag_with_its_value(tmp_path: Path) -> None:
    given = arguments(small_recipe(tmp_path, ['megatron_args={"init-method-std": false, "adam-eps": 1e-5}']))
    assert "--init-method-std" not in given and "0.02" not in given
    assert given[-2:] == ["--adam-eps", "1e-05"]


def test_transformer_engine_masks_documents_by_packed_sequences(tmp_path: Path) -> None:
    """Transformer Engine ignores --reset-attention-mask silently, so it is never passed there."""
    gpu = small_recipe(tmp_path, ["cluster={name: node, gpus_per_node: 1, device: h100}"])
    assert "--dataloader-inter-document-masking" in arguments(gpu)
    assert "--reset-attention-mask" not in arguments(gpu)
    off = small_recipe(tmp_path, ["batch.document_masking=false"])
    assert not {"--reset-attention-mask", "--dataloader-inter-document-masking"} & set(arguments(off))


def test_a_fractional_rope_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.rope_theta: 10000\.5 is not a whole number"):
        arguments(small_recipe(tmp_path, ["model.rope_theta=10000.5"]))
