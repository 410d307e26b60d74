"""Questions and answers as instruction data: the Debian FAQ in ten languages, perlfaq, and Python's FAQ."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

__all__ = ["read_debian_faq", "read_perlfaq", "read_python_faq"]

Question = tuple[str, str]
"""A question and its answer."""

_NUMBER = re.compile(r"^\s*\d+(\.\d+)*\.?\s*")


class _FaqReader(HTMLParser):
    """Sections of a DocBook page: `h2` or `h3` headings and the text under each."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[tuple[str, list[str]]] = []
        self._heading: list[str] | None = None
        self._block: list[str] | None = None
        self._pre = False
        self._table = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "h3"):
            self._heading = []
        elif tag in ("p", "pre", "dt"):
            self._close()
            self._block, self._pre = [], tag == "pre"
        elif tag == "table":
            self._table += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "h3") and self._heading is not None:
            self.sections.append((_NUMBER.sub("", " ".join("".join(self._heading).split())), []))
            self._heading = None
        elif tag in ("p", "pre", "dt", "dd", "li"):
            self._close()
        elif tag == "table":
            self._table -= 1

    def handle_data(self, data: str) -> None:
        if self._heading is not None:
            self._heading.append(data)
        elif self._block is not None and not self._table:
            self._block.append(data)

    def _close(self) -> None:
        if self._block is not None and self.sections:
            text = "".join(self._block)
            text = text.strip("\n") if self._pre else " ".join(text.split())
            if text.strip():
                self.sections[-1][1].append(text)
        self._block, self._pre = None, False


def read_debian_faq(folder: Path, pattern: str = "*.html") -> list[Question]:
    """Questions of the FAQ's pages in a folder whose headings end in a question mark (of any script)."""
    questions = []
    for path in sorted(folder.glob(pattern)):
        reader = _FaqReader()
        reader.feed(path.read_text("utf-8"))
        reader.close()
        questions += [
            (heading, "\n\n".join(blocks))
            for heading, blocks in reader.sections
            if heading.endswith(("?", "？", "؟")) and blocks
        ]
    return questions


def read_perlfaq(path: Path) -> list[Question]:
    """Questions (`=head2`) of a perlfaq page, with POD's inline markup taken out."""
    source = path.read_text("utf-8", errors="strict")
    questions = []
    for part in re.split(r"^=head2 ", source, flags=re.MULTILINE)[1:]:
        heading, _, rest = part.partition("\n\n")
        answer = re.split(r"^=head1 ", rest, maxsplit=1, flags=re.MULTILINE)[0]
        answer = re.sub(
            r"^=(over|back|item|encoding|cut|for|begin|end)[^\n]*\n?", "", answer, flags=re.MULTILINE
        )
        answer = re.sub(r"\n{3,}", "\n\n", _plain_pod(answer)).strip()
        if answer:
            questions.append((" ".join(_plain_pod(heading).split()), answer))
    return questions


def _plain_pod(text: str) -> str:
    text = re.sub(r"E<lt>", "<", re.sub(r"E<gt>", ">", text))
    text = re.sub(r"L<(?:[^|<>]*\|)?([^<>]*)>", r"\1", text)
    previous = None
    while previous != text:
        previous = text
        text = re.sub(r"\b[BCFISXZ]<<+ (.*?) >+>", r"\1", text, flags=re.DOTALL)
        text = re.sub(r"\b[BCFISXZ]<([^<>]*)>", r"\1", text)
    return text


def read_python_faq(path: Path) -> list[Question]:
    """Questions of a page of Python's FAQ (reStructuredText headings underlined with dashes)."""
    lines = path.read_text("utf-8").split("\n")
    starts = [
        index
        for index in range(len(lines) - 1)
        if lines[index].strip()
        and re.fullmatch(r"-{4,}", lines[index + 1].strip())
        and lines[index][0] not in " -"
    ]
    ends = {
        index
        for index in range(len(lines) - 1)
        if lines[index].strip() and re.fullmatch(r"={4,}", lines[index + 1].strip())
    }
    questions = []
    for start, end in itertools.pairwise([*starts, len(lines)]):
        stop = min([end, *(index for index in ends if start < index < end)])
        answer = "\n".join(
            line for line in lines[start + 2 : stop] if not line.startswith((".. _", ".. index"))
        )
        answer = re.sub(r":\w+(?::\w+)?:`[~!]?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", answer)
        answer = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_+", r"\1", answer)
        answer = re.sub(r"\n{3,}", "\n\n", answer).strip()
        if answer and lines[start].rstrip().endswith("?"):
            questions.append((lines[start].strip(), answer))
    return questions
