"""Brings the sources of a data recipe from the Hub into the layout that the recipe reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emma.base.errors import UserError
from emma.base.progress import progress
from emma.base.writers import sole_writer
from emma.recipes.schema.corpus import Corpus, Source
from emma.tools.corpus.source_files import pattern_of
from emma.tools.hub.download import HubFile, Listing, check_space, download, list_dataset, missing

__all__ = ["Fetch", "FetchPlan", "fetch_sources", "plan_fetch"]

_ADDRESS = re.compile(
    r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+?)(?:/tree/([^/]+)(?:/(.+?))?)?/?(?:[?#].*)?"
)


@dataclass(frozen=True)
class Fetch:
    """One source: the data set, the folder that its files go to, and the files by their names there."""

    source: str
    listing: Listing
    folder: Path
    files: list[tuple[str, HubFile]]

    @property
    def marks(self) -> Path:
        """Folder of what belongs to fetching: partial files, what is finished, the manifest."""
        return self.folder / ".fetched" / self.source

    def missing(self) -> list[tuple[str, HubFile]]:
        """Files that are still to be fetched."""
        return missing(self.folder, self.marks, self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for _, file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        open_files = self.missing()
        return {
            "source": self.source,
            "repository": self.listing.repository,
            "commit": self.listing.commit,
            "gated": self.listing.gated,
            "folder": str(self.folder),
            "files": len(self.files),
            "bytes": self.bytes,
            "missing_files": len(open_files),
            "missing_bytes": sum(file.bytes for _, file in open_files),
        }


@dataclass
class FetchPlan:
    """What is fetched; `others` are sources that are not on the Hub, and `faults` what cannot be fetched, in words."""

    fetches: list[Fetch] = field(default_factory=list)
    others: list[dict[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "sources": [each.to_dict() for each in self.fetches],
            "not_on_the_hub": self.others,
            "faults": self.faults,
        }

    def lines(self, *, fetched: bool) -> Iterator[str]:
        """As text."""
        for each in self.fetches:
            row = each.to_dict()
            terms = "  (its terms must be accepted first)" if each.listing.gated and not fetched else ""
            left = "" if fetched else f", {row['missing_bytes'] / 1e9:.2f} GB of them to fetch"
            yield (
                f"{each.source:24} {row['files']:6,} files {row['bytes'] / 1e9:10.2f} GB{left}  {each.listing.repository}@"
                f"{each.listing.commit[:12]} -> {each.folder}{terms}"
            )
        for other in self.others:
            yield f"{other['source']:24} not on the Hub: {other['url'] or 'its url is not in the recipe'} -> {other['path']}"


def plan_fetch(
    corpus: Corpus, languages: Collection[str] | None = None, sources: Collection[str] | None = None
) -> FetchPlan:
    """Asks the Hub what the recipe's sources hold.

    Args:
        corpus: the recipe.
        languages: take files of these languages, and of pairs of two of them; by default all.
        sources: take these sources; by default all.

    Raises:
        UserError: a source is not in the recipe, none is on the Hub, a language has no file, or the network fails.
    """
    if unknown := sorted(set(sources or ()) - set(corpus.sources)):
        raise UserError(
            f"--sources: `{unknown[0]}` is not a source of the recipe ({', '.join(corpus.sources)})"
        )
    plan = FetchPlan()
    seen: set[str] = set()
    for name, source in corpus.sources.items():
        if sources is not None and name not in sources:
            continue
        address = _ADDRESS.fullmatch(source.url)
        if address is None:
            plan.others.append({"source": name, "url": source.url, "path": source.path})
            continue
        try:
            plan.fetches.append(_plan_source(name, source, address, languages, seen))
        except UserError as error:
            plan.faults.append(f"{name}: {error}")
    if languages is not None and plan.fetches and (lacking := sorted(set(languages) - seen)):
        raise UserError(
            f"--languages: no file is in `{lacking[0]}`; the data sets spell languages as their files' names do"
        )
    return plan


def _plan_source(
    name: str, source: Source, address: re.Match[str], languages: Collection[str] | None, seen: set[str]
) -> Fetch:
    repository, revision, inner = address.groups()
    base, expression = pattern_of(source.path)
    if base == source.path:
        base = str(Path(base).parent)
    patterns = [expression]
    if source.target_path is not None:
        patterns.append(pattern_of(source.target_path)[1])
    listing = list_dataset(repository, revision)
    files = []
    for file in listing.files:
        prefix = f"{inner}/" if inner else ""
        if not file.path.startswith(prefix):
            continue
        below = file.path.removeprefix(prefix)
        if ".." in Path(below).parts:
            raise UserError(f"{repository}: holds a file named `{file.path}`, which leads out of its folder")
        match = next((m for p in patterns if (m := p.fullmatch(f"{base}/{below}" if base else below))), None)
        if match is None:
            continue
        captured = match.groupdict()
        spoken = [captured[key] for key in ("language", "src", "tgt") if captured.get(key)]
        if languages is not None and spoken and not set(spoken) <= set(languages):
            continue
        seen.update(spoken)
        files.append((below, file))
    if not files:
        raise UserError(
            f"none of the {len(listing.files):,} files of {repository}@{listing.commit[:12]} matches `{source.path}` below "
            f"`{base}`; correct path, or name the folder in url (.../tree/{revision or 'main'}/FOLDER)"
        )
    return Fetch(name, listing, Path(base or "."), files)


def fetch_sources(plan: FetchPlan, workers: int) -> None:
    """Fetches what is missing. What the Hub refuses, or has another checksum than it states, becomes a fault of the plan, and
    the other sources are fetched.

    Raises:
        UserError: the disk is too small.
    """
    needed: dict[int, tuple[Path, int]] = {}
    for each in plan.fetches:
        existing = each.folder.absolute()
        while not existing.exists():
            existing = existing.parent
        device = existing.stat().st_dev
        size = sum(file.bytes for _, file in each.missing())
        needed[device] = (each.folder, needed.get(device, (each.folder, 0))[1] + size)
    for folder, size in needed.values():
        check_space(folder, size)
    for each in list(plan.fetches):
        size = sum(file.bytes for _, file in each.missing())
        try:
            bar: tqdm[Any] = progress(total=size, desc=each.source, unit="B", unit_scale=True)
            with sole_writer(each.marks, wait=True), bar:
                download(each.folder, each.marks, each.listing, each.files, workers, bar.update)
        except UserError as error:
            plan.fetches.remove(each)
            terms = " (its terms must be accepted first)" if each.listing.gated else ""
            plan.faults.append(f"{each.source}: {error}{terms}")
