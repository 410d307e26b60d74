"""The parts of a forward pass that runs one layer at a time, whichever library computes it."""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["LayerwiseForward", "device"]


def device() -> torch.device:
    """Where logits are computed: the GPU if there is one, which Megatron's modules then require; otherwise
    the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class LayerwiseForward(Protocol):
    """A model in FP32 of which only the part in use is in memory.

    Hidden states are [tokens, hidden_size] in FP32, one tensor per sequence.
    """

    @property
    def library(self) -> str:
        """Name and version of the library."""

    def embed(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        """Embeds sequences of token ids [tokens]."""

    def layer(self, index: int, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """Passes the hidden states of sequences through a layer."""

    def logits(self, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """Applies the final norm and the output layer: [tokens, vocab_size] per sequence."""
