"""Verifies a mix: every row, sample and index against its store and plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.manifest import MANIFEST_NAME, Manifest
from emma.recipes.schema.data import Rehydrated
from emma.tools.mix.catalogue import Catalogue, load_catalogue
from emma.tools.mix.dataset_check import DatasetCheck
from emma.tools.mix.disjoint import prove_disjoint
from emma.tools.mix.layout import RULES, MixInfo, read_dataset_info, read_mix
from emma.tools.mix.order import FALSE_ALARM, Order
from emma.tools.pack.store import open_component

__all__ = ["Verified", "verify_mix"]


@dataclass
class Verified:
    """What a verification found.

    Attributes:
        faults: what is wrong, in words.
        notes: what is worth knowing.
        samples: samples of training.
        rows: rows of all datasets.
        groups: validation groups.
        order: of the training data; None if its rows could not be read.
        furthest: the source that is furthest from its plan, in words.
    """

    faults: list[str]
    notes: list[str]
    samples: int
    rows: int
    groups: int
    order: Order | None = None
    furthest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        order = None
        if self.order is not None:
            order = {
                "tests": self.order.tests,
                "units": self.order.units,
                "unit": self.order.unit,
                "false_alarm": FALSE_ALARM,
                "too_small_to_judge": self.order.silent,
                "quantities": [
                    {
                        "name": each.name,
                        "mean": each.mean,
                        "z": each.z,
                        "least_trend": _finite(each.least_trend),
                    }
                    for each in self.order.quantities
                ],
            }
        return {**vars(self), "order": order}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def verify_mix(folder: Path, *, fingerprint: str | None = None, earlier: str | None = None) -> Verified:
    """Reads a whole mix (no `.bin`).

    Checked: manifest, sizes and checksums of every file, files that don't belong; that the store is the one
    the mix was built from; for every dataset that rows are whole documents of the right source and split,
    within their shards, that documents are repeated evenly, that samples follow each other without gaps and in the
    promised number, and that every `.idx` agrees with the rows; that every source gives what was planned, to the
    document; that the order of training is a uniform one (`order.py`); that no document is read which an earlier phase
    consumed (`disjoint.py`).

    Args:
        folder: `mix/<name>`.
        fingerprint: that of the recipe's mix; any other is a fault ...
        earlier: ... except that of the recipe's mix by the rules of an earlier version, which is a note.

    Raises:
        UserError: there is no mix.
    """
    mix = read_mix(folder)
    result = Verified(list(_file_faults(folder)), [], mix.samples, 0, len(mix.groups))
    faults = result.faults
    if fingerprint is not None and mix.fingerprint == earlier:
        result.notes.append(
            f"{folder}: was built by an earlier version's rules. A run that was begun with it continues with it; "
            "`emma mix build` would now build another mix, under another data.name or with --replace"
        )
    elif fingerprint is not None and fingerprint != mix.fingerprint:
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
            rehydrate = [Rehydrated(**entry) for entry in mix.rehydrate.get(name, ())]
            catalogues[name] = load_catalogue(component, rehydrate)
        except UserError as error:
            faults.append(str(error))
    for path in [mix.train, *(folder / "validation" / group for group in mix.groups)]:
        try:
            info = read_dataset_info(path)
            check = DatasetCheck(mix, info, catalogues)
            broken = list(check.faults())
            faults += broken
            result.rows += info.rows
            if path == mix.train and not broken:
                result.order = check.units.order()
                faults += [f"{path / 'rows.npy'}: {fault}" for fault in result.order.faults]
        except (UserError, OSError, ValueError) as error:
            faults.append(f"{path}: {error}")
    if mix.excludes and len(catalogues) == len(mix.components):
        proof = prove_disjoint(mix, catalogues)
        faults += proof.faults
        result.notes += proof.notes
    for name, entries in mix.rehydrate.items():
        said = ", ".join(f"{entry['times']} × from {entry['copies']} copies" for entry in entries)
        result.notes.append(
            f"component {name} is rehydrated: a pass reads documents {said}; every document's count is checked"
        )
    try:
        plan = _read_plan(mix)
    except (OSError, ValueError, UserError) as error:
        faults.append(f"{folder / 'plan.parquet'}: cannot be read ({error})")
    else:
        faults += plan_faults(mix, plan, catalogues)
        result.furthest = _furthest(plan)
        nothing = [
            f"{row['component']}/{row['language']}"
            for row in plan
            if row["tokens"] and not row["built_documents"]
        ]
        if nothing:
            result.notes.append(
                f"{len(nothing)} of {len(plan)} sources give nothing, because each of their documents is more than twice "
                f"what was planned: {', '.join(nothing[:12])}{', …' if len(nothing) > 12 else ''}"
            )
    return result


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


def _read_plan(mix: MixInfo) -> list[dict[str, Any]]:
    """Rows of `plan.parquet`, with what the dataset says was built (`found_...`, None where it is missing)."""
    built = {(each.component, each.language): each for each in read_dataset_info(mix.train).sources}
    rows = pq.read_table(mix.folder / "plan.parquet").to_pylist()
    for row in rows:
        source = built.get((row["component"], row["language"]))
        row["found"] = None if source is None else (source.documents, source.document_tokens)
        if mix.rules < RULES:
            row["found"] = None if source is None else (source.documents, source.tokens)
    return rows


def plan_faults(
    mix: MixInfo, plan: Sequence[Mapping[str, Any]], catalogues: Mapping[str, Catalogue]
) -> Iterator[str]:
    """Sources that give something else than planned, by more than rounding to documents allows.

    A source is off by at most half of its longest document. Exceptions: less than one document, where its cap forbids the
    nearer side or where it was put on the other side to balance the whole; a source that closes the total, where
    no other could have been put on its other side.
    """
    path = mix.folder / "plan.parquet"
    # Tokens by which a source that could have been put on its other side is off, the furthest in either direction.
    movable = {-1: 0, 1: 0}
    closing = None
    for row in plan:
        name = f"{row['component']}/{row['language']}"
        built = row["built_documents"], row["built_tokens"]
        if row["found"] is None:
            yield f"{path}: plans {name}, which the training data doesn't hold"
            continue
        if row["found"] != built:
            yield (
                f"{path}: {name} was planned with {built[0]} documents and {built[1]} tokens, but the training data "
                f"holds {row['found'][0]} and {row['found'][1]}"
            )
        catalogue = catalogues.get(row["component"])
        if catalogue is None or row["language"] not in catalogue.languages:
            continue
        longest = int(catalogue.counts.longest[catalogue.languages.index(row["language"])])
        off = built[1] - row["tokens"]
        cap = round(row["max_epochs"] * row["store_tokens"])
        rounding = row.get("rounding") or "nearest"
        if built[1] > cap:
            yield f"{path}: {name} gives {built[1]:,} tokens, but its cap is {cap:,} ({row['max_epochs']:g} epochs)"
        near_cap = built[1] + longest > cap
        if rounding == "closing":
            closing = (name, off, longest, near_cap)
            continue
        if rounding == "filled":
            allowed = abs(off) if near_cap and off >= 0 else longest
        else:
            allowed = longest if rounding == "balanced" or (off < 0 and near_cap) else longest / 2
        if rounding == "nearest" and off and not near_cap:
            movable[1 if off > 0 else -1] = max(movable[1 if off > 0 else -1], longest)
        if abs(off) > allowed:
            yield (
                f"{path}: {name} gives {built[1]:,} tokens, {abs(off):,} {'more' if off > 0 else 'fewer'} than planned "
                f"({row['tokens']:,}); whole documents explain {int(allowed):,}"
            )
    if closing is not None:
        name, off, longest, _ = closing
        # What it takes too much, a source that gives too little could have given, and the other way round.
        if abs(off) > longest + movable[-1 if off > 0 else 1] and movable[-1 if off > 0 else 1]:
            yield (
                f"{path}: {name}, which makes up the total, is {abs(off):,} tokens off its plan, more than its longest "
                f"document ({longest:,})"
            )


def _furthest(plan: Sequence[Mapping[str, Any]]) -> str | None:
    """The source that is furthest from its plan, in mean documents of its own."""

    def documents(row: Mapping[str, Any]) -> float:
        mean = row["store_tokens"] / row["store_documents"] if row["store_documents"] else 1.0
        return abs(row["built_tokens"] - row["tokens"]) / max(mean, 1.0)

    planned = [row for row in plan if row["tokens"]]
    if not planned:
        return None
    row = max(planned, key=documents)
    return (
        f"{row['component']}/{row['language']}, {row['built_tokens'] - row['tokens']:+,} of {row['tokens']:,} tokens "
        f"({documents(row):.2f} of its mean document)"
    )
