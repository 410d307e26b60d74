"""A card as the Hub reads it: metadata between lines of dashes, then text from a template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import CardData

__all__ = ["render_markdown"]


def render_markdown(
    template: Path, metadata: CardData, filters: Mapping[str, Callable[..., str]], **values: Any
) -> str:
    """Content of README.md; a variable of the template without a value is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    text = environment.get_template(template.name).render(**values)
    return f"---\n{metadata.to_yaml()}\n---\n\n{text}"
