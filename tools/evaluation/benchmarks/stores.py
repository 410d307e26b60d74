"""Where the benchmarks' files are: a mirror folder, or the hub through its cache."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import Source
from emma.tools.evaluation.benchmarks.layout import Listing
from emma.tools.hub.asking import answered
from emma.tools.hub.download import Listing as DataSet
from emma.tools.hub.download import list_dataset

_README = "README.md"

__all__ = ["HubStore", "Mirror", "Store", "open_store"]


class Store(Protocol):
    """Files of sources, by their paths within the source's folder or repository."""

    def names(self, source: Source) -> Listing:
        """Paths of all files of a source; empty if there are none."""

    def readme(self, source: Source) -> str:
        """Text of a source's README.md; empty if there is none."""

    def path(self, source: Source, name: str) -> Path:
        """Local path of a file, downloaded if necessary."""

    def extra(self, name: str) -> Path | None:
        """A file that belongs to no source (spBLEU's model); None if it does not exist."""

    def describe(self, source: Source) -> str:
        """Where a source is searched for, in words for messages."""


class Mirror:
    """A folder with one subfolder per source: `<organisation>/<repository>`, or the source's `folder`.

    Args:
        root: the folder, filled by `emma evaluate fetch` or by any other means with the same layout.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            raise UserError(
                f"{root}: no such folder; fill one with `emma evaluate fetch {root}` where there is a network"
            )
        self._names: dict[str, Listing] = {}
        self._readmes: dict[str, str] = {}

    def names(self, source: Source) -> Listing:
        if source.root not in self._names:
            folder = self.root / source.root
            paths = folder.rglob("*") if folder.is_dir() else ()
            self._names[source.root] = Listing(
                str(path.relative_to(folder))
                for path in paths
                if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            )
        return self._names[source.root]

    def readme(self, source: Source) -> str:
        if source.root not in self._readmes:
            path = self.path(source, _README)
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            self._readmes[source.root] = text
        return self._readmes[source.root]

    def path(self, source: Source, name: str) -> Path:
        return self.root / source.root / name

    def extra(self, name: str) -> Path | None:
        path = self.root / name
        return path if path.is_file() else None

    def describe(self, source: Source) -> str:
        return str(self.root / source.root)


class HubStore:
    """The Hugging Face hub, through huggingface_hub's own cache; it lacks sources without a repository."""

    def names(self, source: Source) -> Listing:
        if not source.repository:
            return Listing(())
        return Listing(file.path for file in self.listed(source).files)

    def listed(self, source: Source) -> DataSet:
        """A source's repository at its revision, asked once.

        Raises:
            UserError: the hub refuses, or does not answer.
        """
        return _listed(source.repository or "", source.revision)

    def readme(self, source: Source) -> str:
        if _README not in self.names(source):
            return ""
        return self.path(source, _README).read_text(encoding="utf-8", errors="replace")

    def path(self, source: Source, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        repository = source.repository or ""
        where: dict[str, Any] = {"repo_type": "dataset", "revision": source.revision}
        return Path(answered(repository, lambda: hf_hub_download(repository, name, **where)))

    def extra(self, name: str) -> Path | None:
        return None

    def describe(self, source: Source) -> str:
        return (
            f"huggingface.co/datasets/{source.repository}"
            if source.repository
            else "a mirror folder (--mirror)"
        )


@functools.cache
def _listed(repository: str, revision: str) -> DataSet:
    return list_dataset(repository, revision)


def open_store(mirror: Path | None) -> Store:
    """The mirror if one is given, else the hub."""
    return Mirror(mirror) if mirror is not None else HubStore()
