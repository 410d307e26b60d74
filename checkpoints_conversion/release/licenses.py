"""What a base model's licence requires of a release, and whether a release complies."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import Field
from ruamel.yaml import YAML

from emma.base.errors import UserError
from emma.base.files import write_text
from emma.recipes.schema.section import Section

__all__ = ["License", "copy_licence_files", "fitting_name", "license_of", "licence_faults", "text_sha256"]

_ENDINGS = ("", ".md", ".txt")
_END = "end of terms and conditions"


class License(Section):
    """Rules of one licence; `licenses.yaml` explains the fields."""

    id: str
    name: str
    link: str | None = None
    notice: str | None = None
    built_with: str | None = None
    name_prefix: str | None = None
    copies: list[str] = Field(default_factory=list)
    rules: list[str] = Field(default_factory=list)


@cache
def _table() -> dict[str, License]:
    rows = YAML(typ="safe").load(Path(__file__).with_name("licenses.yaml").read_text(encoding="utf-8"))
    return {name: License.model_validate({"id": name, **row}) for name, row in rows.items()}


def license_of(identifier: str) -> License:
    """Rules of a licence by its Hub identifier; a licence without rules here is named by its identifier."""
    return _table().get(identifier, License(id=identifier, name=identifier))


def fitting_name(name: str, license_: License) -> str:
    """The name under which a model may be released: with the licence's prefix if it requires one."""
    if license_.name_prefix is None or re.match(
        rf"{re.escape(_plain(license_.name_prefix))}(?![a-z])", _plain(name)
    ):
        return name
    return f"{license_.name_prefix} {name}"


def _plain(name: str) -> str:
    return name.lower().replace("-", " ").replace("_", " ")


def copy_licence_files(license_: License, sources: Sequence[Path], destination: Path) -> list[Path]:
    """Copies the files that must accompany the release and writes NOTICE.

    Args:
        license_: the rules.
        sources: folders to search, in this order: the export, the base model, ...
        destination: existing folder.

    Raises:
        UserError: a file is in none of the folders.
    """
    copied = []
    for name in license_.copies:
        found = _find(name, sources)
        if found is None:
            places = ", ".join(str(folder) for folder in sources)
            raise UserError(
                f"the {license_.name} requires a copy of the base model's {name} file in the release, but it is not in "
                f"{places}; give the base model's folder with --license-from"
            )
        copied.append(Path(shutil.copyfile(found, destination / found.name)))
    if not license_.copies and (found := _find("LICENSE", sources)):
        copied.append(Path(shutil.copyfile(found, destination / found.name)))
    if license_.notice:
        write_text(destination / "NOTICE", license_.notice + "\n")
        copied.append(destination / "NOTICE")
    return copied


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    candidates = (folder / f"{name}{ending}" for folder in folders for ending in _ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


@cache
def _texts() -> dict[str, dict[str, list[str]]]:
    path = Path(__file__).with_name("license_texts.yaml")
    values: dict[str, dict[str, list[str]]] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return values


def text_sha256(text: str) -> str:
    """SHA-256 over a licence's words; see license_texts.yaml."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    before, end, _ = words.partition(_END)
    return hashlib.sha256((before + end).encode()).hexdigest()


def _text_faults(license_: License, folder: Path) -> list[str]:
    """Licence files whose text is not the licence's."""
    faults = []
    for name, known in _texts().get(license_.id, {}).items():
        path = _find(name, [folder])
        if path is None:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            text = ""
        if text_sha256(text) not in known:
            words = len(text.split())
            faults.append(
                f"{path}: its text ({words:,} word{'s' if words != 1 else ''}) is not the {license_.name}'s; copy the file "
                "from the base model's folder"
            )
    return faults


def licence_faults(license_: License, folder: Path, model_name: str, card: str) -> list[str]:
    """The licence's rules that a release folder does not meet.

    Args:
        license_: the rules.
        folder: the release.
        model_name: the name on its card.
        card: text of its card.
    """
    faults = [
        f"{folder}: no {name} file, which the {license_.name} requires"
        for name in license_.copies
        if _find(name, [folder]) is None
    ]
    faults += _text_faults(license_, folder)
    notice = folder / "NOTICE"
    if license_.notice and (
        not notice.is_file() or license_.notice not in notice.read_text(encoding="utf-8")
    ):
        faults.append(f"{notice}: lacks the sentence “{license_.notice}”")
    if license_.built_with and license_.built_with not in card:
        faults.append(f"README.md: does not display “{license_.built_with}”")
    if fitting_name(model_name, license_) != model_name:
        faults.append(
            f"README.md: the model's name “{model_name}” does not begin with “{license_.name_prefix}”"
        )
    return faults
