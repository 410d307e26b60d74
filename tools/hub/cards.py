"""A card as the Hub reads it: metadata between lines of dashes, then the text of a template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from emma.base.errors import UserError
from emma.tools.hub.kinds import Kind

if TYPE_CHECKING:
    from huggingface_hub import CardData

__all__ = [
    "hub_languages",
    "language_faults",
    "markdown_address",
    "markdown_text",
    "read_card",
    "render_markdown",
]

_LANGUAGE = re.compile(r"[a-z]{2,3}")


def markdown_text(text: object) -> str:
    """One line of Markdown that shows a text as it is: no markup, no HTML, no cell of a table, no heading or list."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    return re.sub(r"^(\d*)([#+=.)-])", r"\1\\\2", line)


def markdown_address(url: str | None) -> str:
    """An address for a Markdown link; empty for one that is not of the web."""
    return quote(url, safe=":/?#@!$&'*+,;=%~-._") if url and url.startswith(("https://", "http://")) else ""


def render_markdown(
    template: Path, metadata: CardData, filters: Mapping[str, Callable[..., str]], **values: Any
) -> str:
    """Content of README.md; a template variable without a value is an error.

    Text of recipes and data passes the filter `text`, addresses the filter `address`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": markdown_text, "address": markdown_address, **filters}
    text = environment.get_template(template.name).render(**values)
    return f"---\n{metadata.to_yaml()}\n---\n\n{text}"


def read_card(folder: Path, kind: Kind = "model") -> tuple[dict[str, Any], str]:
    """Metadata and text of a folder's README.md.

    Raises:
        UserError: there is none, or its metadata is not readable.
    """
    from huggingface_hub import DatasetCard, ModelCard
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = folder / "README.md"
    if not path.is_file():
        raise UserError(f"{path}: missing; a release needs a card")
    content = path.read_text(encoding="utf-8")
    metadata = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        # Parsed twice, since the second parser's own errors are not the Hub client's.
        YAML(typ="safe").load(metadata[1] if metadata else "")
        reader = ModelCard if kind == "model" else DatasetCard
        card = reader(content, ignore_metadata_errors=False)
    except (ValueError, TypeError, KeyError, YAMLError) as error:
        raise UserError(f"{path}: its metadata is invalid: {error}") from None
    return card.data.to_dict(), card.text


def language_faults(data: dict[str, Any]) -> list[str]:
    """Faults: languages in a card's metadata that are not ISO 639 codes."""
    codes = data.get("language") or []
    return [
        f"README.md: metadata `language` holds {code!r}, which is not an ISO 639 code"
        for code in ([codes] if isinstance(codes, str) else codes)
        if not isinstance(code, str) or not _LANGUAGE.fullmatch(code)
    ]


def hub_languages(codes: list[str]) -> list[str]:
    """Language codes as the Hub's metadata wants them: ISO 639-1 where there is one, else ISO 639-3, without script."""
    import iso639

    found = []
    for code in codes:
        part3 = code.partition("_")[0]
        try:
            found.append(iso639.Language.from_part3(part3).part1 or part3)
        except iso639.LanguageNotFoundError:
            continue  # a code that only one corpus uses; the Hub would refuse it
    return sorted(set(found))
