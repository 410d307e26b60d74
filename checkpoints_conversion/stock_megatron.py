"""Stock Megatron's arguments of a model: those that load an import right, and those that a checkpoint carries.

`--use-checkpoint-args` is not enough: Megatron 0.19.2 takes neither `use_rope_scaling` nor `norm_epsilon` from a
checkpoint, and goes on with its defaults (no scaling, 1e-5).
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.checkpoints_conversion.config import validated_shape
from emma.checkpoints_conversion.torch_dist_reader import TorchDistReader
from emma.checkpoints_conversion.torch_ranks_reader import holds_ranks
from emma.recipes.schema.model import RopeScaling, Shape
from emma.tools.inspection.archives import Archive
from emma.tools.inspection.objects import make
from emma.tools.inspection.trees import PickleError, as_mapping
from emma.tools.training.arguments import beyond_arguments, command_line, model_flags

__all__ = ["architecture", "loading", "shape_of", "stored_arguments"]

# Megatron's GPT builder leaves RotaryEmbedding's defaults, whatever --rope-scaling-factor says.
_STOCK_SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)


_LISTS = {
    "window_size": "window-size",
    "window_attn_skip_freq": "window-attn-skip-freq",
    "no_rope_freq": "no-rope-freq",
}


def architecture(shape: Shape) -> Namespace:
    """Megatron's arguments that describe the model, as `--use-checkpoint-args` reads them."""
    network, flags = shape.network, model_flags(shape)
    lists = {name: _numbers(flags[flag]) for name, flag in _LISTS.items()}
    return Namespace(
        emma_architecture=shape.architecture,
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        seq_length=shape.max_position_embeddings,
        max_position_embeddings=shape.max_position_embeddings,
        num_attention_heads=shape.attention_heads,
        group_query_attention=True,
        num_query_groups=shape.query_groups,
        kv_channels=shape.channels,
        position_embedding_type="rope",
        add_position_embedding=True,
        use_rotary_position_embeddings=False,
        rotary_base=shape.rope_theta,
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rope_scaling=shape.rope_scaling is not None,
        normalization="RMSNorm",
        norm_epsilon=shape.norm_epsilon,
        layernorm_epsilon=shape.norm_epsilon,  # its name in newer versions
        apply_layernorm_1p=network.zero_centred,
        swiglu=network.gated,
        squared_relu=False,
        add_bias_linear=False,
        add_qkv_bias=network.qkv_bias,
        qk_layernorm=network.qk_norm != "none",
        apply_query_key_layer_scaling=False,
        **lists,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        untie_embeddings_and_output_weights=not shape.tie_embeddings,
        make_vocab_size_divisible_by=shape.vocab_padding,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        no_save_optim=True,
        no_save_rng=True,
    )


def _numbers(text: object) -> list[int] | None:
    return None if text is None else [int(word) for word in str(text).strip("[]()").split(",")]


def loading(shape: Shape) -> dict[str, Any]:
    """What loads an import in stock Megatron, beside `--load FOLDER`.

    Returns:
        `arguments` (a command line; None if stock Megatron has no arguments for this model) and `why_not` (None,
        or what it lacks).
    """
    if (why := _beyond_arguments(shape)) is not None:
        return {"arguments": None, "why_not": why}
    start = ("finetune", "no-load-optim", "no-load-rng", "exit-on-missing-checkpoint")
    flags = {
        **model_flags(shape),
        "rotary-percent": 1.0,
        "seq-length": shape.max_position_embeddings,
        "ckpt-format": "torch_dist",
        **dict.fromkeys(start, True),
    }
    return {"arguments": command_line(flags), "why_not": None}


def _beyond_arguments(shape: Shape) -> str | None:
    """What stock Megatron has no argument for; None if there is nothing."""
    if shape.rope_theta != int(shape.rope_theta):
        return f"--rotary-base is a whole number, and the model has {shape.rope_theta}"
    if shape.rope_scaling not in (None, _STOCK_SCALING):
        return f"its GPT builder knows one RoPE scaling, {_STOCK_SCALING}, and the model has {shape.rope_scaling}"
    needed = [f"{name}: {value}" for name, value in beyond_arguments(shape)]
    if not needed:
        return None
    return f"it has no arguments for {', '.join(needed)} of architecture {shape.architecture}"


