"""Builds a mix from a store: choose, shuffle, write. No `.bin` is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest, now, package_versions
from emma.base.processes import available_cores
from emma.base.progress import progress
from emma.base.staging import WrittenMeanwhileError, staged_folder
from emma.base.threads import in_order
from emma.base.writers import sole_writer
from emma.recipes.schema.data import Consumed
from emma.tools.mix.catalogue import Catalogue, Part, load_catalogues
from emma.tools.mix.fit import PACKED_ROWS, TooManyError, choose, expected_rows, pack
from emma.tools.mix.layout import FORMAT, ROW, RULES, DatasetInfo, MixInfo, read_mix
from emma.tools.mix.needs import needs_of
from emma.tools.mix.plan import MixPlan, ValidationGroup, realised
from emma.tools.mix.prepare import MixSettings, Prepared, fingerprint_of, leaves_out, prepare, rehydrated
from emma.tools.mix.rehydrate import with_reads
from emma.tools.mix.select import Choice, generator, select_validation
from emma.tools.mix.shuffle import BUCKET_ROWS, Shuffle, buckets_of
from emma.tools.mix.sources import Source
from emma.tools.mix.writer import DatasetWriter, ShardTable, SourceCounts, Stream

__all__ = ["build_mix", "sources_of_nothing"]


def build_mix(settings: MixSettings, *, replace: bool = False, statistics: Sequence[Path] = ()) -> MixInfo:
    """Builds a mix, unless the same mix is already there. Waits while another process builds it.

    Args:
        settings: what to build.
        replace: replace another mix in the folder.
        statistics: published word counts that decide the categories; by default they are estimated.

    Raises:
        UserError: the plan fails, or another mix is in the folder.
    """
    started = now()
    prepared = prepare(settings, statistics)
    prepared.plan.check()
    fingerprint = fingerprint_of(settings, prepared)
    earlier = fingerprint_of(settings, prepared, rules=1)
    if present := _present(settings, fingerprint, earlier, replace=replace):
        return present
    needs_of(settings, prepared).check(settings.folder)
    with sole_writer(settings.folder, wait=True) as lock:
        if present := _present(settings, fingerprint, earlier, replace=replace):
            return present
        # The folder holds no mix, or one that may be replaced.
        try:
            with staged_folder(settings.folder, overwrite=True, lock=lock) as folder:
                info = _write(settings, prepared, fingerprint, folder, started)
        except WrittenMeanwhileError:  # on another machine
            if present := _present(settings, fingerprint, earlier, replace=True):
                return present
            raise
    return MixInfo(**{**vars(info), "folder": settings.folder})


def sources_of_nothing(mix: MixInfo) -> list[str]:
    """Sources that a mix reads nothing of though something was planned, as `component/language`: each of their documents
    is more than twice what was planned."""
    columns = ["component", "language", "tokens", "built_documents"]
    rows = pq.read_table(mix.folder / "plan.parquet", columns=columns).to_pylist()
    return [
        f"{row['component']}/{row['language']}"
        for row in rows
        if row["tokens"] and not row["built_documents"]
    ]


def _present(settings: MixSettings, fingerprint: str, earlier: str, *, replace: bool) -> MixInfo | None:
    """The mix with the fingerprint, if it is in its folder; None also if the folder holds another one that
    may be replaced.

    Raises:
        UserError: another one is there and may not be replaced.
    """
    if not (settings.folder / MANIFEST_NAME).is_file():
        return None
    present = read_mix(settings.folder)
    if present.fingerprint == fingerprint:
        return present
    if replace:
        return None
    if present.fingerprint == earlier:
        raise UserError(
            f"{settings.folder}: holds this recipe's mix as an earlier version built it; this version would choose and "
            "order its documents otherwise (docs/mix.md). A run that was begun with it continues with it and needs no "
            "build. For a new run, give data.name another value, or call with --replace"
        )
    raise UserError(
        f"{settings.folder}: holds another mix (fingerprint {present.fingerprint[:12]}, {present.samples} "
        f"samples; this recipe's is {fingerprint[:12]}, {settings.samples} samples). A run that was begun "
        "with it needs it. Give data.name another value, or call with --replace"
    )


def _write(
    settings: MixSettings, prepared: Prepared, fingerprint: str, folder: Path, started: str
) -> MixInfo:
    catalogues = prepared.catalogues or load_catalogues(prepared.components)
    shards = ShardTable(prepared.components)
    (folder / "train").mkdir(parents=True)
    plan, choice, train = _write_train(settings, prepared, catalogues, shards, fingerprint, folder)
    sources = {source.key: source for source in prepared.sources}
    groups = {
        group.name: (
            _write_group(settings, prepared, catalogues, shards, fingerprint, folder, group),
            _bytes_per_token(group, sources),
        )
        for group in prepared.plan.groups
    }
    rounding = {key: each.rounding for key, each in choice.rounded.items()}
    built = realised(plan, train, rounding)
    rehydrate = rehydrated(settings.mix)
    if rehydrate:
        built = with_reads(built, choice)
    pq.write_table(built, folder / "plan.parquet", compression="zstd")
    first = prepared.components[0]
    info = MixInfo(
        rules=RULES,
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
        rehydrate={name: [entry.model_dump() for entry in entries] for name, entries in rehydrate.items()},
        consumed=bool(rehydrate and leaves_out(settings.mix)),
        excludes=[_exclude(settings.folder, entry) for entry in settings.mix.exclude_consumed],
    )
    write_json(folder / "mix.json", info.to_dict())
    _manifest(settings, prepared, plan, train, folder, started).write(folder)
    return info


def _exclude(folder: Path, entry: Consumed) -> dict[str, Any]:
    earlier = read_mix(Path(entry.mix))
    return {
        "mix": os.path.relpath(earlier.folder.resolve(), folder.resolve()),
        "fingerprint": earlier.fingerprint,
        "samples": earlier.samples if entry.samples is None else entry.samples,
    }


def _write_train(
    settings: MixSettings,
    prepared: Prepared,
    catalogues: Mapping[str, Catalogue],
    shards: ShardTable,
    fingerprint: str,
    folder: Path,
) -> tuple[MixPlan, Choice, DatasetInfo]:
    spare = 0
    while True:
        plan, choice = choose(settings, prepared, catalogues, spare)
        try:
            return (
                plan,
                choice,
                _write_choice(settings, plan, choice, catalogues, shards, fingerprint, folder),
            )
        except TooManyError as error:  # only where buckets were packed worse than estimated
            spare += 2 * error.samples


def _write_choice(
    settings: MixSettings,
    plan: MixPlan,
    choice: Choice,
    catalogues: Mapping[str, Catalogue],
    shards: ShardTable,
    fingerprint: str,
    folder: Path,
) -> DatasetInfo:
    sources = [(row.source.component, row.source.language, row.source.category) for row in plan.sources]
    packing = settings.mix.packing

    def writer(counts: SourceCounts | None = None) -> DatasetWriter:
        return DatasetWriter(
            folder / "train", packing, settings.sequence_length, shards, sources, fingerprint, counts
        )

    def shuffle(name: str, bucket_rows: int) -> Shuffle:
        buckets = buckets_of(expected_rows(plan), bucket_rows)
        return Shuffle(folder / name, buckets, len(shards), partial(generator, settings.mix.seed, name))

    numbers = {row.source.key: number for number, row in enumerate(plan.sources)}
    with shuffle("documents", BUCKET_ROWS if packing == "concatenate" else PACKED_ROWS) as documents:
        last = _put_rows(choice, catalogues, shards, numbers, documents)
        if packing == "concatenate":
            return writer().write(Stream(last, len(shards), documents))
        documents.put((len(catalogues),), last)
        counts = SourceCounts(len(sources))
        with shuffle("samples", BUCKET_ROWS) as samples:
            pack(documents, samples, settings, shards.components[0].dtype.itemsize, counts)
            return writer(counts).write(samples)


def _put_rows(
    choice: Choice,
    catalogues: Mapping[str, Catalogue],
    shards: ShardTable,
    numbers: Mapping[tuple[str, str], int],
    documents: Shuffle,
) -> np.ndarray:
    """Puts all documents but the closing source's last one, whose row (`ROW` [0 or 1]) it returns."""
    last = np.zeros(0, ROW)
    for place, component in enumerate(shards.components):
        catalogue = catalogues[component.name]
        names = ((component.name, language) for language in catalogue.languages)
        source = np.array([numbers.get(name, 0) for name in names], np.uint16)
        rows_of = partial(_rows_of, catalogue, source, shards.base(component.name))
        put = partial(_put_part, documents, catalogue, choice, rows_of, place)
        numbered = list(enumerate(catalogue.parts))
        for _ in progress(in_order(put, numbered), total=len(numbered), unit="part", desc=component.name):
            pass
        closing = choice.closing
        if closing is not None and closing.key[0] == component.name:
            part = next(part for part in catalogue.parts if part.start <= closing.document < part.stop)
            last = rows_of(part, np.array([closing.document - part.start]))
            last["tokens"] = closing.tokens
    return last


