"""What a base model's licence requires of a release, and whether a release complies."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import Field
from ruamel.yaml import YAML

from emma import recipes
from emma.base.errors import UserError
from emma.base.files import write_text
from emma.recipes.schema.section import Section

__all__ = [
    "License",
    "base_license_fault",
    "copy_licence_files",
    "fitting_name",
    "hub_identifier",
    "licence_faults",
    "licenses_of",
    "license_of",
    "text_sha256",
]

_ENDINGS = ("", ".md", ".txt")
_END = "end of terms and conditions"
# What may follow it: an appendix that is known, with a copyright line for the user to fill in.
_APPENDIX = re.compile(r"(?:(appendix .+ archives) )?copyright \w+(?: \w+){0,15}? (licensed under .+)")
_APPENDIX_KEY = "appendix"


class License(Section):
    """Rules of one licence; `licenses.yaml` explains the fields."""

    id: str
    name: str
    link: str | None = None
    notice: str | None = None
    built_with: str | None = None
    name_prefix: str | None = None
    permissive: bool = False
    copies: list[str] = Field(default_factory=list)
    rules: list[str] = Field(default_factory=list)


@cache
def _table() -> dict[str, License]:
    rows = YAML(typ="safe").load(Path(__file__).with_name("licenses.yaml").read_text(encoding="utf-8"))
    return {name: License.model_validate({"id": name, **row}) for name, row in rows.items()}


def license_of(identifier: str) -> License:
    """Rules of a licence by its Hub identifier; a licence without rules here is named by its identifier."""
    return _table().get(identifier, License(id=identifier, name=identifier))


def licenses_of(identifiers: Sequence[str]) -> list[License]:
    """Rules of several licences, all of which bind a release; those that ask for most come first."""
    found = [license_of(one) for one in dict.fromkeys(identifiers)]
    return sorted(found, key=lambda one: (one.permissive, -len(one.name_prefix or ""), not one.copies))


def hub_identifier(licenses: Sequence[License]) -> str:
    """The card's `license`: the only one, or the only one that is not permissive; else `other`."""
    binding = [one for one in licenses if not one.permissive] or list(licenses)
    return binding[0].id if len(binding) == 1 else "other"


def fitting_name(name: str, *licenses: License) -> str:
    """The name under which a model may be released: with the prefixes that its licences require."""
    for license_ in licenses:
        if license_.name_prefix is not None and not re.match(
            # “Llama 30” is no “Llama 3”; “Llama3” is a “Llama”.
            rf"{re.escape(_plain(license_.name_prefix))}(?![^\W\d_]|(?<=\d)\d)",
            _plain(name),
        ):
            name = f"{license_.name_prefix} {name}"
    return name


def _plain(name: str) -> str:
    return name.lower().replace("-", " ").replace("_", " ")


def _folder(license_: License, licenses: Sequence[License], release: Path) -> Path:
    """Where a licence's files are: at the top or, of several licences, in a folder each."""
    return release if len(licenses) == 1 else release / "licenses" / license_.id


def copy_licence_files(
    licenses: Sequence[License], sources: Mapping[str, Sequence[Path]], destination: Path
) -> list[Path]:
    """Copies the files that must accompany the release and writes NOTICE.

    Args:
        licenses: the rules.
        sources: by licence, folders to search, in this order: the export, the base model, ...
        destination: existing folder.

    Raises:
        UserError: a file is in none of the folders.
    """
    copied = []
    for license_ in licenses:
        folder = _folder(license_, licenses, destination)
        for name in license_.copies or ["LICENSE"]:
            found = _find(name, sources[license_.id])
            if found is None and license_.copies:
                places = ", ".join(str(folder) for folder in sources[license_.id])
                raise UserError(
                    f"the {license_.name} requires a copy of the base model's {name} file in the release, but it is not in "
                    f"{places}; give the base model's folder with --license-from"
                )
            if found is not None:
                folder.mkdir(parents=True, exist_ok=True)
                copied.append(Path(shutil.copyfile(found, folder / found.name)))
    if notices := [license_.notice for license_ in licenses if license_.notice]:
        write_text(destination / "NOTICE", "\n".join(notices) + "\n")
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
    before, end, _ = _words(text).partition(_END)
    return hashlib.sha256((before + end).encode()).hexdigest()


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _is_known(text: str, known: Sequence[str], appendices: Sequence[str]) -> bool:
    """Whether a text is a licence's, to its last word."""
    if text_sha256(text) not in known:
        return False
    rest = _words(text).partition(_END)[2].strip()
    found = _APPENDIX.fullmatch(rest)
    parts = [part for part in found.groups() if part] if found else []
    return not rest or (
        bool(parts) and all(hashlib.sha256(part.encode()).hexdigest() in appendices for part in parts)
    )


def _text_faults(license_: License, folder: Path) -> list[str]:
    """Licence files whose text is not the licence's, under whatever ending and in whatever case."""
    faults = []
    texts = _texts().get(license_.id, {})
    appendices = texts.get(_APPENDIX_KEY, [])
    files = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    for name, known in texts.items():
        for path in files:
            if name == _APPENDIX_KEY or not re.fullmatch(rf"{name}(\W.*)?", path.name, re.IGNORECASE):
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                text = ""
            if not _is_known(text, known, appendices):
                words = len(text.split())
                faults.append(
                    f"{path}: its text ({words:,} word{'s' if words != 1 else ''}) is not the {license_.name}'s; copy the "
                    "file from the base model's folder"
                )
    return faults


def base_license_fault(bases: Sequence[str], licenses: Sequence[License]) -> str | None:
    """A base model whose licence, as its recipe here has it, is not among those of a release.

    Args:
        bases: names of models on the Hub.
        licenses: those of the release.
    """
    known = _base_licenses()
    for base in bases:
        licence = known.get(base.lower())
        if licence is not None and licence not in {one.id for one in licenses}:
            return f"README.md: {base} is under the {license_of(licence).name}, which the card does not name"
    return None


@cache
def _base_licenses() -> dict[str, str]:
    """Licences of the base models that have recipes, by the models' names on the Hub in lower case."""
    found = {}
    for path in sorted(Path(recipes.__file__).parent.glob("models/*.yaml")):
        row = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        if row.get("huggingface") and row.get("license"):
            found[row["huggingface"].lower()] = row["license"]
    return found


def licence_faults(licenses: Sequence[License], folder: Path, model_name: str, card: str) -> list[str]:
    """The rules of a release's licences that it does not meet.

    Args:
        licenses: the rules.
        folder: the release.
        model_name: the name on its card.
        card: text of its card.
    """
    faults = []
    notice = folder / "NOTICE"
    noted = notice.read_text(encoding="utf-8") if notice.is_file() else ""
    for license_ in licenses:
        own = _folder(license_, licenses, folder)
        faults += [
            f"{own}: no {name} file, which the {license_.name} requires"
            for name in license_.copies
            if _find(name, [own]) is None
        ]
        faults += _text_faults(license_, own)
        if license_.notice and license_.notice not in noted:
            faults.append(f"{notice}: lacks the sentence “{license_.notice}”")
        if license_.built_with and license_.built_with not in card:
            faults.append(f"README.md: does not display “{license_.built_with}”")
        if fitting_name(model_name, license_) != model_name:
            faults.append(
                f"README.md: the model's name “{model_name}” does not begin with “{license_.name_prefix}”"
            )
    return faults
