"""What the ranks of the families' tests run: whole models built and loaded from a checkpoint as Megatron's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emma.recipes.schema.model import Shape


def _whole_model(shape: Shape, tensor: int) -> Any:
    """The model on this rank, all layers on one stage."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from emma.checkpoints_conversion.parity.megatron_forward import _transformer_config
    from emma.tools.training.network import change_spec, configure, finish

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor)
        model_parallel_cuda_manual_seed(0)
    config = _transformer_config(shape)
    config.tensor_model_parallel_size = tensor
    configure(config, shape)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    scaling = shape.rope_scaling
    model = GPTModel(
        config,
        change_spec(spec, config, shape),
        vocab_size=shape.padded_vocab_size(tensor),
        max_sequence_length=shape.max_position_embeddings,
        share_embeddings_and_output_weights=shape.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=shape.rope_theta,
        rope_scaling=scaling is not None and scaling.type == "llama3",
    )
    return finish([model], shape)[0]


def _tensors(sharded: Any) -> list[Any]:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    apply_factories(sharded)
    return [tensor for tensor in nested_values(sharded) if isinstance(tensor, ShardedTensor)]


def stored_keys(shapes: list[Shape]) -> list[dict[str, tuple[int, ...]]]:
    """Keys and sizes of the tensors that Megatron would store of each model."""
    result = []
    for shape in shapes:
        state = _whole_model(shape, 1).sharded_state_dict()
        result.append({tensor.key: tuple(tensor.global_shape) for tensor in _tensors(state)})
    return result


def _is(name: str, kind: str, value: Any) -> bool:
    return hasattr(value, "abs") and (name == kind or name.endswith(f".{kind}"))


def gradients(cases: list[tuple[Shape, Path, Path, list[int]]]) -> list[dict[str, float]]:
    """Gradients at the group's tensor-parallel size against transformers'.

    Args:
        cases: a model, its import, the import of its gradients (as if they were weights), and tokens.

    Returns:
        Of each, per parameter, the largest difference relative to the largest of its gradient's values.
    """
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.distributed.finalize_model_grads import _allreduce_non_tensor_model_parallel_grads

    from emma.tools.training.vocabulary import mask_padding

    results = []
    for shape, weights, expected, tokens in cases:
        model = _whole_model(
            shape, int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else 2
        )
        loaded = dist_checkpointing.load(
            {"model": model.sharded_state_dict()}, str(weights / "iter_0000000")
        )["model"]
        model.load_state_dict(loaded)
        mask_padding([model], shape.vocab_size)
        ids = torch.tensor([tokens])
        length = ids.shape[1]
        mask = torch.ones(1, 1, length, length).tril() < 0.5
        positions = torch.arange(length)[None]
        losses = model(ids, positions, mask, labels=ids.roll(-1, 1))
        losses[:, :-1].mean().backward()

        class Config:
            use_megatron_fsdp = False

        model.ddp_config = Config()
        _allreduce_non_tensor_model_parallel_grads([model], model.config)
        wanted = dist_checkpointing.load(
            {"model": model.sharded_state_dict()}, str(expected / "iter_0000000")
        )["model"]
        scales: dict[str, float] = {}
        for name, _ in model.named_parameters():
            # A single number is a sum in which much cancels: its scale is that of the same number in all layers.
            kind = name.rpartition(".layers.")[2].partition(".")[2] if wanted[name].numel() == 1 else name
            scales[name] = max(
                value.abs().max().item() for other, value in wanted.items() if _is(other, kind, value)
            )
        found = {}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            found[name] = (parameter.grad - wanted[name]).abs().max().item() / max(scales[name], 1e-12)
        assert parallel_state.get_tensor_model_parallel_world_size() == 2
        results.append(found)
    return results
