"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CompletionOutput", "Logprob", "RequestOutput"]


@dataclass
class Logprob:
    """Log-probability of a token at one position, and its rank there (1 is the most likely)."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One generated text."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    """`prompt_logprobs`: for each token of the prompt its own log-probability and those of the likeliest ones, by token
    id; None for the first token, which nothing predicts; None altogether where they were not asked for."""

    request_id: str
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool = True
