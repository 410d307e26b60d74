"""Life cycle of a stage: whether it is done, how it resumes after an interruption, what it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from emma.base.claims import remove_abandoned
from emma.base.errors import UserError
from emma.base.files import read_json, sha256_file
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest, now, package_versions
from emma.recipes.corpus_tables import tables_sha256
from emma.recipes.schema.corpus import Corpus
from emma.recipes.schema.section import Section
from emma.tools.corpus.accounts import Accounts, Samples, accounts_path
from emma.tools.corpus.layout import STAGES, Part, part_path, parts_of
from emma.tools.corpus.runner import Task, results_of, run_tasks

__all__ = [
    "FORMAT",
    "Build",
    "Phase",
    "Results",
    "Stage",
    "chunks_of_parts",
    "close_with",
    "fingerprint",
    "settings_of",
]

Results = dict[str, list[Any]]
"""Results of the tasks of finished phases, by the phase's name."""

FORMAT = 1
"""Version of how stages compute their outputs; raise it when the same input would give a different output."""

_PACKAGES = ("emma-recipes", "ftfy", "GlotScript", "numpy", "pyarrow", "python-iso639", "rensa", "xxhash")


def fingerprint(*values: Any) -> str:
    """SHA-256 of the canonical JSON of values."""
    content = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()


def settings_of(section: Section, include: set[str] | None = None) -> dict[str, Any]:
    """Values of a section's keys as JSON, those that came later only where they aren't at their defaults.

    Args:
        section: the section.
        include: keys to take; by default all.
    """
    return section.model_dump(mode="json", include=include)


@dataclass(frozen=True)
class Build:
    """What a build makes, and how it runs.

    Attributes:
        corpus: settings.
        data: name of the data recipe; a folder holds only one corpus.
        root: folder of the corpus.
        recipe_sha256: SHA-256 of the run's recipe, for the manifests.
        workers: processes on this machine.
    """

    corpus: Corpus
    data: str
    root: Path
    recipe_sha256: str
    workers: int = 1


@dataclass(frozen=True)
class Phase:
    """A set of tasks that don't depend on each other.

    Attributes:
        name: its name, also that of the folder with the tasks' marks.
        plan: returns the phase's tasks, given the stage and the results of earlier phases; it must write
            nothing, since every participating process calls it.
        single: whether it is one task, however large the corpus.
    """

    name: str
    plan: Callable[[Stage, Results], list[Task]]
    single: bool = False


