"""The project's Markdown, read as far as its tests need: fenced blocks, headings, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]

# In the order in which a newcomer reads them; a page finds in the working folder what earlier ones left there.
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "command_line",
            "adapt",
            "recipes",
            "plan",
            "corpus",
            "pack",
            "mix",
            "optimise",
            "train",
            "convert",
            "merging",
            "add_a_base_model",
            "tokenizer",
            "evaluate",
            "outputs",
            "verdicts",
            "report",
            "release",
            "experiment",
        )
    ),
    *(
        "docs/slurm.md",
        "docs/guard.md",
        "docs/launch_protocol.md",
        "docs/clusters.md",
        "docs/architecture.md",
        "docs/where.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
    ),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "benchmarks").glob("*.md")),
]

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>\S*)\s*$")
_MARK = re.compile(r"^ *<!-- (?P<key>run|needs|tested by)(?:: (?P<value>[^>]+))? -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path below the repository.
        line: number of the opening fence, from 1.
        language: the fence's language; empty if it names none.
        mark: `run`, `needs` or `tested by` in the comment above the fence; None without a comment.
        value: what the comment says after the colon.
        text: the lines between the fences.
    """

    page: str
    line: int
    language: str
    mark: str | None
    value: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str | None = None) -> Iterator[Block]:
    """Fenced blocks of a page, in order. `text` replaces the page's own."""
    lines = (text if text is not None else (ROOT / page).read_text(encoding="utf-8")).splitlines()
    number = 0
    while number < len(lines):
        if not (fence := _FENCE.match(lines[number])):
            number += 1
            continue
        start, indent = number, len(fence["indent"])
        closing = fence["indent"] + fence["ticks"]
        number = next(n for n in range(start + 1, len(lines)) if lines[n].rstrip() == closing)
        mark = _MARK.match(lines[start - 1]) if start else None
        body = "".join(line[indent:] + "\n" for line in lines[start + 1 : number])
        yield Block(page, start + 1, fence["language"], mark and mark["key"], mark and mark["value"], body)
        number += 1


def prose(page: str) -> str:
    """The page without its fenced blocks, line by line at the same numbers."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for block in blocks(page):
        for number in range(block.line - 1, block.line + 1 + block.text.count("\n")):
            lines[number] = ""
    return "\n".join(lines)


def anchors(page: str) -> set[str]:
    """Anchors of the page's headings, as GitHub and the documentation's site spell them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-")
        found.add(slug)
    return found


def links(page: str) -> list[str]:
    """Targets of the page's links and images."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r"<img[^>]* src=\"([^\"]+)\"", text)
    return [unquote(target) for target in targets]