def stored_arguments(folder: Path) -> Namespace | None:
    """Megatron's arguments in a checkpoint; None if it holds none.

    Args:
        folder: one checkpoint, `torch_dist` or `torch`.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if holds_ranks(folder):
        files = sorted(folder.glob("mp_rank_*/model_optim_rng.pt"))[:1]
    else:
        files = [path for path in [folder / "common.pt"] if path.is_file()]
    stream = files[0].open("rb") if files else TorchDistReader(folder).stream("common_state/shard_0_1")
    if stream is None:
        return None
    try:
        with stream:
            archive = Archive(stream)
            tree = archive.tree
            while isinstance(tree, list) and len(tree) == 1:  # one per local shard
                tree = tree[0]
            stored = (as_mapping(tree) or {}).get("args")
            arguments = None if stored is None else make(stored, archive)
    except PickleError as error:
        raise UserError(f"{folder}: its common state cannot be read ({error}); copy it again") from None
    return arguments if isinstance(arguments, Namespace) else None


# What the arguments must be of the one architecture that arguments alone are read as. Absent ones were added to Megatron later, with this default.
_READ_AS = "llama"
_PLAIN: dict[str, tuple[Any, ...]] = {
    "emma_architecture": (_READ_AS,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "normalization": ("RMSNorm",),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "swiglu": (True,),
    "squared_relu": (False,),
    "add_bias_linear": (False,),
    "add_qkv_bias": (False,),
    "qk_layernorm": (False,),
    "qk_l2_norm": (False,),
    "multi_latent_attention": (False,),
    "num_experts": (None,),
    "mtp_num_layers": (None, 0),
    "hybrid_layer_pattern": (None,),
    "hybrid_override_pattern": (None,),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_layers_config_encoded_json": (None,),
    "experimental_attention_variant": (None,),
    "window_size": (None,),
    "softmax_type": (None, "vanilla"),
    "use_legacy_models": (False,),
    "spec": (None,),
    "no_rope_freq": (None,),
    "apply_query_key_layer_scaling": (False, True),  # scales back what it scales
}
_NEEDED = ("position_embedding_type", "normalization", "swiglu", "add_bias_linear")
_FIELDS = {
    "layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "attention_heads": "num_attention_heads",
    "head_dim": "kv_channels",
    "max_position_embeddings": "max_position_embeddings",
    "rope_theta": "rotary_base",
    "norm_epsilon": "norm_epsilon",
    "vocab_padding": "make_vocab_size_divisible_by",
    "init_std": "init_method_std",
}


def shape_of(arguments: Namespace, folder: Path, vocab_size: int | None) -> Shape:
    """The model that stock Megatron trained with these arguments.

    Args:
        arguments: from `stored_arguments`.
        folder: the checkpoint, for messages.
        vocab_size: the tokenizer's number of ids, for arguments that lack `vocab_size`.

    Raises:
        UserError: another architecture's, or arguments are missing; the message names the argument and what to do.
    """
    fix = "write a recipe that describes the model above its checkpoints/ (`emma recipe show RUN`)"
    values = vars(arguments)
    for name, allowed in _PLAIN.items():
        value = values.get(name, allowed[0])
        if (name in _NEEDED and name not in values) or value not in allowed:
            found = f"is {value!r}" if name in values else "is missing"
            raise UserError(
                f"{folder}: Megatron's argument {name} {found}; architecture {_READ_AS} has {allowed[0]!r}, and of others "
                f"the arguments do not say all: {fix}"
            )
    wanted: dict[str, Any] = {field: values.get(name) for field, name in _FIELDS.items()}
    wanted["norm_epsilon"] = values.get("layernorm_epsilon", values.get("norm_epsilon"))
    wanted["query_groups"] = (
        values.get("num_query_groups") if values.get("group_query_attention") else wanted["attention_heads"]
    )
    wanted["tie_embeddings"] = not values.get("untie_embeddings_and_output_weights", False)
    wanted["vocab_size"] = vocab_size if values.get("vocab_size") is None else values["vocab_size"]
    if wanted["init_std"] is None:
        del wanted["init_std"]
    if isinstance(wanted["rope_theta"], int):
        wanted["rope_theta"] = float(wanted["rope_theta"])
    if lost := [field for field, value in wanted.items() if value is None]:
        names = {
            "vocab_size": "vocab_size (the tokenizer had it: pass --tokenizer)",
            "query_groups": "num_query_groups",
        }
        name = names.get(lost[0], _FIELDS.get(lost[0], lost[0]))
        raise UserError(f"{folder}: the checkpoint does not carry Megatron's argument {name}; {fix}")
    tensor, padded = values.get("tensor_model_parallel_size"), values.get("padded_vocab_size")
    if values.get("vocab_size") is None and type(padded) is int and type(tensor) is int and tensor > 0:
        expected = validated_shape(wanted, f"{folder}: Megatron's arguments", _FIELDS).padded_vocab_size(
            tensor
        )
        if padded != expected:
            raise UserError(
                f"{folder}: the tokenizer has {vocab_size} ids, which Megatron would pad to {expected}, but it padded the "
                f"model's to {padded}; pass --tokenizer with the model's own"
            )
    if values.get("use_rope_scaling"):
        if values.get("rope_scaling_factor", 8.0) != _STOCK_SCALING.factor:
            raise UserError(
                f"{folder}: Megatron's argument rope_scaling_factor is {values['rope_scaling_factor']!r}, which its own GPT "
                f"builder ignores (it uses 8) and others may not; {fix}"
            )
        wanted["rope_scaling"] = _STOCK_SCALING
    return validated_shape(wanted, f"{folder}: Megatron's arguments", _FIELDS)
