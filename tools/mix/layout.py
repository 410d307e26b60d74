"""A mix on disk, and readers of its descriptions (no torch here).

    mix/<name>/mix.json  plan.parquet  manifest.json  train/  validation/<group>/

Each dataset folder (`train/`, `validation/<group>/`) holds

- `rows.npy`: the documents in the order in which they are read, `ROW` records;
- `samples.npy`: int64 [samples + 1, 2], where each sample begins: (row, tokens into the row);
- `dataset.json`: sizes, the shards and the sources that rows refer to;
- `<component>-NNNNN.idx` and a link `.bin` for every shard: a plain Megatron dataset of that shard's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emma.base.errors import UserError
from emma.base.files import read_json

__all__ = [
    "FORMAT",
    "ROW",
    "RULES",
    "DatasetInfo",
    "MixInfo",
    "ShardInfo",
    "SourceInfo",
    "check_shards",
    "read_dataset_info",
    "read_mix",
]

FORMAT = 2
RULES = 2
"""Version of the rules by which documents are chosen and put in order. A mix of an earlier version has the same format and
is read like any other, but the same recipe now gives another mix."""
ROW = np.dtype([("offset", "<i8"), ("tokens", "<i4"), ("shard", "<u2"), ("source", "<u2")])
"""One row of `rows.npy`: byte offset into the shard, number of tokens, index of the shard and of the source
in `dataset.json`."""

Packing = Literal["concatenate", "best_fit"]


@dataclass(frozen=True)
class ShardInfo:
    """A shard of the store that a dataset reads: `name` is the prefix of its `.idx` and `.bin` in the
    folder."""

    name: str
    component: str
    number: int
    bytes: int
    rows: int

    def fault(self, folder: Path) -> str | None:
        """Fault of the dataset's link to it, judged by the file's size; None if there is none."""
        link = folder / f"{self.name}.bin"
        if not link.is_file():
            return f"{link}: leads nowhere ({link.resolve()}); the store has moved"
        if (size := link.stat().st_size) != self.bytes:
            return f"{link} → {link.resolve()}: {size} bytes, but the shard had {self.bytes}"
        return None


@dataclass(frozen=True)
class SourceInfo:
    """A source in a dataset: how many of its documents (counted each time they are read), rows and tokens the
    dataset reads. A document is one row, unless best-fit packing had to cut it."""

    component: str
    language: str
    category: str | None
    documents: int
    rows: int
    tokens: int

    @property
    def document_tokens(self) -> int:
        """Tokens of the documents: two pieces of one share a token, which is the last label of one and the first input
        of the next."""
        return self.tokens - (self.rows - self.documents)


@dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`.

    `samples` sequences of `sequence_length` input tokens; `label_tokens` is the number of tokens predicted in
    one pass (samples × sequence length without padding); `tokens` is the length of all rows; `cut_documents`
    of all `documents` are in more than one sample.
    """

    folder: Path
    packing: Packing
    sequence_length: int
    samples: int
    rows: int
    documents: int
    cut_documents: int
    tokens: int
    label_tokens: int
    dtype: str
    vocab_size: int
    shards: list[ShardInfo]
    sources: list[SourceInfo]
    mix_fingerprint: str

    @property
    def padding(self) -> float:
        """Share of input positions that are padding."""
        return 1 - self.label_tokens / (self.samples * self.sequence_length) if self.samples else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Content of `dataset.json`."""
        value = {key: item for key, item in vars(self).items() if key not in ("folder", "shards", "sources")}
        return {
            "format": FORMAT,
            **value,
            "shards": [vars(shard) for shard in self.shards],
            "sources": [vars(source) for source in self.sources],
        }


@dataclass(frozen=True)
class MixInfo:
    """`mix.json`: what a run needs to know about its mix.

    `fingerprint` identifies the content: budget, plan, seed, packing and store. `tokens` is samples ×
    sequence length. `groups` has the counts of each validation group, and `bytes_per_token` of its text. `rules` is the
    version of the rules by which documents were chosen (`RULES`). `rehydrate` is the recipe's, by component, and `consumed` then
    says whether documents of earlier phases were left out; mixes that rehydrate nothing have neither. `excludes` names the
    earlier phases: each one's mix (relative to this folder), its fingerprint, and how many samples were consumed.
    """

    folder: Path
    name: str
    fingerprint: str
    packing: Packing
    sequence_length: int
    samples: int
    tokens: int
    seed: int
    vocab_size: int
    begin_id: int | None
    end_id: int
    tokenizer_sha256: str
    store: str
    components: dict[str, str]
    shares: dict[str, float]
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    rules: int = 1
    rehydrate: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    consumed: bool = False
    excludes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def train(self) -> Path:
        """Folder of the training dataset."""
        return self.folder / "train"

    def validation(self, group: str) -> Path:
        """Folder of a validation group.

        Raises:
            UserError: the mix has no such group.
        """
        if group not in self.groups:
            raise UserError(
                f"{self.folder}: no validation group {group!r}; there are {', '.join(self.groups) or 'none'}"
            )
        return self.folder / "validation" / group

    def to_dict(self) -> dict[str, Any]:
        """Content of `mix.json`."""
        hidden = {"folder"} if self.rehydrate else {"folder", "rehydrate", "consumed"}
        hidden |= set() if self.excludes else {"excludes"}
        return {"format": FORMAT, **{key: value for key, value in vars(self).items() if key not in hidden}}


def read_mix(folder: Path) -> MixInfo:
    """Reads `mix.json`.

    Raises:
        UserError: there is no finished mix of this version.
    """
    path = Path(folder) / "mix.json"
    if not path.is_file():
        raise UserError(f"{path}: no such mix; run `emma mix build` first")
    value = _checked(path)
    return MixInfo(folder=Path(folder), **value)


def check_shards(mix: MixInfo) -> None:
    """Compares the sizes of the mix's shards with those it was built from.

    Raises:
        UserError: one is missing, truncated or rewritten.
    """
    for folder in (mix.train, *(mix.validation(group) for group in mix.groups)):
        # A dataset's folder has no link to a shard from which it reads no rows.
        for shard in (shard for shard in read_dataset_info(folder).shards if shard.rows):
            if (fault := shard.fault(folder)) is not None:
                raise UserError(
                    f"{fault}. Fix: `emma pack verify`, put the store's file back or pack it again, then "
                    "`emma mix verify`"
                )


def read_dataset_info(folder: Path) -> DatasetInfo:
    """Reads a dataset folder's `dataset.json`.

    Raises:
        UserError: there is no dataset of this version.
    """
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise UserError(f"{path}: no such dataset; run `emma mix build` first")
    value = _checked(path)
    value["shards"] = [ShardInfo(**shard) for shard in value["shards"]]
    value["sources"] = [SourceInfo(**source) for source in value["sources"]]
    return DatasetInfo(folder=Path(folder), **value)


def _checked(path: Path) -> dict[str, Any]:
    value: Mapping[str, Any] = read_json(path)
    if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
        raise UserError(f"{path}: not part of a mix of format {FORMAT}; build the mix again")
    return dict(value)
