"""`SHA256SUMS`: the SHA-256 of every file in a folder but its signature, in the format of `sha256sum --check`."""

from __future__ import annotations

import re
from pathlib import Path

from emma.base.errors import UserError
from emma.base.files import sha256_file, write_text

__all__ = ["CHECKSUMS_NAME", "SIGNATURE_NAME", "checksum_faults", "listed_files", "write_checksums"]

CHECKSUMS_NAME = "SHA256SUMS"
SIGNATURE_NAME = "model.sig"
"""A release's signature, which is about the list too (`signature.py`)."""
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def listed_files(folder: Path) -> list[str]:
    """Names of a folder's files relative to it, except the list itself, its signature, and git's and the Hub
    client's files."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != CHECKSUMS_NAME
        and path != folder / SIGNATURE_NAME
        and not path.relative_to(folder).parts[0].startswith(".")
    )


def write_checksums(folder: Path, known: dict[str, str] | None = None) -> None:
    """Writes `SHA256SUMS`.

    Args:
        folder: the folder.
        known: checksums (hex) of files that need not be read again.
    """
    known = known or {}
    lines = [f"{known.get(name) or sha256_file(folder / name)}  {name}\n" for name in listed_files(folder)]
    write_text(folder / CHECKSUMS_NAME, "".join(lines))


def checksum_faults(folder: Path) -> list[str]:
    """Differences between a folder and its `SHA256SUMS`: changed, missing, and unlisted files.

    Raises:
        UserError: the list is missing, or one of its lines is malformed.
    """
    path = folder / CHECKSUMS_NAME
    if not path.is_file():
        raise UserError(
            f"{path}: missing; {folder} is not a release folder (`emma release model` writes one)"
        )
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}:{number}: not a checksum and a file name; write the release again")
        listed[match[2]] = match[1]
    there = set(listed_files(folder))
    faults = [
        f"{folder / name}: missing, but listed in {CHECKSUMS_NAME}" for name in sorted(set(listed) - there)
    ]
    faults += [f"{folder / name}: not listed in {CHECKSUMS_NAME}" for name in sorted(there - set(listed))]
    faults += [
        f"{folder / name}: its SHA-256 differs from {CHECKSUMS_NAME}; the file has changed"
        for name in sorted(there & set(listed))
        if sha256_file(folder / name) != listed[name]
    ]
    return faults
