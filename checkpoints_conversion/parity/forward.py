"""What a forward pass one layer at a time consists of, whichever library computes it."""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["LayerwiseForward", "device"]


def device() -> torch.device:
    """Where logits are computed: the GPU if there is one, else the CPU; Megatron's modules insist on the former."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class LayerwiseForward(Protocol):
    """A model of which only the part at work is in memory, in FP32.

    Hidden states are [tokens, hidden_size] in FP32, of one sequence.
    """

    @property
    def library(self) -> str:
        """Name and version of the library."""

    def embed(self, ids: list[torch.Tensor]) -> list[torch.Tensor]:
        """Embeds sequences of token ids [tokens]."""

    def layer(self, index: int, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """Sends the hidden states of sequences through a layer."""

    def logits(self, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """Last norm and output layer: [tokens, vocab_size] of each sequence."""
