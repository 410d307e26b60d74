"""How tokens are chosen, and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

__all__ = ["SamplingParams", "TokensPrompt"]


class TokensPrompt(TypedDict):
    """A prompt of token ids."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]


@dataclass
class SamplingParams:
    """Sampling parameters of one request, in vLLM's order and with its defaults."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.seed == -1:
            self.seed = None
        self.stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if self.temperature < 0:
            raise ValueError(f"temperature must be non-negative, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if any(not text for text in self.stop):
            raise ValueError("stop cannot contain an empty string.")
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are only supported when detokenize is True.")
        unsupported: dict[str, Any] = {
            "n": (self.n, 1),
            "presence_penalty": (self.presence_penalty, 0),
            "frequency_penalty": (self.frequency_penalty, 0),
            "repetition_penalty": (self.repetition_penalty, 1),
            "top_k": (self.top_k, 0),
            "min_p": (self.min_p, 0),
            "min_tokens": (self.min_tokens, 0),
            "logprobs": (self.logprobs, None),
            "logprob_token_ids": (self.logprob_token_ids, None),
        }
        for name, (value, neutral) in unsupported.items():
            if value != neutral:
                raise NotImplementedError(f"{name}={value}: vLLM knows it, this stand-in does not")
