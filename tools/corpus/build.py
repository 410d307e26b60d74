"""The build of a corpus: its stages, one after the other; each is skipped where it is there already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from recipes.errors import UserError
from recipes.manifest import MANIFEST_NAME, Manifest
from recipes.schema import Recipe
from tools.corpus.deduplicate import deduplicate
from tools.corpus.filter import filter_corpus
from tools.corpus.integrate import integrate
from tools.corpus.layout import STAGES
from tools.corpus.source_files import source_files
from tools.corpus.split import split_corpus
from tools.corpus.stage import Build
from tools.corpus.statistics import statistics, write_table

__all__ = ["build_corpus", "build_of", "plan_build", "totals"]


def build_of(recipe: Recipe, workers: int | None = None) -> Build:
    """What the recipe of a run says about its corpus.

    Args:
        recipe: the recipe.
        workers: processes; default one a core that this process may use.
    """
    if recipe.data.corpus is None:
        raise UserError(f"the data recipe {recipe.data.name} has no section `corpus`; name its sources there")
    return Build(
        corpus=recipe.data.corpus,
        data=recipe.data.name,
        root=Path(recipe.paths.corpus),
        recipe_sha256=recipe.sha256,
        workers=workers or len(os.sched_getaffinity(0)),
    )


def build_corpus(build: Build, until: str = STAGES[-1]) -> None:
    """Builds the stages up to `until`.

    Raises:
        UserError: bad input, with file, line, field and fix.
    """
    steps = (filter_corpus, deduplicate, split_corpus)
    stage = integrate(build)
    for step in steps[: STAGES.index(until)]:
        stage = step(build, stage)
    write_table(statistics(build.root), build.root / "statistics" / "statistics")


def totals(build: Build) -> dict[str, dict[str, Any]]:
    """Counts of each stage on disk: `in`, `kept`, `removed_by`."""
    done = [stage for stage in STAGES if (build.root / stage / MANIFEST_NAME).is_file()]
    return {stage: Manifest.read(build.root / stage).counts for stage in done}


def plan_build(build: Build) -> dict[str, Any]:
    """What a build would read, and which stages are on disk.

    Raises:
        UserError: a source without files.
    """
    sources: dict[str, dict[str, Any]] = {}
    for file in source_files(build.corpus):
        kind = build.corpus.sources[file.source].kind
        entry = sources.setdefault(file.source, {"source": file.source, "kind": kind, "files": 0, "bytes": 0})
        for path in (file.path, file.target):
            if path is not None:
                entry["files"] += 1
                entry["bytes"] += Path(path).stat().st_size
    stages = {}
    for stage in STAGES:
        folder = build.root / stage
        unfinished = list((build.root / ".work").glob(f"{stage}-*"))
        if (folder / MANIFEST_NAME).is_file():
            manifest = Manifest.read(folder)
            stages[stage] = f"{manifest.counts['kept']:,} documents, built {manifest.finished}"
        else:
            stages[stage] = "begun" if unfinished else "not built"
    return {"sources": list(sources.values()), "stages": stages}
