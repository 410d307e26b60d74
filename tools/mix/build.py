"""Builds a mix from a store: choose, shuffle, write. No `.bin` is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest, now, package_versions
from emma.base.processes import available_cores
from emma.base.progress import progress
from emma.base.staging import sole_writer, staged_folder
from emma.recipes.schema import Recipe
from emma.recipes.schema.data import Mix
from emma.tools.mix.catalogue import Catalogue, consumed_documents, load_catalogue
from emma.tools.mix.layout import FORMAT, DatasetInfo, MixInfo, Packing, read_mix
from emma.tools.mix.plan import MixPlan, ValidationGroup, make_plan, plan_validation, realised
from emma.tools.mix.select import Selection, generator, select_documents, select_validation
from emma.tools.mix.shuffle import shuffled
from emma.tools.mix.sources import Source, read_statistics, sources_of_store
from emma.tools.mix.writer import DatasetWriter, ShardTable
from emma.tools.pack.store import Component, open_store
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = ["MixSettings", "build_mix", "expected_fingerprint", "plan_mix"]


@dataclass(frozen=True)
class MixSettings:
    """What `emma mix` works with.

    Args:
        mix: the recipe's `data.mix`.
        name: the mix's name.
        folder: the mix's folder.
        store: the token store.
        samples: sequences of training: steps × global batch.
        sequence_length: input tokens of a sequence.
        recipe_sha256: hash of the resolved recipe, for the manifest.
        tokenizer_sha256: of the run's tokenizer, where its file exists; a store packed with another one is
            refused.
    """

    mix: Mix
    name: str
    folder: Path
    store: Path
    samples: int
    sequence_length: int
    recipe_sha256: str
    tokenizer_sha256: str | None = None

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> MixSettings:
        """Settings of a run's recipe."""
        tokenizer = TokenizerFile(recipe.model.tokenizer, recipe.model.vocab_size)
        return cls(
            recipe.data.mix,
            recipe.data.name,
            recipe.mix_folder,
            Path(recipe.paths.store),
            recipe.total_samples,
            recipe.batch.sequence_length,
            recipe.sha256,
            tokenizer.sha256 if tokenizer.path.is_file() else None,
        )

    @property
    def tokens(self) -> int:
        """Budget: samples × sequence length."""
        return self.samples * self.sequence_length


@dataclass(frozen=True)
class _Prepared:
    components: list[Component]
    catalogues: dict[str, Catalogue] | None
    sources: list[Source]
    plan: MixPlan


def plan_mix(settings: MixSettings, statistics: Sequence[Path] = ()) -> MixPlan:
    """Plans a mix from the store's true counts.

    Args:
        settings: what to plan.
        statistics: published word counts that decide the categories; by default they are estimated.

    Raises:
        UserError: the store lacks a component, or its components don't belong together.
    """
    return _prepare(settings, statistics).plan


def _prepare(settings: MixSettings, statistics: Sequence[Path] = ()) -> _Prepared:
    components = open_store(settings.store, sorted(settings.mix.components))
    if settings.tokenizer_sha256 not in (None, components[0].settings["tokenizer_sha256"]):
        raise UserError(
            f"{settings.store}: was packed with another tokenizer than the run's; pack it again with this "
            "recipe, or give another paths.store"
        )
    words = {}
    for path in statistics:
        kind, counts = read_statistics(path)
        words[kind] = {name: values["words"] for name, values in counts.items()}
    sources = sources_of_store(settings.mix, components, words)
    catalogues = None
    if settings.mix.exclude_consumed:
        consumed = consumed_documents(settings.mix.exclude_consumed, components)
        catalogues = {
            component.name: load_catalogue(component, consumed.get(component.name))
            for component in components
        }
        sources = [_without_consumed(source, catalogues[source.component]) for source in sources]
    # Each best-fit sample has its own last label, so it holds one token more than its length.
    tokens = settings.tokens if settings.mix.packing == "concatenate" else settings.tokens + settings.samples
    plan = make_plan(settings.mix, sources, tokens, settings.sequence_length)
    groups, faults, notes = plan_validation(settings.mix, sources)
    plan.groups.extend(groups)
    plan.faults.extend(faults)
    plan.notes.extend(notes)
    return _Prepared(components, catalogues, sources, plan)


def _without_consumed(source: Source, catalogue: Catalogue) -> Source:
    left = catalogue.of_language(source.language, validation=False)
    return Source(
        source.component,
        source.language,
        source.category,
        source.words,
        len(left),
        int(catalogue.tokens[left].sum(dtype=np.int64)),
        source.validation_documents,
        source.validation_tokens,
        source.validation_bytes,
    )


