"""Builds a corpus: its stages in order, skipping those already on disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME, Manifest
from emma.recipes.schema import Recipe
from emma.tools.corpus.deduplicate import deduplicate
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
        workers=workers or len(os.sched_getaffinity(0)),
    )


def build_corpus(build: Build, until: str = STAGES[-1]) -> None:
    """Builds the stages up to `until`.

    Raises:
        UserError: bad input; the message names file, line, field and fix.
    """
    build.root.mkdir(parents=True, exist_ok=True)
    with exclusive(build.root):
        for stage in stages_of(build, until):
            stage.run()
        finish_build(build)


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


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Locks the corpus folder, and removes the folder if it ends up empty.

    Raises:
        UserError: another process on this machine holds the lock.
    """
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another build is using this folder; wait for it, or give this run another folder "
                            "(paths.corpus)") from None  # fmt: skip
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            root.rmdir()


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
