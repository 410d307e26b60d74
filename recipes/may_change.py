"""The table of what may change between launches of one run (`may_change.yaml`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

__all__ = ["changed_keys", "may_change"]

_ABSENT = "not set"


@cache
def _table() -> dict[str, dict[str, str]]:
    path = Path(__file__).with_suffix(".yaml")
    table: dict[str, dict[str, str]] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return table


def may_change(key: str) -> str | None:
    """Why a key of a recipe may change between launches, such as `logging.interval` or
    `megatron_args.log-throughput`; None if it decides which weights come out."""
    section, _, name = key.partition(".")
    if section == "megatron_args":
        found = (reason for pattern, reason in _table()[section].items() if fnmatchcase(name, pattern))
    else:
        found = (r for known, r in _table()["recipe"].items() if key == known or key.startswith(f"{known}."))
    return next(found, None)


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The keys in which two recipes (as mappings) differ, each with its old and new value in words."""
    old, new = dict(_flatten(before)), dict(_flatten(after))
    return {
        key: (_words(old, key), _words(new, key))
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    }


def _words(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else _ABSENT


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a mapping without keys has none, so that filling it changes those alone."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
