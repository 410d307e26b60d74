"""Finds the files of a dataset repository that hold a configuration's split."""

from __future__ import annotations

import bisect
import fnmatch
import functools
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from typing import Any

__all__ = ["ENDINGS", "Listing", "configurations", "configured_files", "find_files"]

ENDINGS = (".parquet", ".jsonl", ".json", ".tsv", ".csv")
"""Extensions of files that rows can be read from."""

# Layouts of dataset repositories, most common first, each tried with every extension. The last two hold a
# single split.
_LAYOUTS = (
    "{config}/{split}",
    "{config}/{split}-*",
    "{config}/{split}/*",
    "{config}/partial-{split}/*",
    "data/{config}/{split}",
    "data/{config}/{split}-*",
    "data/{config}/{split}/*",
    "{config}_{split}",
    "data/{config}_{split}",
    "{config}/{config}_{split}",
    "{split}/{config}",
    "data/{split}/{config}",
    "data/{config}",
    "{config}",
)
_WHOLE = (
    "{split}",
    "{split}-*",
    "{split}/*",
    "data/{split}",
    "data/{split}-*",
    "data/{split}/*",
    "default/{split}/*",
    "*",
    "data/*",
)

# Other names of a split.
_ALIASES = {"validation": ("validation", "dev"), "dev": ("dev", "validation")}


class Listing:
    """Sorted paths in a folder, with pattern matching that stays fast for many paths."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        self._known = frozenset(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def match(self, pattern: str) -> list[str]:
        """Paths that match an `fnmatch` pattern, in which `*` also matches slashes."""
        literal = next((n for n, letter in enumerate(pattern) if letter in "*?["), len(pattern))
        if literal == len(pattern):
            return [pattern] if pattern in self else []
        begin = bisect.bisect_left(self.names, pattern[:literal])
        end = bisect.bisect_right(self.names, pattern[:literal] + "\U0010ffff")
        return [name for name in self.names[begin:end] if fnmatch.fnmatchcase(name, pattern)]


def find_files(names: Listing, config: str | None, split: str) -> list[str]:
    """Sorted files of `config` (None: all) and `split` in a repository, by the first layout that matches."""
    for pattern in _patterns(config, split):
        if found := names.match(pattern):
            return found
    return []


def _patterns(config: str | None, split: str) -> Iterator[str]:
    for layout in _LAYOUTS if config is not None else _WHOLE:
        for alias in _ALIASES.get(split, (split,)) if "{split}" in layout else (split,):
            for ending in ENDINGS:
                yield _escape(layout, config or "", alias) + ending


def _escape(layout: str, config: str, split: str) -> str:
    return layout.format(config=config.replace("[", "[[]"), split=split)


def configured_files(readme: str, names: Listing, config: str | None, split: str) -> list[str] | None:
    """Files that a dataset's README lists for a configuration and split in its front matter; None if none.

    Args:
        readme: text of README.md.
        names: paths in the repository, for matching patterns.
        config: name of the configuration; None for the only (or default) one.
        split: name of the split.
    """
    for entry in _front_matter(readme).get("configs") or []:
        if config is not None and str(entry.get("config_name")) != config:
            continue
        files = entry.get("data_files")
        for part in files if isinstance(files, list) else [files]:
            if isinstance(part, Mapping):
                wanted, paths = part.get("split", "train"), part.get("path")
            else:
                wanted, paths = "train", part
            if wanted not in _ALIASES.get(split, (split,)) or paths is None:
                continue
            patterns = [paths] if isinstance(paths, str) else list(paths)
            found = sorted({name for pattern in patterns for name in names.match(pattern)})
            if found:
                return found
    return None


def configurations(readme: str) -> list[str]:
    """Names of the configurations that a dataset's README declares in its front matter."""
    return [str(entry.get("config_name", "default")) for entry in _front_matter(readme).get("configs") or []]


@functools.lru_cache(maxsize=32)
def _front_matter(readme: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not readme.startswith("---"):
        return {}
    text = readme.removeprefix("---").split("\n---", 1)[0]
    try:
        values = YAML(typ="safe", pure=True).load(StringIO(text))
    except YAMLError:
        return {}  # front matter is for the hub's page; without it, fall back to the usual layouts
    return values if isinstance(values, dict) else {}
