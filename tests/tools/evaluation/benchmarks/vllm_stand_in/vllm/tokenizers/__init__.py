"""Tokenizers of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

__all__ = ["get_tokenizer"]


def get_tokenizer(
    tokenizer_name: str | Path,
    *args: Any,
    tokenizer_cls: type | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    tokenizer_mode: str = "auto",
    **kwargs: Any,
) -> Any:
    """The tokenizer in a folder."""
    return AutoTokenizer.from_pretrained(
        tokenizer_name, *args, trust_remote_code=trust_remote_code, revision=revision, **kwargs
    )
