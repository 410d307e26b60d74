"""English names of languages, without the rest of what `iso639` loads: the package makes an object of each of its 8,000
languages, which takes half a second, where two columns of its tables are wanted."""

from __future__ import annotations

import csv
import functools
import importlib.util
from pathlib import Path

from emma.base.errors import UserError

__all__ = ["language_name"]

# ISO 639-3's own tables, as python-iso639 ships them; the codes that are in force overrule the withdrawn ones.
_TABLES = ("iso-639-3_Retirements.tab", "iso-639-3.tab")


def language_name(code: str) -> str:
    """English name of an ISO 639-3 or `xxx_Ssss` code's language; the code itself if unknown."""
    return _names().get(code.split("_")[0].strip(), code)


@functools.cache
def _names() -> dict[str, str]:
    """Reference name by ISO 639-3 code, withdrawn codes included."""
    spec = importlib.util.find_spec("iso639")
    if spec is None or spec.origin is None:
        raise UserError("python-iso639 is not installed; pip install python-iso639")
    names: dict[str, str] = {}
    for table in _TABLES:
        path = Path(spec.origin).parent / "_data" / table
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                rows = csv.reader(lines, delimiter="\t")
                columns = next(rows)
                id_, name = columns.index("Id"), columns.index("Ref_Name")
                names.update((row[id_], row[name]) for row in rows)
        except (OSError, ValueError, StopIteration) as error:
            raise UserError(
                f"{path}: not the table of languages that is expected here ({error}); install the python-iso639 that "
                "requirements.lock names"
            ) from None
    return names
