"""Chat templates of tokenizers."""

from __future__ import annotations

from typing import Any

__all__ = ["resolve_chat_template"]


def resolve_chat_template(
    tokenizer: Any, chat_template: str | None, tools: list[dict[str, Any]] | None, *, model_config: Any
) -> str | None:
    """The given template, or the tokenizer's own; None where it has none."""
    try:
        return tokenizer.get_chat_template(chat_template, tools=tools)
    except ValueError:
        return None
