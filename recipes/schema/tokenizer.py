"""The optional section `tokenizer_extension`: how `emma tokenizer extend` chooses new tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from emma.recipes.schema.section import Section

__all__ = ["Extension"]


class Extension(Section):
    """New tokens for the languages that the base tokenizer serves worst."""

    tokens: int = Field(16384, gt=0)
    """New token ids; fewer where the text gives no more."""
    temperature: float = Field(3.3, ge=1)
    """Languages weigh bytes^(1/temperature); 1 is proportional to their text."""
    max_mib_per_language: float = Field(2.0, gt=0)
    """Most text taken of a language, in MiB."""
    min_count: int = Field(5, gt=0)
    """Occurrences that a new token must have in this text."""
    max_token_bytes: int = Field(48, gt=1)
    """Longest new token, in bytes."""
    pattern: Literal["base", "marks"] = "base"
    """`marks`: combining marks belong to words. Serves Indic scripts, Burmese, Tibetan and Khmer better, and changes the
    ids of old text that has marks."""
    selection: Literal["temperature", "parity"] = "temperature"
    """How the next token is chosen: by counts weighted with `temperature`, or for the language whose sentences aligned
    with English then cost most (only languages with such pairs in the corpus gain)."""
