"""Real text in some 45 languages from Debian packages, as jsonl, for benchmarks: help pages and manual pages.

    python -m benchmarks.real_text FOLDER [--megabytes 300]

needs `apt-get` with package lists; it installs nothing.
"""

from __future__ import annotations

import argparse
import gzip
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import orjson

from recipes.files import atomic_write

__all__ = ["fetch", "write_jsonl"]

_PACKAGES = r"^(libreoffice-help-[a-z][a-z](-[a-z]+)?|manpages-[a-z][a-z](-br|-tw)?(-dev)?|gnome-user-docs)$"
_DROPPED = {"script", "style", "head", "nav"}


def fetch(folder: Path) -> Path:
    """Downloads and unpacks the packages below `folder` and returns the folder with their files."""
    unpacked = folder / "unpacked"
    if unpacked.is_dir():
        return unpacked
    archives = folder / "packages"
    archives.mkdir(parents=True, exist_ok=True)
    found = subprocess.run(
        ["apt-cache", "pkgnames"], check=True, capture_output=True, text=True
    ).stdout.split()
    names = sorted(name for name in found if re.match(_PACKAGES, name))
    subprocess.run(["apt-get", "download", "-qq", *names], cwd=archives, check=True)
    temporary = folder / "unpacked.partial"
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(temporary)], check=True)
    temporary.rename(unpacked)
    return unpacked


class _Text(HTMLParser):
    """Text of a page, a line a block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.dropped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.dropped += tag in _DROPPED
        if tag in ("p", "div", "li", "tr", "h1", "h2", "h3", "h4", "br"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.dropped -= tag in _DROPPED and self.dropped > 0

    def handle_data(self, data: str) -> None:
        if not self.dropped:
            self.parts.append(data)


def _page_text(content: str) -> str:
    parser = _Text()
    parser.feed(content)
    lines = (" ".join(line.split()) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)


def _manual_text(content: str) -> str:
    lines = (
        re.sub(r"\\f.|\\[&|]", "", line).replace("\\-", "-")
        for line in content.splitlines()
        if not line.startswith(('.\\"', "'\\\""))
    )
    return "\n".join(re.sub(r"^\.[A-Za-z]{1,2} ?", "", line) for line in lines)


def _documents(unpacked: Path) -> Iterator[tuple[str, str, str]]:
    """(language, id, text) of every page and manual page, sorted by file name."""
    help_folder = unpacked / "usr/share/libreoffice/help"
    for path in sorted(help_folder.rglob("*.html")):
        language = path.relative_to(help_folder).parts[0]
        yield (
            language,
            str(path.relative_to(unpacked)),
            _page_text(path.read_text(encoding="utf-8", errors="strict")),
        )
    man_folder = unpacked / "usr/share/man"
    for path in sorted(man_folder.rglob("*.gz")):
        language = path.relative_to(man_folder).parts[0]
        if not path.is_symlink() and not language.startswith("man"):
            yield (
                language,
                str(path.relative_to(unpacked)),
                _manual_text(gzip.decompress(path.read_bytes()).decode()),
            )
    pages = unpacked / "usr/share/help"
    for path in sorted(pages.rglob("*.page")):
        yield (
            path.relative_to(pages).parts[0],
            str(path.relative_to(unpacked)),
            _page_text(path.read_text("utf-8")),
        )


def write_jsonl(unpacked: Path, target: Path, megabytes: int) -> None:
    """Writes documents round the languages, as evenly as their sizes allow, until `megabytes` MB of text are reached;
    a corpus that is smaller is written again under other ids (with a mark in the text, so that no document repeats)."""
    by_language: dict[str, list[tuple[str, str]]] = {}
    for language, id_, text in _documents(unpacked):
        if text:
            by_language.setdefault(language, []).append((id_, text))
    with atomic_write(target) as handle:
        written, turn = 0, 0
        while written < megabytes * 1_000_000:
            round_ = 0
            for language, documents in sorted(by_language.items()):
                part = documents[turn * 16 % len(documents) :][:16]
                if turn * 16 >= len(documents):
                    continue
                round_ += 1
                for id_, text in part:
                    line = orjson.dumps({"id": id_, "text": text, "language": language, "source": "debian"})
                    handle.write(line + b"\n")
                    written += len(text.encode())
            turn += 1
            if not round_:
                break


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    options = parser.parse_args()
    target = options.folder / f"text-{options.megabytes}.jsonl"
    write_jsonl(fetch(options.folder), target, options.megabytes)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
