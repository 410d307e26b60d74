"""Builds a corpus: its stages in order, skipping those already on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emma.base.claims import remove_abandoned
from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME, Manifest
from emma.base.processes import available_cores, start_forkserver
from emma.base.writers import sole_writer
from emma.recipes.schema import Recipe
from emma.tools.corpus.deduplicate import deduplicate
from emma.tools.corpus.duplicates.needs import needs_of
from emma.tools.corpus.filter import filter_corpus
from emma.tools.corpus.integrate import integrate
from emma.tools.corpus.layout import STAGES
from emma.tools.corpus.source_files import source_files
from emma.tools.corpus.split import split_corpus
from emma.tools.corpus.stage import Build, Stage
from emma.tools.corpus.statistics import statistics, write_table

__all__ = ["build_corpus", "build_of", "finish_build", "plan_build", "stages_of", "totals"]


def build_of(recipe: Recipe, workers: int | None = None) -> Build:
    """The build that a run's recipe describes.

    Args:
        recipe: the recipe.
        workers: processes; default one per core available to this process.

    Raises:
        UserError: the data recipe has no section `corpus`.
    """
    if recipe.data.corpus is None:
        raise UserError(f"the data recipe {recipe.data.name} has no section `corpus`; name its sources there")
    return Build(
        corpus=recipe.data.corpus,
        data=recipe.data.name,
        root=Path(recipe.paths.corpus),
        recipe_sha256=recipe.sha256,
        workers=workers or available_cores(),
    )


def build_corpus(build: Build, until: str = STAGES[-1]) -> None:
    """Builds the stages up to `until`.

    Raises:
        UserError: bad input, with file, line, field and fix; or another process is building this corpus.
    """
    if build.workers > 1:
        # One process is the parent of all stages' workers; it imports what all of them need.
        start_forkserver([__name__])
    try:
        with sole_writer(build.root, inside=True):
            remove_abandoned(
                path for name in ("statistics", "rejected") for path in (build.root / name).glob(".*.partial")
            )
            for stage in stages_of(build, until):
                stage.run()
            finish_build(build)
    finally:
        # Only an empty folder can be removed: one in which nothing was finished.
        with contextlib.suppress(OSError):
            build.root.rmdir()


def stages_of(build: Build, until: str = STAGES[-1]) -> Iterator[Stage]:
    """The stages in order. Run each before asking for the next one, unless only their settings are needed.

    Raises:
        UserError: a source, model or benchmark is missing.
    """
    stage = integrate(build)
    yield stage
    for make in (filter_corpus, deduplicate, split_corpus)[: STAGES.index(until)]:
        stage = make(build, stage.fingerprint)
        yield stage


def finish_build(build: Build) -> None:
    """Writes the tables that span all stages."""
    write_table(statistics(build.root), build.root / "statistics" / "statistics")


def totals(build: Build) -> dict[str, dict[str, Any]]:
    """Counts of each stage on disk: `in`, `kept`, `removed_by`."""
    done = [stage for stage in STAGES if (build.root / stage / MANIFEST_NAME).is_file()]
    return {stage: Manifest.read(build.root / stage).counts for stage in done}


def plan_build(build: Build) -> dict[str, Any]:
    """Says what a build would read and which stages are on disk.

    Raises:
        UserError: a source without files.
    """
    sources: dict[str, dict[str, Any]] = {}
    for file in source_files(build.corpus):
        kind = build.corpus.sources[file.source].kind
        entry = sources.setdefault(file.source, {"source": file.source, "kind": kind, "files": 0, "bytes": 0})
        stamp = file.stamp()
        entry["files"] += len(stamp) // 3
        entry["bytes"] += sum(stamp[1::3])
    stages = {}
    for stage in STAGES:
        folder = build.root / stage
        unfinished = list((build.root / ".work").glob(f"{stage}-*"))
        if (folder / MANIFEST_NAME).is_file():
            manifest = Manifest.read(folder)
            stages[stage] = f"{manifest.counts['kept']:,} documents, built {manifest.finished}"
        else:
            stages[stage] = "begun" if unfinished else "not built"
    needs = needs_of(build)
    deduplication = {} if needs is None else {"deduplication": needs.to_dict()}
    return {"sources": list(sources.values()), "stages": stages, **deduplication}
