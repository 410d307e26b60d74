"""Finds the files of a source, and what their names say (language, sides of a pair)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.base.manifest import FileRecord
from emma.base.remote import is_remote, remote_files, remote_identity
from emma.recipes.compose import ROOT as RECIPES
from emma.recipes.schema.corpus import Corpus, Source

__all__ = ["SourceFile", "pattern_of", "source_files"]

_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\{\w+\}")
_LANGUAGE = r"[A-Za-z0-9_@+#.]+?(?:-[A-Za-z0-9]+)*?"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source (two for Moses pairs).

    Attributes:
        source: name of the source in the recipe.
        order: position of the source in the recipe; lower means better provenance.
        path: the file; for Moses pairs, the source side.
        target: for Moses pairs, the target side.
        name: path below the fixed part of the pattern, used in document ids.
        captured: what the pattern's `{names}` matched.
    """

    source: str
    order: int
    path: str
    target: str | None
    name: str
    captured: dict[str, str]

    def stamp(self) -> list[Any]:
        """Identifies this version of the file(s) without reading them: path, size, modification time (on
        an object store, what it says of the version)."""
        stamps: list[Any] = []
        for path in (self.path, self.target):
            if path is not None and is_remote(path):
                stamps += [path, *remote_identity(path)]
            elif path is not None:
                status = Path(path).stat()
                stamps += [path, status.st_size, status.st_mtime_ns]
        return stamps

    def records(self) -> list[FileRecord]:
        """The file(s) for the manifest. What lies on an object store is not read again: its checksum is what the store says
        of the version."""
        found = []
        for path in (path for path in (self.path, self.target) if path is not None):
            if is_remote(path):
                found.append(FileRecord(path, *remote_identity(path)))
            else:
                found.append(FileRecord(path, Path(path).stat().st_size, f"sha256:{sha256_file(path)}"))
        return found


def source_files(corpus: Corpus) -> list[SourceFile]:
    """All files of all sources: sources in the recipe's order, each source's files by name.

    Raises:
        UserError: there are no sources, a pattern matches nothing, a Moses file lacks its other side, or a
            file extension names no known format.
    """
    if not corpus.sources:
        raise UserError("data.corpus.sources: empty, so there is nothing to build; name at least one source")
    return [
        file
        for order, (name, source) in enumerate(corpus.sources.items())
        for file in _of(name, order, source)
    ]


def _of(name: str, order: int, source: Source) -> list[SourceFile]:
    base, expression = pattern_of(source.path)
    root = _shipped(base)
    base = root + base
    files = []
    for path in _walk(base):
        match = expression.fullmatch(path.removeprefix(root))
        if match is None:
            continue
        try:
            source.format_of(path)
        except ValueError as error:
            raise UserError(f"data.corpus.sources.{name}: {error}") from None
        captured = match.groupdict()
        target = source.target_path.format(**captured) if source.target_path else None
        if target is not None:
            target = _shipped(target) + target
        there = target is None or (remote_files(target) if is_remote(target) else Path(target).is_file())
        if not there:
            raise UserError(
                f"data.corpus.sources.{name}: {path} has no other side: {target} does not exist; "
                "add the file or fix target_path"
            )
        if is_remote(path):
            relative = path.removeprefix(f"{base}/") if path != base else path.rpartition("/")[2]
        else:
            relative = os.path.relpath(path, base) if base and path != base else Path(path).name
        files.append(SourceFile(name, order, path, target, relative, captured))
    if not files:
        raise UserError(
            f"data.corpus.sources.{name}.path: no file matches `{source.path}` (working folder {Path.cwd()}); "
            "fix the pattern or fetch the files"
        )
    return files


def pattern_of(path: str) -> tuple[str, re.Pattern[str]]:
    """The fixed folder (or file), and the expression that full paths must match."""
    first = _TOKEN.search(path)
    base = path if first is None else path[: path.rfind("/", 0, first.start()) + 1]
    parts, end, seen = [], 0, set()
    for token in _TOKEN.finditer(path):
        parts.append(re.escape(path[end : token.start()]))
        end = token.end()
        text = token[0]
        if text == "**/":
            parts.append("(?:.*/)?")
        elif text == "**":
            parts.append(".*")
        elif text == "*":
            parts.append("[^/]*")
        elif text == "?":
            parts.append("[^/]")
        elif text[1:-1] in seen:
            parts.append(f"(?P={text[1:-1]})")
        else:
            seen.add(text[1:-1])
            inner = _LANGUAGE if text[1:-1] in ("language", "src", "tgt") else "[^/]+?"
            parts.append(f"(?P<{text[1:-1]}>{inner})")
    parts.append(re.escape(path[end:]))
    return base.rstrip("/") if base != "/" else base, re.compile("".join(parts), re.DOTALL)


def _shipped(path: str) -> str:
    """The package's folder if `path` starts with `recipes/` and does not exist in the working folder, else nothing.

    The text of the demo ships with its recipes, which name it as it stands in the repository.
    """
    return f"{RECIPES.parent}/" if path.startswith("recipes/") and not Path(path).exists() else ""


def _walk(base: str) -> list[str]:
    """All files below `base` (or `base` itself), sorted by name, without hidden ones."""
    if is_remote(base):
        return remote_files(base)
    if base and Path(base).is_file():
        return [base]
    found = []
    for folder, folders, names in os.walk(base or ".", followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        prefix = "" if not base and folder == "." else os.path.relpath(folder, ".") if not base else folder
        found += [str(Path(prefix, name)) for name in names if not name.startswith(".")]
    return sorted(found)
