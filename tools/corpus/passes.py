"""Counting over the parts of a finished stage: in parallel, resumable, leaving no files behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from emma.base.manifest import Manifest
from emma.base.writers import sole_writer
from emma.tools.corpus.layout import parts_of
from emma.tools.corpus.runner import Task, results_of, run_tasks
from emma.tools.corpus.stage import Build, chunks_of_parts, fingerprint

__all__ = ["count_parts"]

_CHUNK_MEGABYTES = 16


def count_parts(
    build: Build, stage: str, name: str, function: Callable[..., Any], *arguments: Any, key: str = ""
) -> list[Any]:
    """Results of `function(root, stage, parts, *arguments)` for consecutive chunks of parts.

    Args:
        build: the corpus.
        stage: a finished stage.
        name: what is counted, for the progress bar.
        function: importable; returns JSON values.
        arguments: picklable.
        key: what the result depends on besides the stage: an interrupted pass resumes only with the same key.

    Raises:
        UserError: the stage is not finished.
    """
    built = Manifest.read(build.root / stage).extra["fingerprint"]
    work = build.root / ".work" / f"count-{fingerprint(name, stage, built, key)[:16]}"
    chunks = chunks_of_parts(build.root, stage, parts_of(build.root, stage), _CHUNK_MEGABYTES)
    tasks = [
        Task(f"chunk-{number:06d}", function, (str(build.root), stage, chunk, *arguments))
        for number, chunk in enumerate(chunks)
    ]
    with sole_writer(work, wait=True):
        run_tasks(work, tasks, workers=build.workers, label=name)
        results = results_of(work, tasks)
        shutil.rmtree(work)
    return results
