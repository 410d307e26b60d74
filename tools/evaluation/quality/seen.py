"""Whether a metric's encoder was trained on a language in its script: elsewhere its scores mean nothing.

The lists are in `recipes/evaluation/quality.yaml`, each with its source.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError

__all__ = ["UNSEEN", "Encoder", "encoder_of", "listed_encoder", "place_of", "quality_table"]

_FILE = Path(__file__).parents[3] / "recipes" / "evaluation" / "quality.yaml"

UNSEEN = "_unseen"
"""Ending of a metric's name where its encoder has not seen the languages: another metric, so that no average of the first
holds it."""


@dataclass(frozen=True)
class Encoder:
    """An encoder: its name, and the (ISO 639-3, ISO 15924) that it has seen; `seen` is empty if they are unknown."""

    name: str
    seen: frozenset[tuple[str, str]]

    def has_seen(self, code: str) -> bool:
        """Whether it has seen a language in its script.

        Args:
            code: `xxx_Ssss`, in any spelling that a benchmark may use.
        """
        found = place_of(code)
        return found is not None and found in self.seen


@functools.cache
def quality_table() -> dict[str, Any]:
    """`metrics` and `encoders` of the file."""
    from emma.recipes.reading import read_yaml

    return dict(read_yaml(_FILE).values)


def encoder_of(model: str) -> Encoder:
    """The encoder of a pre-trained model's name, e.g. `facebook/xlm-roberta-xl`; one that is not listed has seen nothing
    that is known."""
    wanted = model.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    for name, entry in quality_table()["encoders"].items():
        if any(fnmatch.fnmatchcase(wanted, pattern) for pattern in entry["models"]):
            return Encoder(name, _seen(name))
    return Encoder(wanted, frozenset())


def listed_encoder(model: str, languages: Iterable[str], where: str) -> Encoder:
    """An encoder whose languages the user lists.

    Args:
        model: name of the pre-trained model.
        languages: codes.
        where: the list, for messages.

    Raises:
        UserError: a code names no language.
    """
    name = model.rstrip("/").rpartition("/")[2].lower()
    return Encoder(name, frozenset(_known(code, where) for code in languages))


@functools.cache
def _seen(name: str) -> frozenset[tuple[str, str]]:
    entry = quality_table()["encoders"][name]
    own = frozenset(_known(code, f"{_FILE}: {name}") for code in str(entry["languages"]).split())
    return own | (_seen(entry["beyond"]) if "beyond" in entry else frozenset())


def _known(code: str, where: str) -> tuple[str, str]:
    found = place_of(code)
    if found is None:
        raise UserError(f"{where}: `{code}` names no language and script; write it as xxx_Ssss")
    return found


@functools.cache
def place_of(code: str) -> tuple[str, str] | None:
    """ISO 639-3 and ISO 15924 of a code in any spelling, with the language's most common script where it names none; None
    if it is no language, or no script is known for it."""
    resolver = LanguageResolver()
    try:
        resolved = resolver.resolve(code)
    except UnknownLanguageError:
        return None
    script = resolved.script or next(iter(resolver.scripts(resolved.language)), None)
    return (resolved.language, _SAME.get(script, script)) if script else None


# Two codes of one way of writing.
_SAME = {"Japn": "Jpan", "Kore": "Hang", "Aran": "Arab"}
