"""Which files of a dataset repository hold a configuration's split."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

__all__ = ["ENDINGS", "configured_files", "find_files"]

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


def find_files(names: Sequence[str], config: str | None, split: str) -> list[str]:
    """Files of `config` (None: of all) and `split` among a repository's paths, by the first layout that fits; sorted."""
    for pattern in _patterns(config, split):
        if found := sorted(name for name in names if fnmatch.fnmatchcase(name, pattern)):
            return found
    return []


def _patterns(config: str | None, split: str) -> Iterator[str]:
    for layout in _LAYOUTS if config is not None else _WHOLE:
        for alias in _ALIASES.get(split, (split,)) if "{split}" in layout else (split,):
            for ending in ENDINGS:
                yield _escape(layout, config or "", alias) + ending


def _escape(layout: str, config: str, split: str) -> str:
    return layout.format(config=config.replace("[", "[[]"), split=split)


def configured_files(readme: str, names: Sequence[str], config: str | None, split: str) -> list[str] | None:
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
            found = sorted(
                {name for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
            )
            if found:
                return found
    return None


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
