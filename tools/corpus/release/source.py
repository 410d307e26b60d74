"""The inputs of a corpus release, checked before anything is written. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest
from emma.recipes.schema.corpus import KINDS
from emma.tools.corpus.layout import STAGES, Part
from emma.tools.corpus.statistics import statistics

if TYPE_CHECKING:
    from emma.recipes.schema import Recipe

__all__ = ["STAGE", "CorpusSource", "Shard", "open_corpus"]

STAGE = STAGES[-1]


@dataclass(frozen=True)
class Shard:
    """Parts of one language or pair that become one training file (and part of its validation file)."""

    kind: str
    language: str
    number: int
    parts: tuple[FileRecord, ...]

    @property
    def name(self) -> str:
        """Unique among the shards of a corpus; usable as a file name."""
        return f"{self.kind}.{self.language}.{self.number:05d}"


@dataclass(frozen=True)
class CorpusSource:
    """A finished corpus.

    Attributes:
        root: its folder, with `split/` and `statistics/`.
        manifest: manifest of its `split` stage.
        stages: counts per stage: `in`, `kept`, `removed_by`.
        statistics: rows of the `split` stage that have documents, by kind and language or pair.
        recipe: the run's recipe, if known; it names the sources' origins.
    """

    root: Path
    manifest: Manifest
    stages: dict[str, dict[str, Any]]
    statistics: list[dict[str, Any]]
    recipe: Recipe | None

    @property
    def data(self) -> str:
        """Name of the data recipe."""
        return str(self.manifest.extra["data"])

    @property
    def bytes(self) -> int:
        """Size of the parts in bytes."""
        return sum(record.bytes for record in self.manifest.outputs)

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each part."""
        rows: dict[str, int] = self.manifest.extra["rows"]
        return rows

    def shards(self, shard_bytes: int) -> list[Shard]:
        """Groups each language's parts, in order, up to `shard_bytes` of parquet per shard (or one larger
        part)."""
        result: list[Shard] = []
        filled = 0
        for part, record in self.parts():
            last = result[-1] if result else None
            if last is None or (last.kind, last.language) != (part.kind, part.language):
                result.append(Shard(part.kind, part.language, 0, (record,)))
                filled = record.bytes
            elif filled + record.bytes > shard_bytes:
                result.append(Shard(part.kind, part.language, last.number + 1, (record,)))
                filled = record.bytes
            else:
                result[-1] = Shard(last.kind, last.language, last.number, (*last.parts, record))
                filled += record.bytes
        return result

    def parts(self) -> list[tuple[Part, FileRecord]]:
        """The parts with their records, by kind, language, and number."""
        found = []
        for record in self.manifest.outputs:
            kind, language, name = Path(record.path).parts
            number = int(Path(name).stem.removeprefix("part-"))
            found.append((Part(kind, language, number), record))
        return sorted(found, key=lambda item: (KINDS.index(item[0].kind), item[0].language, item[0].number))


def open_corpus(source: str, overrides: Sequence[str] = ()) -> CorpusSource:
    """Finds a corpus and checks that it is complete, as far as possible without reading text.

    Args:
        source: a corpus folder (it contains `split/`), or a RUN whose recipe names one (`paths.corpus`).
        overrides: `section.key=value` overrides for a RUN's recipe.

    Raises:
        UserError: there is no corpus, its last stage is not built, parts are missing or have other sizes, or
            it has no statistics.
    """
    folder, recipe = Path(source), None
    if not (folder / STAGE).is_dir():
        from emma.recipes.compose import list_names
        from emma.recipes.load import load_recipe

        run = (folder / "recipe.yaml").is_file() or source in list_names("runs")
        if folder.is_dir() and not run:
            raise UserError(
                f"{folder}: contains neither a corpus ({STAGE}/) nor a run (recipe.yaml); name the corpus folder that "
                "`emma corpus build` wrote, or the run"
            )
        recipe = load_recipe(source, overrides)
        folder = Path(recipe.paths.corpus)
    elif overrides:
        raise UserError(f"{overrides[0]}: overrides apply only to a RUN, but {source} is a corpus folder")
    if not (folder / STAGE / MANIFEST_NAME).is_file():
        raise UserError(
            f"{folder}: the corpus's last stage is not built ({STAGE}/{MANIFEST_NAME} is missing); run "
            "`emma corpus build RUN`, which continues where it stopped"
        )
    manifest = Manifest.read(folder / STAGE)
    if faults := manifest.check_outputs(folder / STAGE):
        raise UserError(
            f"{faults[0]} ({len(faults)} such parts); build the corpus again: `emma corpus build RUN`"
        )
    if recipe is not None and manifest.extra.get("data") != recipe.data.name:
        raise UserError(
            f"{folder}: contains the corpus of the data recipe `{manifest.extra.get('data')}`, but the run's is "
            f"`{recipe.data.name}`; name the corpus folder itself, or set paths.corpus"
        )
    rows = [row for row in statistics(folder).to_pylist() if row["stage"] == STAGE and row["documents"]]
    stages = {
        stage: Manifest.read(folder / stage).counts
        for stage in STAGES
        if (folder / stage / MANIFEST_NAME).is_file()
    }
    return CorpusSource(folder, manifest, stages, rows, recipe)
