"""`manifest.json`: what a stage read, wrote and counted, and the versions it ran with."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, sha256_file, write_json

__all__ = ["MANIFEST_NAME", "FileRecord", "Manifest", "now", "package_versions"]

MANIFEST_NAME = "manifest.json"

_PACKAGES = (
    "emma-recipes",
    "numpy",
    "pyarrow",
    "tokenizers",
    "torch",
    "megatron-core",
    "transformers",
    "safetensors",
)


def now() -> str:
    """Current time, UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions(names: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed, from metadata (nothing is imported)."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class FileRecord:
    """One file: `path` relative to the manifest's folder (or absolute outside it), `bytes`, `checksum`
    ("sha256:…")."""

    path: str
    bytes: int
    checksum: str

    @classmethod
    def of(cls, path: Path, root: Path | None = None) -> FileRecord:
        name = str(path.relative_to(root)) if root is not None and path.is_relative_to(root) else str(path)
        return cls(name, path.stat().st_size, f"sha256:{sha256_file(path)}")

    @classmethod
    def of_folder(cls, folder: Path, known: Mapping[str, FileRecord]) -> list[FileRecord]:
        """Every file below `folder`, in order of their paths.

        Args:
            folder: what the paths are relative to.
            known: records of files by their path there; they are not read once more.
        """
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        names = ((str(path.relative_to(folder)), path) for path in paths)
        return [
            cls(name, known[name].bytes, known[name].checksum) if name in known else cls.of(path, folder)
            for name, path in names
        ]


@dataclass
class Manifest:
    """Manifest of a stage's output; its fields are the contract between stages.

    `counts` holds at least `in`, `kept` and `removed_by` (a mapping from rule to count) where a stage
    selects.
    """

    stage: str
    recipe_sha256: str
    inputs: list[FileRecord] = field(default_factory=list)
    outputs: list[FileRecord] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=package_versions)
    started: str = field(default_factory=now)
    finished: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Stamps `finished` and writes `folder/manifest.json` atomically (last, so that it marks
        completion)."""
        self.finished = self.finished or now()
        write_json(Path(folder) / MANIFEST_NAME, self)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads `folder/manifest.json`.

        Raises:
            UserError: it is missing (the stage did not finish), is not JSON, or lacks fields.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise UserError(
                f"{path}: missing, so the stage that writes {folder} has not finished; run it again"
            )
        value: Mapping[str, Any] = read_json(path)
        try:
            fields = dict(value)
            fields["inputs"] = [FileRecord(**record) for record in value["inputs"]]
            fields["outputs"] = [FileRecord(**record) for record in value["outputs"]]
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a manifest of this version ({error}); run the stage again"
            ) from None

    def check_outputs(self, folder: Path, *, contents: bool = False) -> list[str]:
        """Outputs that are missing, have another size or, with `contents`, another checksum."""
        faults = []
        for record in self.outputs:
            path = Path(folder) / record.path
            if not path.is_file():
                faults.append(f"{path}: missing")
            elif path.stat().st_size != record.bytes:
                faults.append(f"{path}: {path.stat().st_size} bytes, but the manifest says {record.bytes}")
            elif contents and f"sha256:{sha256_file(path)}" != record.checksum:
                faults.append(f"{path}: its SHA-256 differs from the manifest's: the content changed")
        return faults
