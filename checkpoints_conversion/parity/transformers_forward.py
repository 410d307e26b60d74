"""Forward pass with transformers' own Llama modules, one layer in memory."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from emma.checkpoints_conversion.parity.forward import device
from emma.checkpoints_conversion.weights import Weights
from emma.tools.inspection.models import tokenizer_options

__all__ = ["TransformersForward"]


class TransformersForward:
    """Reads `config.json` through transformers, so that its own reading of RoPE and norms is compared.

    Args:
        weights: parameters in a Hugging Face folder.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._device = device()
        folder = Path(weights.folder)
        self._config = transformers.LlamaConfig.from_pretrained(folder, **tokenizer_options(folder))
        self._config._attn_implementation = "eager"
        self._config.dtype = torch.float32
        with torch.device("meta"):
            self._layer = LlamaDecoderLayer(self._config, layer_idx=0).eval()
        self._rotary = LlamaRotaryEmbedding(self._config).to(self._device)
        self.library = f"transformers {transformers.__version__}"

    def _parameter(self, name: str) -> torch.Tensor:
        with self._weights.open(name) as stored:
            return stored.to(self._device, torch.float32, copy=True)

    @torch.no_grad()
    def embed(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        with self._weights.open("model.embed_tokens.weight") as table:
            return [torch.nn.functional.embedding(one, table).to(self._device, torch.float32) for one in ids]

    @torch.no_grad()
    def layer(self, index: int, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        prefix = f"model.layers.{index}."
        state = {name: self._parameter(prefix + name) for name in self._layer.state_dict()}
        self._layer.load_state_dict(state, strict=True, assign=True)
        return [self._one(sequence) for sequence in hidden]

    def _one(self, sequence: torch.Tensor) -> torch.Tensor:
        length = len(sequence)
        positions = torch.arange(length, device=self._device)[None]
        mask = torch.full((length, length), torch.finfo(torch.float32).min, device=self._device).triu(1)[
            None, None
        ]
        batch = sequence[None]
        output = self._layer(
            batch,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self._rotary(batch, positions),
        )
        return (output[0] if isinstance(output, tuple) else output)[0]

    @torch.no_grad()
    def logits(self, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        norm = LlamaRMSNorm(self._config.hidden_size, eps=self._config.rms_norm_eps).to(self._device)
        norm.load_state_dict({"weight": self._parameter("model.norm.weight")}, strict=True)
        tied = self._config.tie_word_embeddings
        output = self._parameter("model.embed_tokens.weight" if tied else "lm_head.weight")
        return [torch.nn.functional.linear(norm(sequence), output) for sequence in hidden]
