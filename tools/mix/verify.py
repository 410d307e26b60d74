"""Verifies a mix: every row, sample and index against its store and plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME, Manifest
from emma.base.progress import progress
from emma.tools.mix.catalogue import Catalogue, load_catalogue
from emma.tools.mix.index import read_index
from emma.tools.mix.layout import ROW, DatasetInfo, MixInfo, read_dataset_info, read_mix
from emma.tools.pack.store import Component, open_component

__all__ = ["verify_mix"]

_CHUNK = 1 << 22


def verify_mix(folder: Path, *, fingerprint: str | None = None) -> tuple[list[str], dict[str, int]]:
    """Reads a whole mix (no `.bin`); returns its faults and what was checked.

    Checked: manifest, sizes and checksums of every file, files that don't belong; that the store is the one
    the mix was built from; for every dataset that rows are whole documents of the right source and split,
    within their shards, that documents are repeated evenly and counts are the plan's, that samples follow
    each other without gaps and in the promised number, and that every `.idx` agrees with the rows.

    Args:
        folder: `mix/<name>`.
        fingerprint: that of the recipe's mix; any other is a fault.

    Raises:
        UserError: there is no mix.
    """
    mix = read_mix(folder)
    faults = list(_file_faults(folder))
    if fingerprint is not None and fingerprint != mix.fingerprint:
        faults.append(
            f"{folder / 'mix.json'}: fingerprint {mix.fingerprint[:12]}, but this recipe's mix would be "
            f"{fingerprint[:12]}: it was built from another recipe or store"
        )
    catalogues = {}
    for name, expected in mix.components.items():
        try:
            component = open_component(folder / mix.store / name)
            if component.fingerprint != expected:
                faults.append(
                    f"{component.folder}: fingerprint {component.fingerprint[:12]}, but the mix was built from "
                    f"{expected[:12]}: this is another store"
                )
                continue
            catalogues[name] = load_catalogue(component)
        except UserError as error:
            faults.append(str(error))
    seen = {"samples": mix.samples, "rows": 0, "groups": len(mix.groups)}
    for path in [mix.train, *(folder / "validation" / group for group in mix.groups)]:
        try:
            info = read_dataset_info(path)
            check = _DatasetCheck(mix, info, catalogues)
            faults += list(check.faults())
            seen["rows"] += info.rows
        except (UserError, OSError, ValueError) as error:
            faults.append(f"{path}: {error}")
    faults += list(_plan_faults(mix))
    return faults, seen


def _file_faults(folder: Path) -> Iterator[str]:
    manifest = Manifest.read(folder)
    if manifest.stage != "mix":
        yield f"{folder / MANIFEST_NAME}: of the stage {manifest.stage!r}, not a mix"
    yield from manifest.check_outputs(folder, contents=True)
    listed = {record.path for record in manifest.outputs} | {MANIFEST_NAME}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or (path.is_file() and name not in listed):
            if path.is_symlink() and name.removesuffix(".bin") + ".idx" in listed:
                continue
            yield f"{path}: not in the manifest: an addition from elsewhere, or the manifest is stale"


def _plan_faults(mix: MixInfo) -> Iterator[str]:
    path = mix.folder / "plan.parquet"
    try:
        plan = pq.read_table(path).to_pylist()
        built = {(s.component, s.language): s for s in read_dataset_info(mix.train).sources}
    except (OSError, ValueError, UserError) as error:
        yield f"{path}: cannot be read ({error})"
        return
    for row in plan:
        source = built.get((row["component"], row["language"]))
        name = f"{row['component']}/{row['language']}"
        if source is None:
            yield f"{path}: plans {name}, which the training data doesn't hold"
        elif (source.documents, source.tokens) != (row["built_documents"], row["built_tokens"]):
            yield (
                f"{path}: {name} was planned with {row['built_documents']} documents and "
                f"{row['built_tokens']} tokens, but the training data holds {source.documents} and "
                f"{source.tokens}"
            )


class _DatasetCheck:
    """Faults of one dataset folder."""

    def __init__(self, mix: MixInfo, info: DatasetInfo, catalogues: dict[str, Catalogue]) -> None:
        self.mix, self.info, self.catalogues = mix, info, catalogues
        self.folder = info.folder
        self.train = info.folder == mix.train
        self.rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        self.samples = np.load(self.folder / "samples.npy", mmap_mode="r")

    def faults(self) -> Iterator[str]:
        mix, info = self.mix, self.info
        if info.mix_fingerprint != mix.fingerprint:
            yield f"{self.folder / 'dataset.json'}: belongs to another mix (fingerprint {info.mix_fingerprint[:12]})"
        promised = mix.samples if self.train else mix.groups[self.folder.name]["samples"]
        if (info.samples, info.sequence_length) != (promised, mix.sequence_length):
            yield (
                f"{self.folder / 'dataset.json'}: {info.samples} samples of {info.sequence_length} tokens, but "
                f"mix.json promises {promised} of {mix.sequence_length}"
            )
        if self.rows.dtype != ROW or len(self.rows) != info.rows:
            yield f"{self.folder / 'rows.npy'}: {len(self.rows)} rows of {self.rows.dtype}, but dataset.json says {info.rows}"
            return
        broken = list(self._row_faults())
        yield from broken
        if not broken:
            yield from self._sample_faults()
            yield from self._index_faults()

    def _row_faults(self) -> Iterator[str]:
        """Rows within shards, at documents, of the right source and split; counts as recorded; repeated
        evenly."""
        info, path = self.info, self.folder / "rows.npy"
        width = np.dtype(info.dtype).itemsize
        sizes = np.array([shard.bytes for shard in info.shards], np.int64)
        counts = np.zeros(len(info.sources), np.int64)
        tokens = np.zeros(len(info.sources), np.int64)
        times = {name: np.zeros(len(c.tokens), np.int32) for name, c in self.catalogues.items()}
        for start in progress(
            range(0, len(self.rows), _CHUNK), unit="chunk", desc=f"verify {self.folder.name}"
        ):
            rows = np.array(self.rows[start : start + _CHUNK])
            if (rows["shard"] >= len(sizes)).any() or (rows["source"] >= len(info.sources)).any():
                yield f"{path}: rows from {start} name shards or sources that dataset.json doesn't list"
                return
            ends = rows["offset"] + rows["tokens"].astype(np.int64) * width
            wrong = (
                (rows["offset"] < 0)
                | (rows["tokens"] < 1)
                | (rows["offset"] % width != 0)
                | (ends > sizes[rows["shard"]])
            )
            if wrong.any():
                row = start + int(np.argmax(wrong))
                yield (
                    f"{path}: row {row} takes {int(self.rows['tokens'][row])} tokens at byte "
                    f"{int(self.rows['offset'][row])} of {info.shards[int(self.rows['shard'][row])].name}, "
                    f"which has {int(sizes[self.rows['shard'][row]])} bytes"
                )
                return
            counts += np.bincount(rows["source"], minlength=len(counts))
            tokens += np.bincount(rows["source"], rows["tokens"], len(tokens)).astype(np.int64)
            yield from self._document_faults(rows, start, times)
        for number, source in enumerate(info.sources):
            if (source.rows, source.tokens) != (int(counts[number]), int(tokens[number])):
                yield (
                    f"{path}: {source.component}/{source.language} has {int(counts[number])} rows and "
                    f"{int(tokens[number])} tokens, but dataset.json says {source.rows} and {source.tokens}"
                )
        if info.packing == "concatenate":
            yield from self._repetition_faults(times)

    def _document_faults(self, rows: np.ndarray, first: int, times: dict[str, np.ndarray]) -> Iterator[str]:
        info, path = self.info, self.folder / "rows.npy"
        width = np.dtype(info.dtype).itemsize
        for number in np.unique(rows["shard"]).tolist():
            shard = info.shards[number]
            catalogue = self.catalogues.get(shard.component)
            if catalogue is None:
                continue  # the store's fault is already reported
            mine = np.flatnonzero(rows["shard"] == number)
            offsets, lengths = rows["offset"][mine], rows["tokens"][mine].astype(np.int64)
            at = catalogue.documents_at(shard.number, offsets)
            whole = catalogue.rows(at, 0, 0)
            begin = (offsets - whole["offset"]) // width
            fits = begin + lengths <= whole["tokens"]
            if info.packing == "concatenate":
                last = first + mine == len(self.rows) - 1
                fits &= (begin == 0) & ((lengths == whole["tokens"]) | last)
            if not fits.all():
                row = first + int(mine[np.argmin(fits)])
                yield f"{path}: row {row} is not a whole document of {shard.name}"
                continue
            languages = [source.language for source in info.sources]
            codes = {name: code for code, name in enumerate(catalogue.languages)}
            code_of_source = np.array([codes.get(language, -1) for language in languages], np.int64)
            right = code_of_source[rows["source"][mine]] == catalogue.language[at]
            if not right.all():
                row = first + int(mine[np.argmin(right)])
                document = int(at[np.argmin(right)])
                yield (
                    f"{path}: row {row} counts as {languages[int(self.rows['source'][row])]}, but its document "
                    f"is {catalogue.languages[int(catalogue.language[document])]}"
                )
            if (catalogue.validation[at] == self.train).any():
                yield f"{path}: rows from {first} hold documents of the other split"
            np.add.at(times[shard.component], at, 1)

    def _repetition_faults(self, times: dict[str, np.ndarray]) -> Iterator[str]:
        """Documents of a source are read equally often, to within one."""
        if not self.train:
            return
        for name, counts in times.items():
            catalogue = self.catalogues[name]
            for code, language in enumerate(catalogue.languages):
                mine = (catalogue.language == code) & ~catalogue.validation
                # Documents that an earlier phase consumed, or that a partial pass left out, are never read.
                seen = counts[mine][counts[mine] > 0]
                if len(seen) and int(seen.max()) - int(seen.min()) > 1:
                    yield (
                        f"{self.folder / 'rows.npy'}: documents of {name}/{language} are seen "
                        f"{int(seen.min())} to {int(seen.max())} times"
                    )

    def _sample_faults(self) -> Iterator[str]:
        """Samples follow each other without gaps; concatenated ones are one sequence length apart."""
        info, path = self.info, self.folder / "samples.npy"
        if self.samples.shape != (info.samples + 1, 2):
            yield f"{path}: shape {self.samples.shape}, but dataset.json says {info.samples} samples"
            return
        length = info.sequence_length
        ends = np.cumsum(self.rows["tokens"], dtype=np.int64)
        row, into = np.array(self.samples[:, 0]), np.array(self.samples[:, 1])
        last = len(self.rows) - (info.packing == "concatenate")
        if (row < 0).any() or (row > last).any() or row[-1] != last:
            yield f"{path}: samples begin at rows that don't exist, or don't reach the last row"
            return
        begins = np.concatenate([[0], ends])[row] + into
        spans = np.diff(begins)
        if info.packing == "concatenate":
            wrong = spans[:-1] != length
            if begins[0] != 0 or wrong.any() or not 0 < spans[-1] <= length or begins[-1] != ends[-1] - 1:
                sample = int(np.argmax(wrong)) if wrong.any() else len(spans) - 1
                yield f"{path}: sample {sample} spans {int(spans[sample])} tokens, but a sample has {length}"
            if self.train and spans[-1] != length:
                yield f"{path}: the last sample spans {int(spans[-1])} tokens, but training has no partial samples"
            labels = int(spans.sum())
        else:
            if into.any() or (spans < 2).any() or (spans > length + 1).any():
                sample = int(np.argmax((spans < 2) | (spans > length + 1)))
                yield f"{path}: sample {sample} holds {int(spans[sample])} tokens, but there is room for {length + 1}"
            labels = int(spans.sum()) - len(spans)
        if labels != info.label_tokens:
            yield f"{path}: {labels} labels, but dataset.json says {info.label_tokens}"

    def _index_faults(self) -> Iterator[str]:
        """Every `.idx` holds the rows of its shard in their order, beside a link to that shard."""
        info = self.info
        shard_of = np.array(self.rows["shard"])
        for number, shard in enumerate(info.shards):
            mine = np.flatnonzero(shard_of == number)
            if len(mine) != shard.rows:
                yield f"{self.folder / 'dataset.json'}: {shard.name} has {len(mine)} rows, not {shard.rows}"
            if not len(mine):
                continue
            path = self.folder / f"{shard.name}.idx"
            yield from self._link_faults(number)
            try:
                dtype, lengths, offsets, bounds = read_index(path)
            except (UserError, OSError) as error:
                yield f"{path}: {error}"
                continue
            if dtype != np.dtype(info.dtype):
                yield f"{path}: says that tokens are {dtype}, but they are {info.dtype}"
            same = len(lengths) == len(mine)
            same = same and np.array_equal(lengths, self.rows["tokens"][mine])
            same = same and np.array_equal(offsets, self.rows["offset"][mine])
            if not same or not np.array_equal(bounds, np.arange(len(mine) + 1)):
                yield f"{path}: doesn't hold the rows of {shard.name} in their order"

    def _link_faults(self, number: int) -> Iterator[str]:
        shard = self.info.shards[number]
        link = self.folder / f"{shard.name}.bin"
        catalogue = self.catalogues.get(shard.component)
        component: Component | None = catalogue.component if catalogue is not None else None
        if (fault := shard.fault(self.folder)) is not None:
            yield fault
        elif component is not None and link.resolve() != component.shards[shard.number].bin_path.resolve():
            yield f"{link}: leads to {link.resolve()}, not to the store's {component.shards[shard.number].bin_path}"
