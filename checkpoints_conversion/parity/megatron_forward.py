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
from emma.checkpoints_conversion.parameters import EMBEDDING, NORM_KEYS, OUTPUT, global_sizes
from emma.checkpoints_conversion.parity.forward import device
from emma.recipes.schema.model import Shape

__all__ = ["MegatronForward", "StoredWeights", "parallel_state_of_one"]

_LAYERS = "decoder.layers."
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
    """Megatron's configuration of one layer, in FP32 and without fused kernels."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from emma.megatron_patches.rope_scaling import RopeScaling, set_rope_scaling

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the constructor warns about its own defaults
        config = TransformerConfig(
            num_layers=1,
            hidden_size=shape.hidden_size,
            ffn_hidden_size=shape.ffn_hidden_size,
            num_attention_heads=shape.attention_heads,
            num_query_groups=shape.query_groups,
            kv_channels=shape.channels,
            normalization="RMSNorm",
            layernorm_epsilon=shape.norm_epsilon,
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            add_bias_linear=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            params_dtype=torch.float32,
            use_cpu_initialization=True,
            perform_initialization=False,
            persist_layer_norm=False,
            bias_activation_fusion=False,
            bias_dropout_fusion=False,
            masked_softmax_fusion=False,
            apply_rope_fusion=False,
            gradient_accumulation_fusion=False,
        )
    if shape.rope_scaling is not None:
        set_rope_scaling(config, RopeScaling(**shape.rope_scaling.model_dump()))
    return config


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
        self._stage = self._build(last=False)
        self.library = f"megatron-core {megatron.core.__version__}, local implementation"

    def _build(self, *, last: bool) -> Any:
        """A stage with one layer and, if `last`, the output layer; its weights are not set."""
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.models.gpt.gpt_model import GPTModel

        shape = self._shape
        model = GPTModel(
            _transformer_config(shape),
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=shape.padded_vocab_size(1),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=False,
            post_process=last,
            parallel_output=False,
            share_embeddings_and_output_weights=False,
            position_embedding_type="rope",
            rotary_base=shape.rope_theta,
            rope_scaling=shape.rope_scaling is not None,
        )
        return model.to(self._device).eval()

    def _stored(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        with self._weights.open_stored(key, offsets, sizes) as stored:
            return stored.to(self._device, torch.float32, copy=True)

    @torch.no_grad()
    def embed(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        # Looking up rows in the stored table is all the embedding does; a module would hold the whole table
        # in FP32.
        sizes = (self._shape.vocab_size, self._shape.hidden_size)
        with self._weights.open_stored(EMBEDDING, (0, 0), sizes) as table:
            return [torch.nn.functional.embedding(one, table).to(self._device, torch.float32) for one in ids]

    @torch.no_grad()
    def layer(self, index: int, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes = global_sizes(self._shape)
        state = {}
        prefix = "decoder.layers.0."
        for name, parameter in self._stage.named_parameters():
            inner = name.removeprefix(prefix)
            key = _LAYERS + NORM_KEYS.get(inner, inner)
            extent = sizes[key][1:]
            stored = self._stored(key, (index, *[0] * len(extent)), (1, *extent))
            state[name] = stored.view(parameter.shape)
        self._stage.load_state_dict(state, strict=False)
        return [self._one(sequence) for sequence in hidden]

    def _one(self, sequence: torch.Tensor) -> torch.Tensor:
        length = len(sequence)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=self._device).triu(1)
        positions = torch.arange(length, device=self._device)[None]
        self._stage.set_input_tensor(sequence[:, None])
        output: torch.Tensor = self._stage(None, positions, mask)
        return output[:, 0]

    @torch.no_grad()
    def logits(self, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        stage = self._build(last=True)
        norm, output = stage.decoder.final_layernorm, stage.output_layer
        norm.weight.copy_(self._stored(_FINAL_NORM, (0,), norm.weight.shape))
        key, rows = (EMBEDDING if self._shape.tie_embeddings else OUTPUT), self._shape.vocab_size
        with self._weights.open_stored(key, (0, 0), (rows, self._shape.hidden_size)) as stored:
            output.weight[:rows].copy_(stored)
        output.weight[rows:].zero_()
        return [output(norm(sequence[:, None]))[0][:, 0, :rows] for sequence in hidden]
