"""Names of languages in sentence pairs."""

from __future__ import annotations

import functools
import re

from emma.base.errors import UserError
from emma.tools.languages.names import language_name

__all__ = ["pair_labels", "split_pair"]


@functools.cache
def pair_labels(source: str, target: str) -> tuple[str, str]:
    """English names of the two languages of a pair, e.g. `swh_Latn`, `eng_Latn` → `Swahili`, `English`.

    Names lose ISO 639-3's remarks in brackets; if both sides would have the same name, scripts are appended
    (`Serbian (Cyrl)`, `Serbian (Latn)`). Codes without a name in ISO 639-3 are kept.
    """
    names = [re.sub(r" \([^)]*\)$", "", language_name(code)) for code in (source, target)]
    if names[0] == names[1]:
        scripts = [code.partition("_")[2] for code in (source, target)]
        names = [
            f"{name} ({script})" if script else name for name, script in zip(names, scripts, strict=True)
        ]
    return names[0], names[1]


def split_pair(pair: str) -> tuple[str, str]:
    """`eng_Latn-fra_Latn` → (`eng_Latn`, `fra_Latn`).

    Raises:
        UserError: not two codes joined by one hyphen.
    """
    source, _, target = pair.partition("-")
    if not source or not target or "-" in target:
        raise UserError(f"{pair!r} is not a language pair; expected source-target, e.g. eng_Latn-fra_Latn")
    return source, target
