"""What a model's architecture needs of the network and no argument of Megatron reaches.

Megatron builds a network from a configuration and a layer spec, which names the module of each place. Here both are
changed where the architecture's switches (`recipes/schema/architecture.py`) ask for it, in the local implementation and
in Transformer Engine's alike; an architecture without such switches gets Megatron's own.
"""

from __future__ import annotations

import copy
import functools
import math
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from emma.recipes.schema.architecture import Kind
from emma.recipes.schema.model import RopeScaling, Shape

__all__ = ["change_spec", "configure", "configure_model", "embedding_scale", "finish"]


def configure_model(config: Any, shape: Shape) -> None:
    """Makes Megatron's loop build the model.

    Args:
        config: the loop's GPTModelConfig, from the arguments of `arguments.model_flags`.
        shape: the recipe's model.
    """
    from megatron.training.models.gpt import default_layer_spec

    configure(config.transformer, shape)

    def spec(config: Any, vp_stage: int | None = None) -> Any:
        return change_spec(default_layer_spec(config, vp_stage), config.transformer, shape)

    config.transformer_layer_spec = spec
    config.pre_wrap_hooks = [*config.pre_wrap_hooks, partial(finish, shape=shape)]


def configure(transformer: Any, shape: Shape) -> None:
    """Sets what is a value of the configuration: activation, scale of the scores, Llama 3's RoPE scaling.

    Args:
        transformer: a TransformerConfig of the model, changed in place.
        shape: the model.
    """
    if shape.network.activation == "gelu_tanh":
        transformer.activation_func = gelu_tanh
    if shape.score_scale != shape.channels:
        transformer.softmax_scale = shape.score_scale**-0.5
    scaling = shape.rope_scaling
    if scaling is not None and scaling.type == "llama3":
        from emma.megatron_patches import rope_scaling

        constants = {name: getattr(scaling, name) for name in RopeScaling.constants["llama3"]}
        rope_scaling.set_rope_scaling(transformer, rope_scaling.RopeScaling(**constants))


def change_spec(spec: Any, transformer: Any, shape: Shape) -> Any:
    """Puts the architecture's modules into a layer spec.

    Args:
        spec: Megatron's own for `transformer`; changed in place.
        transformer: the TransformerConfig that the layers get.
        shape: the model.

    Returns:
        The spec.
    """
    network, parts = shape.network, spec.submodules
    backend: Any = LocalSpecProvider()
    if transformer.transformer_impl == "transformer_engine":
        from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

        backend = TESpecProvider()
    attention, products = parts.self_attention.submodules, parts.mlp.keywords["submodules"]
    if network.norms == "after":
        parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp
        attention.linear_qkv = products.linear_fc1 = backend.column_parallel_linear()
    if network.norms in ("after", "both"):
        norm = backend.layer_norm(rms_norm=True)
        attention.linear_proj = _normed(attention.linear_proj, norm)
        products.linear_fc2 = _normed(products.linear_fc2, norm)
    if network.qk_norm == "all":
        attention.q_layernorm = partial(AllHeadsNorm, heads=shape.attention_heads)
        attention.k_layernorm = partial(AllHeadsNorm, heads=shape.query_groups)
    if network.rope == "by_kind":
        parts.self_attention.module = AttentionByKind
        parts.self_attention.params = {**parts.self_attention.params, "shape": shape}
    if network.activation == "xielu":
        parts.mlp = partial(XieluMLP.as_mlp_submodule, submodules=products)
    return spec


def finish(model: list[torch.nn.Module], shape: Shape) -> list[torch.nn.Module]:
    """Sets what belongs to the whole model: its rotary frequencies, and the scale of embeddings.

    Args:
        model: this rank's model chunks, not yet wrapped for data parallelism.
        shape: the model.
    """
    for chunk in model:
        if shape.network.rope == "by_kind":
            chunk.rotary_pos_emb = RopeByKind(chunk.rotary_pos_emb, shape)
        embedding = getattr(chunk, "embedding", None)
        if embedding is not None and shape.network.embedding_scale != "none":
            # Before the sequence is divided over ranks; the output layer, where it is the same matrix, has no scale.
            embedding.word_embeddings.register_forward_hook(partial(_scaled, shape))
    return model


