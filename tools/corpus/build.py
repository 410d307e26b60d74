"""The build of a corpus: its stages, one after the other; each is skipped where it is there already."""

from __future__ import annotations

import os
from pathlib import Path

from recipes.errors import UserError
from recipes.schema import Recipe
from tools.corpus.deduplicate import deduplicate
from tools.corpus.filter import filter_corpus
from tools.corpus.integrate import integrate
from tools.corpus.layout import STAGES
from tools.corpus.split import split_corpus
from tools.corpus.stage import Build
from tools.corpus.statistics import statistics, write_table

__all__ = ["build_corpus", "build_of"]


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