def _rows_of(
    catalogue: Catalogue, source: np.ndarray, shard_base: int, part: Part, within: np.ndarray
) -> np.ndarray:
    """Rows of documents of a part, given by their places in it; `source` numbers the catalogue's languages."""
    tokens = catalogue.tokens[part.start : part.stop]
    starts = np.cumsum(tokens, dtype=np.int64) - tokens
    rows = np.empty(len(within), ROW)
    rows["offset"] = part.offset + starts[within] * catalogue.component.dtype.itemsize
    rows["tokens"] = tokens[within]
    rows["shard"] = shard_base + part.shard
    rows["source"] = source[catalogue.language[part.start : part.stop][within]]
    return rows


def _put_part(
    documents: Shuffle,
    catalogue: Catalogue,
    choice: Choice,
    rows_of: Callable[[Part, np.ndarray], np.ndarray],
    place: int,
    numbered: tuple[int, Part],
) -> None:
    """Puts a part's documents, each as often as it is read, in pieces of limited size."""
    number, part = numbered
    ends = np.cumsum(choice.times(catalogue, part))
    for start in range(0, int(ends[-1]), BUCKET_ROWS):
        reads = np.arange(start, min(start + BUCKET_ROWS, int(ends[-1])))
        documents.put((place, number, start), rows_of(part, np.searchsorted(ends, reads, side="right")))


def _write_group(
    settings: MixSettings,
    prepared: Prepared,
    catalogues: Mapping[str, Catalogue],
    shards: ShardTable,
    fingerprint: str,
    folder: Path,
    group: ValidationGroup,
) -> DatasetInfo:
    target = folder / "validation" / group.name
    target.mkdir(parents=True)
    categories = {source.key: source.category for source in prepared.sources}
    rows = np.concatenate(
        [
            catalogues[selection.component].rows(
                selection.documents, shards.base(selection.component), number
            )
            for number, selection in enumerate(
                select_validation(catalogues, group.targets, settings.mix.validation_seed)
            )
        ]
    )
    rows = rows[generator(settings.mix.validation_seed, "order", group.name).permutation(len(rows))]
    sources = [(*key, categories[key]) for key in group.targets]
    writer = DatasetWriter(target, "concatenate", settings.sequence_length, shards, sources, fingerprint)
    return writer.write(Stream(rows, len(shards)))


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
    settings: MixSettings,
    prepared: Prepared,
    plan: MixPlan,
    train: DatasetInfo,
    folder: Path,
    started: str,
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
        extra={"format": FORMAT, "notes": plan.notes},
    )