def embedding_scale(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """What embeddings are multiplied by, rounded to their type as transformers does (√1152 is 34 in BF16)."""
    root = shape.hidden_size**0.5 if shape.network.embedding_scale == "sqrt_hidden" else 1.0
    return torch.tensor(root, dtype=dtype)


def _scaled(shape: Shape, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output * embedding_scale(shape, output.dtype).to(output.device)


def gelu_tanh(gate: torch.Tensor) -> torch.Tensor:
    """GELU by its tanh formula; torch's default, by the error function, differs by up to 5e-4."""
    return functional.gelu(gate, approximate="tanh")


@functools.cache
def _normed(linear: type, norm: Any) -> type:
    """A row-parallel projection that norms its output, `post_layernorm`."""

    class Normed(linear):
        def __init__(self, input_size: int, output_size: int, /, *, config: Any, **options: Any) -> None:
            super().__init__(input_size, output_size, config=config, **options)
            self.post_layernorm = norm(config=config, hidden_size=output_size, eps=config.layernorm_epsilon)

        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
            output, bias = super().forward(hidden)
            if bias is not None:
                raise ValueError("a bias after the norm would be another network")
            return self.post_layernorm(output), None

    return Normed


class AllHeadsNorm(torch.nn.Module):
    """RMSNorm over the channels of all heads, of which this rank has its share.

    Each rank holds the whole weight and uses its slice: Megatron sums the gradients of what is called `q_layernorm` or
    `k_layernorm` over the tensor-parallel ranks, and of each slice only one rank's is not zero.

    Args:
        hidden_size: channels of a head.
        config: the TransformerConfig.
        eps: of the norm.
        heads: number of heads on all ranks.
    """

    def __init__(self, hidden_size: int, config: Any, eps: float, heads: int) -> None:
        super().__init__()
        self.width, self.eps = heads * hidden_size, eps
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(self.width, dtype=config.params_dtype, device=device))

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """Norms [sequence, batch, heads of this rank, channels]; as transformers, in FP32."""
        flat = heads.flatten(-2).float()
        squares = flat.square().sum(-1, keepdim=True)
        first = 0
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            # Every rank's output depends on the sum, so its gradient is a sum over ranks too.
            squares = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(squares))
            first = parallel_state.get_tensor_model_parallel_rank() * flat.shape[-1]
        weight = self.weight[first : first + flat.shape[-1]].float()
        normed = flat * torch.rsqrt(squares / self.width + self.eps) * weight
        return normed.to(heads.dtype).view_as(heads)


