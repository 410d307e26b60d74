"""Which units of a component are packed, and the engine that none of them may be packed with any more.

`.pack/refused.json` names an engine that gave a document wrong ids. It counts for the whole component: units that the
engine packed are no longer packed, whichever process or machine packed them.
"""

from __future__ import annotations

from pathlib import Path

from emma.base.files import read_json, write_json
from emma.tools.pack.engine import REFERENCE

__all__ = ["UNIT_FILE", "is_packed", "refusal_of", "refuse_engine", "refused", "unit_name"]

UNIT_FILE = "unit.json"
_FILE = "refused.json"


def unit_name(index: int) -> str:
    """Folder of a packed unit below the component's `.pack/`."""
    return f"unit-{index:06d}"


def refused(work: Path) -> dict[str, str]:
    """Reasons by engine, of the engines that are refused.

    Args:
        work: the component's `.pack` folder.
    """
    path = work / _FILE
    return dict(read_json(path)) if path.is_file() else {}


def refusal_of(work: Path, engine: str) -> str | None:
    """Why an engine is refused; None if it isn't."""
    return None if engine == REFERENCE else refused(work).get(engine)


def refuse_engine(work: Path, engine: str, reason: str) -> None:
    """Refuses an engine for a component; the first reason stays."""
    write_json(work / _FILE, {engine: reason, **refused(work)})


def is_packed(work: Path, index: int) -> bool:
    """Whether a unit is packed, by an engine that is not refused."""
    path = work / unit_name(index) / UNIT_FILE
    if not path.is_file():
        return False
    reasons = refused(work)
    return not reasons or read_json(path)["engine"] not in reasons
