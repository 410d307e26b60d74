"""Which files of a dataset repository hold a configuration's split."""

from __future__ import annotations

import bisect
import fnmatch
import functools
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from typing import Any

__all__ = ["ENDINGS", "Listing", "configured_files", "find_files"]

ENDINGS = (".parquet", ".jsonl", ".json", ".tsv", ".csv")
"""Endings of files that rows are read from."""

# Layouts of dataset repositories, the usual ones first; every one is tried with each ending. The last ones hold a
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
    """Paths in a folder, sorted, that patterns are matched with quickly however many there are."""

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
        """Paths that fit a pattern of `fnmatch`; `*` spans folders too."""
        literal = next((n for n, letter in enumerate(pattern) if letter in "*?["), len(pattern))
        if literal == len(pattern):
            return [pattern] if pattern in self else []
        begin = bisect.bisect_left(self.names, pattern[:literal])
        end = bisect.bisect_right(self.names, pattern[:literal] + "\U0010ffff")
        return [name for name in self.names[begin:end] if fnmatch.fnmatchcase(name, pattern)]


def find_files(names: Listing, config: str | None, split: str) -> list[str]:
    """Files of `config` (None: of all) and `split` among a repository's paths, by the first layout that fits; sorted."""
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
    """Files that the front matter of a dataset's README gives for a configuration and split; None if it gives none.

    Args:
        readme: text of README.md.
        names: paths in the repository, for patterns.
        config: configuration, None for the only (or default) one.
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
        return {}  # front matter is for the hub's page; without it the usual layouts are tried
    return values if isinstance(values, dict) else {}
