"""Statistics papers, from the LaTeX sources of R package vignettes (Debian packages `r-cran-*`)."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

__all__ = ["read_sections"]

_CHUNK = re.compile(r"^<<.*?^@[^\n]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?<!\\)%[^\n]*")
_SECTION = re.compile(r"\\section\*?\{")


def read_sections(path: Path) -> list[str]:
    """The paper's abstract and sections as LaTeX, without preamble, comments and R chunks; each begins with the
    paper's title. Sections under 500 characters are left out."""
    source = _CHUNK.sub("", path.read_text("utf-8", errors="strict"))
    source = _COMMENT.sub("", source)
    title = " ".join(_braced(source, "title").replace("\\\\", " ").split())
    abstract = _braced(source, "Abstract") or _braced(source, "abstract")
    body = source.partition("\\begin{document}")[2].partition("\\end{document}")[0]
    body = body.partition("\\bibliography{")[0].partition("\\begin{thebibliography}")[0]
    bounds = [*(match.start() for match in _SECTION.finditer(body)), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(bounds)]
    if abstract:
        pieces.insert(0, f"\\begin{{abstract}}\n{abstract.strip()}\n\\end{{abstract}}\n")
    cleaned = [re.sub(r"\n\s*\n+", "\n\n", piece).strip() for piece in pieces]
    return [f"\\title{{{title}}}\n\n{piece}\n" for piece in cleaned if len(piece) >= 500]


def _braced(source: str, command: str) -> str:
    r"""Argument of the first `\command{…}`, with nested braces; empty where there is none."""
    match = re.search(rf"\\{command}\{{", source)
    if not match:
        return ""
    depth, position = 1, match.end()
    while depth and position < len(source):
        depth += {"{": 1, "}": -1}.get(source[position], 0) if source[position - 1] != "\\" else 0
        position += 1
    return source[match.end() : position - 1]
