"""Forward pass with Megatron's own GPTModel, each layer as its own pipeline stage."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from emma import megatron_patches
from emma.checkpoints_conversion.parameters import EMBEDDING, LAYERS, NORM_KEYS, OUTPUT, global_sizes
from emma.checkpoints_conversion.parity.forward import device
from emma.recipes.schema.architecture import Kind
from emma.recipes.schema.model import Shape

__all__ = ["MegatronForward", "StoredWeights", "parallel_state_of_one"]

_FINAL_NORM = "decoder.final_layernorm.weight"


class StoredWeights(Protocol):
    """Weights that lend slices of Megatron's global tensors."""

    @property
    def folder(self) -> Path:
        """Their folder."""

    @property
    def shape(self) -> Shape:
        """The model."""

    def open_stored(
        self, key: str, offsets: Sequence[int], sizes: Sequence[int]
    ) -> AbstractContextManager[torch.Tensor]:
        """Lends a slice of a global tensor."""


@contextmanager
def parallel_state_of_one() -> Iterator[None]:
    """Sets up the single-process process groups that Megatron's modules need; keeps existing ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing fused kernels, which an FP32 comparison does not need
        megatron_patches.apply()
        from megatron.core import parallel_state
        from megatron.core.models.gpt import gpt_model
    # It warns of its own deprecation at each construction.
    logging.getLogger(gpt_model.__name__).setLevel(logging.ERROR)
    from megatron.core.tensor_parallel import random

    groups, model_groups = torch.distributed.is_initialized(), parallel_state.model_parallel_is_initialized()
    with tempfile.TemporaryDirectory(prefix="emma-parity-") as folder:
        if not groups:
            store = torch.distributed.FileStore(f"{folder}/store", 1)
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        if not model_groups:
            parallel_state.initialize_model_parallel()
            random.model_parallel_cuda_manual_seed(0)
        try:
            yield
        finally:
            if not model_groups:
                parallel_state.destroy_model_parallel()
            if not groups:
                torch.distributed.destroy_process_group()


def _transformer_config(shape: Shape) -> Any:
    """Megatron's configuration of the layers, in FP32 and without fused kernels."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    network, kinds = shape.network, shape.kinds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the constructor warns about its own defaults
        return TransformerConfig(
            num_layers=shape.layers,
            hidden_size=shape.hidden_size,
            ffn_hidden_size=shape.ffn_hidden_size,
            num_attention_heads=shape.attention_heads,
            num_query_groups=shape.query_groups,
            kv_channels=shape.channels,
            normalization="RMSNorm",
            layernorm_epsilon=shape.norm_epsilon,
            layernorm_zero_centered_gamma=network.zero_centred,
            gated_linear_unit=network.gated,
            activation_func=torch.nn.functional.silu,
            add_bias_linear=False,
            add_qkv_bias=network.qkv_bias,
            qk_layernorm=network.qk_norm != "none",
            window_size=None if shape.sliding_window is None else (shape.sliding_window - 1, 0),
            window_attn_skip_freq=[int(kind == "sliding") for kind in kinds],
            no_rope_freq=[int(kind == "nope") for kind in kinds],
            hidden_dropout=0.0,
            attention_dropout=0.0,
            params_dtype=torch.float32,
            transformer_impl="local",
            use_cpu_initialization=True,
            perform_initialization=False,
            persist_layer_norm=False,
            bias_activation_fusion=False,
            bias_dropout_fusion=False,
            masked_softmax_fusion=False,
            apply_rope_fusion=False,
            gradient_accumulation_fusion=False,
        )


def _one_layer(shape: Shape, kind: Kind) -> Shape:
    """The model with one layer, of this kind. Window and rotary embedding follow a layer's number, of which this is the
    first."""
    window = shape.sliding_window if kind == "sliding" else None
    return shape.model_copy(update={"layers": 1, "layer_kinds": [kind], "sliding_window": window})