def build_mix(settings: MixSettings, *, replace: bool = False, statistics: Sequence[Path] = ()) -> MixInfo:
    """Builds a mix; the same mix, if it is there, is left alone. Waits for another process that is building
    it.

    Args:
        settings: what to build.
        replace: replace another mix in the folder.
        statistics: published word counts that decide the categories; by default they are estimated.

    Raises:
        UserError: the plan fails, or another mix is in the folder.
    """
    started = now()
    prepared = _prepare(settings, statistics)
    prepared.plan.check()
    fingerprint = _fingerprint(settings, prepared)
    if present := _present(settings, fingerprint, replace=replace):
        return present
    with sole_writer(settings.folder, wait=True) as lock:
        if present := _present(settings, fingerprint, replace=replace):
            return present
        # What is in the folder is no mix, or may give way.
        with staged_folder(settings.folder, overwrite=True, lock=lock) as folder:
            info = _write(settings, prepared, fingerprint, folder, started)
    return MixInfo(**{**vars(info), "folder": settings.folder})


def _present(settings: MixSettings, fingerprint: str, *, replace: bool) -> MixInfo | None:
    """The mix with the fingerprint, if it is in its folder; None too where another one is that gives way.

    Raises:
        UserError: another one is there and does not give way.
    """
    if not (settings.folder / MANIFEST_NAME).is_file():
        return None
    present = read_mix(settings.folder)
    if present.fingerprint == fingerprint:
        return present
    if replace:
        return None
    raise UserError(
        f"{settings.folder}: holds another mix (fingerprint {present.fingerprint[:12]}, {present.samples} "
        f"samples; this recipe's is {fingerprint[:12]}, {settings.samples} samples). A run that was begun "
        "with it needs it. Give data.name another value, or call with --replace"
    )


def expected_fingerprint(settings: MixSettings, statistics: Sequence[Path] = ()) -> str:
    """Fingerprint of the mix that these settings would build from the store as it is.

    Raises:
        UserError: the store lacks a component, or its components don't belong together.
    """
    return _fingerprint(settings, _prepare(settings, statistics))


def _fingerprint(settings: MixSettings, prepared: _Prepared) -> str:
    """SHA-256 over everything that the mix's content depends on."""
    content = {
        "format": FORMAT,
        "seed": settings.mix.seed,
        "packing": settings.mix.packing,
        "samples": settings.samples,
        "sequence_length": settings.sequence_length,
        "store": {component.name: component.fingerprint for component in prepared.components},
        "sources": [
            [row.source.component, row.source.language, row.target_tokens, row.cap_tokens]
            for row in prepared.plan.sources
        ],
        "groups": [[group.name, sorted(group.targets.items())] for group in prepared.plan.groups],
        "consumed": [
            [read_mix(Path(entry.mix)).fingerprint, entry.samples] for entry in settings.mix.exclude_consumed
        ],
    }
    return hashlib.sha256(orjson.dumps(content)).hexdigest()


def _write(
    settings: MixSettings, prepared: _Prepared, fingerprint: str, folder: Path, started: str
) -> MixInfo:
    catalogues = prepared.catalogues or {
        component.name: load_catalogue(component) for component in prepared.components
    }
    shards = ShardTable(prepared.components)
    (folder / "train").mkdir(parents=True)
    train = _write_train(settings, prepared, catalogues, shards, fingerprint, folder)
    sources = {source.key: source for source in prepared.sources}
    groups = {
        group.name: (
            _write_group(settings, prepared, catalogues, shards, fingerprint, folder, group),
            _bytes_per_token(group, sources),
        )
        for group in prepared.plan.groups
    }
    pq.write_table(realised(prepared.plan, train), folder / "plan.parquet", compression="zstd")
    first = prepared.components[0]
    info = MixInfo(
        folder=folder,
        name=settings.name,
        fingerprint=fingerprint,
        packing=settings.mix.packing,
        sequence_length=settings.sequence_length,
        samples=train.samples,
        tokens=train.samples * train.sequence_length,
        seed=settings.mix.seed,
        vocab_size=first.vocab_size,
        begin_id=first.begin_of_text_id,
        end_id=first.end_of_text_id,
        tokenizer_sha256=first.settings["tokenizer_sha256"],
        store=os.path.relpath(settings.store.resolve(), settings.folder.resolve()),
        components={component.name: component.fingerprint for component in prepared.components},
        shares=prepared.plan.shares,
        groups={
            name: {
                "samples": group.samples,
                "tokens": group.tokens,
                "documents": group.documents,
                "label_tokens": group.label_tokens,
                "bytes_per_token": bytes_per_token,
            }
            for name, (group, bytes_per_token) in groups.items()
        },
    )
    write_json(folder / "mix.json", info.to_dict())
    _manifest(settings, prepared, train, folder, started).write(folder)
    return info


