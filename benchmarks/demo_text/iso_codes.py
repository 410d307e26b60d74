"""Names of countries and currencies, from the message catalogues of the Debian package `iso-codes`."""

from __future__ import annotations

import gettext
from collections.abc import Iterator
from pathlib import Path

__all__ = ["read_catalogue", "read_messages"]

DOMAINS = ("iso_3166-1", "iso_4217")


def read_catalogue(path: Path) -> Iterator[tuple[str, str]]:
    """English messages of a compiled catalogue and their translations; those without one are left out."""
    with path.open("rb") as handle:
        catalogue = gettext.GNUTranslations(handle)
    # GNUTranslations has no public way to list its messages.
    for english, translated in catalogue._catalog.items():  # type: ignore[attr-defined]
        if isinstance(english, str) and english and translated:
            yield english, translated


def read_messages(package: Path, locale: str) -> list[tuple[str, str]]:
    """English messages and their translations, sorted by the English; messages left as they are are dropped."""
    pairs: dict[str, str] = {}
    for domain in DOMAINS:
        path = package / "usr/share/locale" / locale / "LC_MESSAGES" / f"{domain}.mo"
        if path.is_file():
            for english, translated in read_catalogue(path):
                if translated != english:
                    pairs[english] = " ".join(translated.split())
    return sorted(pairs.items())