class Xielu(torch.nn.Module):
    """xIELU (arXiv 2411.13010), with the numbers that transformers keeps: α before softplus, and two constants.

    Each rank's share of the layer adds to the gradient of the same two numbers, so it is summed over the ranks.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        kind: dict[str, Any] = {
            "dtype": config.params_dtype,
            "device": "cpu" if config.use_cpu_initialization else torch.cuda.current_device(),
        }
        # transformers' start: α = 0.8 for both sides, β = 0.5.
        self.alpha_p = torch.nn.Parameter(torch.full((1,), math.log(math.expm1(0.8)), **kind))
        self.alpha_n = torch.nn.Parameter(torch.full((1,), math.log(math.expm1(0.8 - 0.5)), **kind))
        self.beta: torch.Tensor
        self.eps: torch.Tensor
        self.register_buffer("beta", torch.tensor(0.5, **kind))
        self.register_buffer("eps", torch.tensor(-1e-6, **kind))

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None
    ) -> dict[str, Any]:
        """For Megatron's checkpoints: the same on all tensor-parallel ranks, which its default overlooks for a part of a
        feed-forward layer."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            {},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=(metadata or {}).get("dp_cp_group")
            or parallel_state.get_data_parallel_group(with_context_parallel=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [sequence, batch, ffn of this rank]."""
        # The formula keeps half a dozen tensors of x's size for the backward pass; computed again, only x.
        result: torch.Tensor = checkpoint(self._formula, x, use_reentrant=False, preserve_rng_state=False)
        return result

    def _formula(self, x: torch.Tensor) -> torch.Tensor:
        positive, negative = (
            copy_to_tensor_model_parallel_region(one) for one in (self.alpha_p, self.alpha_n)
        )
        above, below = functional.softplus(positive), self.beta + functional.softplus(negative)
        left = (torch.expm1(torch.minimum(x, self.eps)) - x) * below + self.beta * x
        return torch.where(x > 0, above * x * x + self.beta * x, left)


class XieluMLP(MLP):
    """A feed-forward layer without gate whose activation has weights."""

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self.activation_func = Xielu(config)


class RopeByKind(torch.nn.Module):
    """The rotary embeddings of all kinds of layers, stacked in one tensor, since recomputation passes tensors only.

    Args:
        rotary: Megatron's, of which each set is a copy with its own frequencies.
        shape: the model.
    """

    def __init__(self, rotary: Any, shape: Shape) -> None:
        super().__init__()
        sets = []
        for kind in _kinds(shape):
            one = copy.copy(rotary)
            one.inv_freq = _frequencies(shape, kind).to(rotary.inv_freq.device)
            sets.append(one)
        self.sets = torch.nn.ModuleList(sets)
        self.get_rotary_seq_len = rotary.get_rotary_seq_len

    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        """Angles, [kinds, sequence, 1, 1, channels]."""
        return torch.stack([one(*args, **options) for one in self.sets])


def _kinds(shape: Shape) -> list[Kind]:
    return sorted(set(shape.kinds))


def _frequencies(shape: Shape, kind: Kind) -> torch.Tensor:
    """Rotary frequencies of layers of a kind, [channels / 2] FP32; linear and YaRN (arXiv 2309.00071) as transformers
    computes them."""
    theta, scaling = shape.rope(kind)
    channels = shape.channels
    plain = 1.0 / theta ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    if scaling is None:
        return plain
    if scaling.type == "linear":
        return plain / scaling.factor
    if scaling.type != "yarn":
        raise ValueError(f"RoPE scaling {scaling.type} by kind of layer")

    def channel(turns: float) -> float:
        """The pair of channels that turns so often within the original context."""
        wavelengths = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return channels * math.log(wavelengths) / (2 * math.log(theta))

    low, high = math.floor(channel(scaling.beta_fast)), math.ceil(channel(scaling.beta_slow))
    low, high = max(low, 0), min(high, channels - 1)
    ramp = (torch.arange(channels // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return plain / scaling.factor * (1 - kept) + plain * kept


class AttentionByKind(SelfAttention):
    """Attention that takes its kind's set of `RopeByKind`, and the factor that YaRN asks for.

    YaRN multiplies rotated queries and keys; since all channels are rotated, that is a factor of the scores.

    Args:
        shape: the model.
    """

    def __init__(
        self, config: Any, submodules: Any, layer_number: int, *args: Any, shape: Shape, **options: Any
    ) -> None:
        kind = shape.kinds[layer_number - 1]
        _, scaling = shape.rope(kind)
        if scaling is not None and scaling.sharpening != 1.0:
            config = copy.copy(config)
            config.softmax_scale = scaling.sharpening**2 * shape.score_scale**-0.5
        super().__init__(config, submodules, layer_number, *args, **options)
        self._set = _kinds(shape).index(kind)

    def forward(self, *args: Any, rotary_pos_emb: torch.Tensor | None = None, **options: Any) -> Any:
        """As Megatron's."""
        own = None if rotary_pos_emb is None else rotary_pos_emb[self._set]
        return super().forward(*args, rotary_pos_emb=own, **options)