def _write_train(
    settings: MixSettings,
    prepared: _Prepared,
    catalogues: Mapping[str, Catalogue],
    shards: ShardTable,
    fingerprint: str,
    folder: Path,
) -> DatasetInfo:
    planned = prepared.plan.sources
    numbers = {row.source.key: number for number, row in enumerate(planned)}
    # The last token of a stream is only a label, so there is one more than the budget.
    total = prepared.plan.tokens + (settings.mix.packing == "concatenate")
    expected = round(sum(row.source.documents * row.epochs for row in planned))
    chosen = 0

    def rows() -> Iterator[np.ndarray]:
        nonlocal chosen
        selections = select_documents(catalogues, planned, settings.mix.seed, total)
        for selection in progress(selections, total=len(planned), unit="source", desc="mix"):
            chosen += selection.tokens
            yield _rows(selection, catalogues, shards, numbers)

    rng = generator(settings.mix.seed, "order")
    writer = DatasetWriter(
        folder / "train",
        settings.mix.packing,
        settings.sequence_length,
        shards,
        [(row.source.component, row.source.language, row.source.category) for row in planned],
        fingerprint,
    )
    # The shuffle reads all rows before it yields the first, so `chosen` is complete by then.
    return writer.write(shuffled(rows(), expected, rng, folder), settings.samples, lambda: chosen)


def _rows(
    selection: Selection,
    catalogues: Mapping[str, Catalogue],
    shards: ShardTable,
    numbers: Mapping[tuple[str, str], int],
) -> np.ndarray:
    number = numbers[selection.component, selection.language]
    return catalogues[selection.component].rows(selection.documents, shards.base(selection.component), number)


def _write_group(
    settings: MixSettings,
    prepared: _Prepared,
    catalogues: Mapping[str, Catalogue],
    shards: ShardTable,
    fingerprint: str,
    folder: Path,
    group: ValidationGroup,
) -> DatasetInfo:
    target = folder / "validation" / group.name
    target.mkdir(parents=True)
    numbers = {key: number for number, key in enumerate(group.targets)}
    categories = {source.key: source.category for source in prepared.sources}
    selections = select_validation(catalogues, group.targets, settings.mix.seed)
    rows = np.concatenate([_rows(selection, catalogues, shards, numbers) for selection in selections])
    rows = rows[generator(settings.mix.seed, "order", group.name).permutation(len(rows))]
    packing: Packing = "concatenate"
    sources = [(*key, categories[key]) for key in group.targets]
    writer = DatasetWriter(target, packing, settings.sequence_length, shards, sources, fingerprint)
    return writer.write([rows], None)


def _bytes_per_token(group: ValidationGroup, sources: Mapping[tuple[str, str], Source]) -> float:
    """UTF-8 bytes per token of a group: its sources' ratios over all validation documents, weighted by their
    tokens in the group."""
    text = sum(
        tokens * sources[key].validation_bytes / sources[key].validation_tokens
        for key, tokens in group.targets.items()
        if tokens
    )
    return text / group.tokens


def _manifest(
    settings: MixSettings, prepared: _Prepared, train: DatasetInfo, folder: Path, started: str
) -> Manifest:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.suffix != ".partial"
    )
    with ThreadPoolExecutor(available_cores()) as threads:
        records = list(threads.map(lambda path: FileRecord.of(path, folder), files))
    inputs = [FileRecord.of(component.folder / MANIFEST_NAME, None) for component in prepared.components]
    counts: dict[str, Any] = {
        "samples": train.samples,
        "rows": train.rows,
        "tokens": train.tokens,
        "label_tokens": train.label_tokens,
        "padding": train.padding,
        "documents": train.documents,
        "cut_documents": train.cut_documents,
    }
    return Manifest(
        "mix",
        settings.recipe_sha256,
        inputs=inputs,
        outputs=records,
        counts=counts,
        versions=package_versions(("emma-recipes", "numpy", "pyarrow")),
        started=started,
        extra={"format": FORMAT, "notes": prepared.plan.notes},
    )
