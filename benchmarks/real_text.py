"""Real text for benchmarks, as jsonl: help, manuals and manual pages in some 45 languages from Debian packages.

    python -m benchmarks.real_text FOLDER [--megabytes 300]

Needs `apt-get` and the distribution's package registry, but no root: it installs nothing and keeps its package lists
below FOLDER.
"""

from __future__ import annotations

import argparse
import gzip
import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson

from emma.base.files import atomic_write

__all__ = ["documents", "fetch", "own_lists", "write_jsonl"]

_PACKAGES = (
    r"^(libreoffice-help-[a-z][a-z](-[a-z]+)?|manpages-[a-z][a-z](-br|-tw)?(-dev)?|gnome-user-docs"
    r"|debian-handbook|installation-guide-amd64)$"
)
_MANUALS = ("usr/share/doc/debian-handbook/html", "usr/share/doc/installation-guide-amd64")


def fetch(folder: Path) -> Path:
    """Downloads and unpacks the packages below `folder`; returns the folder of their files."""
    unpacked = folder / "unpacked"
    if unpacked.is_dir():
        return unpacked
    archives = folder / "packages"
    archives.mkdir(parents=True, exist_ok=True)
    options = own_lists((folder / "apt").resolve())
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    found = subprocess.run(["apt-cache", *options, "pkgnames"], check=True, capture_output=True, text=True)
    names = sorted(name for name in found.stdout.split() if re.match(_PACKAGES, name))
    subprocess.run(["apt-get", *options, "-qq", "download", *names], cwd=archives, check=True)
    temporary = folder / "unpacked.partial"
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(temporary)], check=True)
    temporary.rename(unpacked)
    return unpacked


def own_lists(folder: Path, languages: str = "none") -> list[str]:
    """Options that make apt keep its lists below `folder`: only root may fetch the system's, if it has any."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": languages,
        "APT::Sandbox::User": "",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _page_text(content: str) -> str:
    """Text of a page, one block per line."""
    content = re.sub(r"<(script|style|head|nav)\b.*?</\1>", " ", content, flags=re.S | re.I)
    content = re.sub(r"</?(p|div|li|tr|h[1-6]|br|title|item)\b[^>]*>", "\n", content, flags=re.I)
    text = html.unescape(re.sub(r"<[^>]*>", "", content))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _manual_text(content: str) -> str:
    lines = (
        re.sub(r"\\f.|\\[&|]", "", line).replace("\\-", "-")
        for line in content.splitlines()
        if not line.startswith(('.\\"', "'\\\""))
    )
    return "\n".join(re.sub(r"^\.[A-Za-z]{1,2} ?", "", line) for line in lines)


def documents(unpacked: Path) -> Iterator[tuple[str, str, str]]:
    """Language, id and text of every help page and manual page, sorted by file name."""
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
    for manual in (unpacked / name for name in _MANUALS):
        for path in sorted(manual.rglob("*.html")):
            language = path.relative_to(manual).parts[0]
            yield language, str(path.relative_to(unpacked)), _page_text(path.read_text("utf-8"))
    pages = unpacked / "usr/share/help"
    for path in sorted(pages.rglob("*.page")):
        yield (
            path.relative_to(pages).parts[0],
            str(path.relative_to(unpacked)),
            _page_text(path.read_text("utf-8")),
        )


def write_jsonl(unpacked: Path, target: Path, megabytes: int) -> int:
    """Writes documents, sixteen of each language in turn, until `megabytes` MB of text are written.

    Returns:
        Number of languages; variants (`pt`, `pt-BR`) count once.

    Raises:
        ValueError: the packages hold less text.
    """
    by_language: dict[str, list[tuple[str, str]]] = {}
    for language, id_, text in documents(unpacked):
        if text:
            by_language.setdefault(language, []).append((id_, text))
    left, written = sorted(by_language), 0
    with atomic_write(target) as handle:
        turn = 0
        while left and written < megabytes * 1_000_000:
            for language in left:
                for id_, text in by_language[language][turn * 16 :][:16]:
                    record = {"id": id_, "text": text, "language": language, "source": "debian"}
                    handle.write(orjson.dumps(record) + b"\n")
                    written += len(text.encode())
            turn += 1
            left = [language for language in left if turn * 16 < len(by_language[language])]
        if written < megabytes * 1_000_000:
            raise ValueError(
                f"the packages hold {written / 1e6:.0f} MB of text, but {megabytes} MB were asked for"
            )
    return len({re.split("[-_@]", language)[0] for language in by_language})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    options = parser.parse_args()
    target = options.folder / f"text-{options.megabytes}.jsonl"
    languages = write_jsonl(fetch(options.folder), target, options.megabytes)
    print(f"{target}: {target.stat().st_size:,} bytes, {languages} languages")


if __name__ == "__main__":
    main()
