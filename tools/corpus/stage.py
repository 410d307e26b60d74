"""Life of a stage: is it done already, can an interrupted one go on, what it leaves when it ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from recipes.errors import UserError
from recipes.files import read_json, sha256_file
from recipes.manifest import MANIFEST_NAME, FileRecord, Manifest, now, package_versions
from recipes.schema.corpus import Corpus
from tools.corpus.accounts import Accounts, Samples
from tools.corpus.layout import STAGES, Part, part_path, parts_of
from tools.corpus.runner import Task, results_of, run_tasks
from tools.corpus.tables import tables_sha256

__all__ = ["FORMAT", "Build", "Stage", "chunks_of_parts", "fingerprint"]

FORMAT = 1
"""Number of the way in which stages compute their outputs; raised when the same input gives another output."""

_PACKAGES = ("emma-recipes", "ftfy", "GlotScript", "numpy", "pyarrow", "python-iso639", "rensa", "xxhash")


def fingerprint(*values: Any) -> str:
    """SHA-256 of the canonical JSON of values."""
    content = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Build:
    """What a build is about, and how it runs.

    Attributes:
        corpus: settings.
        data: name of the data recipe; a folder holds one corpus only.
        root: folder of the corpus.
        recipe_sha256: of the run's recipe, for the manifests.
        workers: processes on this machine.
    """

    corpus: Corpus
    data: str
    root: Path
    recipe_sha256: str
    workers: int = 1


@dataclass
class Stage:
    """One stage of a build.

    Args:
        build: the build.
        name: one of `STAGES`.
        settings: what its output depends on besides the stage before it.
        previous: fingerprint of the stage before it; "" for the first.
    """

    build: Build
    name: str
    settings: Any
    previous: str = ""
    started: str = field(default_factory=now)

    @property
    def fingerprint(self) -> str:
        """What the output is a function of: settings, tables, format and the stage before."""
        return fingerprint(FORMAT, self.name, self.settings, tables_sha256(), self.previous)

    @property
    def folder(self) -> Path:
        """Where the parts go."""
        return self.build.root / self.name

    @property
    def work(self) -> Path:
        """Where finished tasks leave their marks until the stage is done."""
        return self.build.root / ".work" / f"{self.name}-{self.fingerprint[:16]}"

    def is_done(self) -> bool:
        """Whether the stage on disk is this one, whole.

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
                "give this run a folder of its own (paths.corpus) or remove that one"
            )
        return manifest.extra.get("fingerprint") == self.fingerprint and not manifest.check_outputs(
            self.folder
        )

    def begin(self) -> None:
        """Goes on with what an interrupted build of the same stage left; removes what another one left."""
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
        """Removes what killed tasks were writing."""
        for folder in (self.folder, self.work):
            for path in folder.rglob(".*.partial"):
                path.unlink()

    def _forget_lost_parts(self) -> None:
        """Removes the marks of tasks whose parts are not on disk as they were written (the machine itself went down)."""
        for mark in self.work.glob("*/*.json"):
            result = read_json(mark)
            parts = result.get("parts", []) if isinstance(result, dict) else []
            for record in parts:
                if record is not None and not _is_whole(self.folder, record):
                    mark.unlink()
                    break

    def run(self, phase: str, tasks: Sequence[Task]) -> list[Any]:
        """Runs the tasks of a phase that have not run yet; results of all."""
        label = f"{self.name}: {phase}"
        run_tasks(self.work / phase, tasks, workers=self.build.workers, label=label)
        return results_of(self.work / phase, tasks)

    def give_up(self) -> None:
        """After an error: leaves nothing behind where nothing was finished."""
        inner = sorted(self.work.glob("**/"), reverse=True)
        for folder in (*inner, self.work.parent, self.build.root):
            with contextlib.suppress(
                OSError
            ):  # not empty: something was finished, which the next build goes on from
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
        """Writes accounts, samples and, last, the manifest; removes the work folder.

        Args:
            accounts: of all documents of the stage.
            samples: removed documents.
            came: documents that were read.
            outputs: records of the parts (`PartWriter.record`); None for parts without rows.
            inputs: files that were read.
            extra: more for the manifest.
        """
        counts = accounts.counts(came)
        records = sorted((r for r in outputs if r is not None), key=lambda record: record["path"])
        if not records:
            shutil.rmtree(self.work)
            self.give_up()
            raise UserError(
                f"{self.folder}: no document left ({counts['in']} came in, removed: {counts['removed_by'] or 'none'}); "
                "the corpus is empty: mend the sources or the filters"
            )
        tables = self.build.root / "statistics"
        accounts.write(tables / f"accounts-{self.name}.parquet", self.name)
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
        # Parts are not synchronised one by one, of which there may be many thousands, but all at once.
        os.sync()
        manifest.write(self.folder)
        shutil.rmtree(self.work)
        with contextlib.suppress(OSError):
            self.work.parent.rmdir()

    def previous_manifest(self) -> FileRecord:
        """Record of the manifest of the stage before, which lists its parts with their checksums."""
        before = STAGES[STAGES.index(self.name) - 1]
        return FileRecord.of(self.build.root / before / MANIFEST_NAME, self.build.root)

    def previous_parts(self) -> list[Part]:
        """Parts of the stage before."""
        return parts_of(self.build.root, STAGES[STAGES.index(self.name) - 1])


def _is_whole(folder: Path, record: dict[str, Any]) -> bool:
    path = folder / record["path"]
    return (
        path.is_file()
        and path.stat().st_size == record["bytes"]
        and f"sha256:{sha256_file(path)}" == record["checksum"]
    )


def chunks_of_parts(root: Path, stage: str, parts: Sequence[Part], megabytes: float) -> list[list[Part]]:
    """Consecutive parts together, so that thousands of small ones don't make a task each.

    The cut depends on the parts' sizes only, not on the machine.
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