@dataclass
class Stage:
    """One stage of a build.

    Args:
        build: the build.
        name: one of `STAGES`.
        settings: what its output depends on besides the previous stage.
        previous: fingerprint of the previous stage; "" for the first.
        phases: its work, in order.
        close: ends the stage by calling `finish` with the results of all phases.
    """

    build: Build
    name: str
    settings: Any
    previous: str
    phases: Sequence[Phase]
    close: Callable[[Stage, Results], None]
    started: str = field(default_factory=now)

    @property
    def fingerprint(self) -> str:
        """Hash of all that determines the output: settings, tables, format and the previous stage."""
        return fingerprint(FORMAT, self.name, self.settings, tables_sha256(), self.previous)

    @property
    def folder(self) -> Path:
        """Folder of the parts."""
        return self.build.root / self.name

    @property
    def work(self) -> Path:
        """Folder where finished tasks leave their marks until the stage is done."""
        return self.build.root / ".work" / f"{self.name}-{self.fingerprint[:16]}"

    def is_done(self) -> bool:
        """Whether the stage on disk is this one, and complete.

        Raises:
            UserError: the folder holds the corpus of another data recipe.
        """
        if not (self.folder / MANIFEST_NAME).is_file():
            return False
        manifest = Manifest.read(self.folder)
        owner = manifest.extra.get("data")
        if owner != self.build.data:
            raise UserError(
                f"{self.build.root}: holds the corpus of the data recipe `{owner}`, not of `{self.build.data}`; "
                "give this run its own folder (paths.corpus), or remove that one"
            )
        return manifest.extra.get("fingerprint") == self.fingerprint and not manifest.check_outputs(
            self.folder
        )

    def begin(self) -> None:
        """Resumes an interrupted build of the same stage, or removes what a build of another version left."""
        if self.work.is_dir():
            self._remove_partial_files()
            self._forget_lost_parts()
            return
        stale = [self.folder, *(self.build.root / ".work").glob(f"{self.name}-*")]
        for folder in stale:
            if folder.is_dir():
                shutil.rmtree(folder)
        self.work.mkdir(parents=True)

    def _remove_partial_files(self) -> None:
        """Removes what killed tasks of this machine were writing."""
        for folder in (self.folder, self.work):
            remove_abandoned(folder.rglob(".*.partial"))

    def _forget_lost_parts(self) -> None:
        """Removes the marks of tasks whose parts are not intact on disk, as after a crash of the machine."""
        for mark in self.work.glob("*/*.json"):
            result = read_json(mark)
            parts = result.get("parts", []) if isinstance(result, dict) else []
            for record in parts:
                if record is not None and not _is_whole(self.folder, record):
                    mark.unlink()
                    break

    def run(self) -> None:
        """Builds the stage on this machine, unless it is done.

        Raises:
            UserError: bad input; if no task had finished, no files are left behind.
        """
        if self.is_done():
            shutil.rmtree(self.work, ignore_errors=True)
            return
        self.begin()
        try:
            results: Results = {}
            for phase in self.phases:
                tasks = phase.plan(self, results)
                run_tasks(
                    self.work / phase.name,
                    tasks,
                    workers=self.build.workers,
                    label=f"{self.name}: {phase.name}",
                )
                results[phase.name] = results_of(self.work / phase.name, tasks)
            self.close(self, results)
        except UserError:
            self.give_up()
            raise

    def run_share(self, number: int, rank: int, world: int) -> None:
        """Runs this rank's tasks of phase `number`; all earlier phases must be finished on all ranks."""
        results = self.results(number)
        phase = self.phases[number]
        run_tasks(
            self.work / phase.name,
            phase.plan(self, results),
            workers=1,
            label=f"{self.name}: {phase.name}",
            rank=rank,
            world=world,
        )

    def results(self, phases: int) -> Results:
        """Results of the first `phases` phases.

        Raises:
            UserError: some of their tasks have not finished.
        """
        results: Results = {}
        for phase in self.phases[:phases]:
            results[phase.name] = results_of(self.work / phase.name, phase.plan(self, results))
        return results

    def give_up(self) -> None:
        """Cleans up after an error: leaves nothing behind if nothing was finished."""
        inner = sorted(self.work.glob("**/"), reverse=True)
        for folder in (*inner, self.work.parent, self.build.root):
            # Folders that are not empty stay: something was finished, and the next build resumes from it.
            with contextlib.suppress(OSError):
                folder.rmdir()

    def finish(
        self,
        accounts: Accounts,
        samples: Samples,
        came: int,
        outputs: Iterable[dict[str, Any] | None],
        inputs: Sequence[FileRecord],
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Writes accounts, samples and finally the manifest, then removes the work folder.

        Args:
            accounts: of all documents of the stage.
            samples: removed documents.
            came: number of documents read.
            outputs: records of the parts (`PartWriter.record`); None for parts without rows.
            inputs: files read.
            extra: further entries for the manifest.

        Raises:
            UserError: no document is left.
        """
        counts = accounts.counts(came)
        records = sorted((r for r in outputs if r is not None), key=lambda record: record["path"])
        if not records:
            shutil.rmtree(self.work)
            self.give_up()
            files = ", ".join(record.path for record in inputs[:3]) + (", ..." if len(inputs) > 3 else "")
            raise UserError(
                f"{self.folder}: no document left ({counts['in']} came in from {files}, removed: "
                f"{counts['removed_by'] or 'none'}); the corpus is empty: fix the sources or the filters"
            )
        accounts.write(accounts_path(self.build.root, self.name), self.name)
        samples.write(self.build.root / "rejected" / f"{self.name}.parquet", self.name)
        manifest = Manifest(
            stage=f"corpus/{self.name}",
            recipe_sha256=self.build.recipe_sha256,
            inputs=list(inputs),
            outputs=[FileRecord(r["path"], r["bytes"], r["checksum"]) for r in records],
            counts=counts,
            versions=package_versions(_PACKAGES),
            started=self.started,
            extra={
                "data": self.build.data,
                "fingerprint": self.fingerprint,
                "rows": {r["path"]: r["rows"] for r in records},
                **(extra or {}),
            },
        )
        # There may be many thousands of parts, so sync them all at once, not one by one.
        os.sync()
        manifest.write(self.folder)
        shutil.rmtree(self.work)
        with contextlib.suppress(OSError):
            self.work.parent.rmdir()

    def previous_manifest(self) -> FileRecord:
        """Record of the previous stage's manifest, which lists its parts with their checksums."""
        before = STAGES[STAGES.index(self.name) - 1]
        return FileRecord.of(self.build.root / before / MANIFEST_NAME, self.build.root)

    def previous_parts(self) -> list[Part]:
        """Parts of the previous stage."""
        return parts_of(self.build.root, STAGES[STAGES.index(self.name) - 1])


def close_with(phase: str, extra: dict[str, Any] | None = None) -> Callable[[Stage, Results], None]:
    """A `Stage.close` for a stage whose phase `phase` wrote the parts; `extra` goes into the manifest.

    The results of that phase have `accounts`, `samples`, `rows` (read) and `parts`.
    """

    def close(stage: Stage, results: Results) -> None:
        written = results[phase]
        stage.finish(
            Accounts.merged(result["accounts"] for result in written),
            Samples.merged(stage.build.corpus.samples, (result["samples"] for result in written)),
            sum(result["rows"] for result in written),
            [record for result in written for record in result["parts"]],
            [stage.previous_manifest()],
            extra,
        )

    return close


def _is_whole(folder: Path, record: dict[str, Any]) -> bool:
    path = folder / record["path"]
    return (
        path.is_file()
        and path.stat().st_size == record["bytes"]
        and f"sha256:{sha256_file(path)}" == record["checksum"]
    )


def chunks_of_parts(root: Path, stage: str, parts: Sequence[Part], megabytes: float) -> list[list[Part]]:
    """Groups consecutive parts, so that thousands of small ones don't each become a task.

    The grouping depends only on the parts' sizes, not on the machine.
    """
    chunks: list[list[Part]] = []
    size = 0
    for part in parts:
        weight = part_path(root, stage, part).stat().st_size + 4096
        if not chunks or size + weight > megabytes * 1e6:
            chunks.append([])
            size = 0
        chunks[-1].append(part)
        size += weight
    return chunks