class MegatronForward:
    """Builds pipeline stages of the model and fills them with the checkpoint's tensors as stored. Fused
    weights reach Megatron fused, so the comparison does not rely on the conversion's own splitting. Use it
    within `parallel_state_of_one`.

    Args:
        weights: the checkpoint's weights.
    """

    def __init__(self, weights: StoredWeights) -> None:
        import megatron.core

        self._weights, self._shape = weights, weights.shape
        self._device = device()
        self._stages = {kind: self._build(kind, last=False) for kind in sorted(set(self._shape.kinds))}
        self.library = f"megatron-core {megatron.core.__version__}, local implementation"

    def _build(self, kind: Kind, *, last: bool) -> Any:
        """A stage with one layer and, if `last`, the output layer; its weights are not set."""
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.models.gpt.gpt_model import GPTModel

        from emma.tools.training.network import change_spec, configure, finish

        shape = _one_layer(self._shape, kind)
        config, scaling = _transformer_config(shape), shape.rope_scaling
        configure(config, shape)
        spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
        model = GPTModel(
            config,
            change_spec(spec, config, shape),
            vocab_size=shape.padded_vocab_size(1),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=False,
            post_process=last,
            parallel_output=False,
            share_embeddings_and_output_weights=False,
            position_embedding_type="rope",
            rotary_base=shape.rope_theta,
            rope_scaling=scaling is not None and scaling.type == "llama3",
        )
        return finish([model], shape)[0].to(self._device).eval()

    def _stored(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        with self._weights.open_stored(key, offsets, sizes) as stored:
            return stored.to(self._device, torch.float32, copy=True)

    @torch.no_grad()
    def embed(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        # Looking up rows in the stored table is all the embedding does; a module would hold the whole table
        # in FP32.
        sizes = (self._shape.vocab_size, self._shape.hidden_size)
        from emma.tools.training.network import embedding_scale

        scale = embedding_scale(self._shape, torch.float32).to(self._device)
        with self._weights.open_stored(EMBEDDING, (0, 0), sizes) as table:
            rows = (torch.nn.functional.embedding(one, table) for one in ids)
            return [one.to(self._device, torch.float32) * scale for one in rows]

    @torch.no_grad()
    def layer(self, index: int, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes, stage = global_sizes(self._shape), self._stages[self._shape.kinds[index]]
        state = {}
        prefix = "decoder.layers.0."
        buffers = ((name, value) for name, value in stage.named_buffers() if name.startswith(prefix))
        for name, value in (*stage.named_parameters(), *buffers):
            inner = name.removeprefix(prefix)
            key = LAYERS + NORM_KEYS.get(inner, inner)
            extent = sizes[key][1:]
            stored = self._stored(key, (index, *[0] * len(extent)), (1, *extent))
            state[name] = stored.view(value.shape)
        stage.load_state_dict(state, strict=False)
        return [self._one(stage, sequence) for sequence in hidden]

    def _one(self, stage: Any, sequence: torch.Tensor) -> torch.Tensor:
        length = len(sequence)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=self._device).triu(1)
        positions = torch.arange(length, device=self._device)[None]
        stage.set_input_tensor(sequence[:, None])
        output: torch.Tensor = stage(None, positions, mask)
        return output[:, 0]

    @torch.no_grad()
    def logits(self, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        stage = self._build(self._shape.kinds[-1], last=True)
        norm, output = stage.decoder.final_layernorm, stage.output_layer
        norm.weight.copy_(self._stored(_FINAL_NORM, (0,), norm.weight.shape))
        key, rows = (EMBEDDING if self._shape.tie_embeddings else OUTPUT), self._shape.vocab_size
        with self._weights.open_stored(key, (0, 0), (rows, self._shape.hidden_size)) as stored:
            output.weight[:rows].copy_(stored)
        output.weight[rows:].zero_()
        return [output(norm(sequence[:, None]))[0][:, 0, :rows] for sequence in hidden]
