"""Training samples of a mix, read from its files as docs/mix.md describes them, without the code that wrote them
or that training reads them with.

`train/rows.npy` lists documents (or pieces of them) in reading order, `train/samples.npy` where each sample
begins. A row's place in its shard stands there and a second time in the shard's Megatron index `<shard>.idx`;
both must agree, and the files must be those that `manifest.json` lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, sha256_file

__all__ = ["NOT_COUNTED", "Sample", "Samples"]

NOT_COUNTED = -100
"""Label of a position whose loss does not count: padding."""

_FORMAT = 2
_TOKEN_TYPES = {4: "<i4", 8: "<u2"}  # type codes of Megatron's .idx
_IDX_HEADER = np.dtype(
    [("magic", "S9"), ("version", "<u8"), ("type", "u1"), ("rows", "<u8"), ("boundaries", "<u8")]
)


@dataclass(frozen=True)
class Sample:
    """One sequence, each array int64 [sequence length].

    Attributes:
        tokens: what the model sees; 0 where there is padding.
        labels: the token after each of them; `NOT_COUNTED` where there is none.
        documents: a number for each position, equal within a document (or a piece of one).
    """

    tokens: np.ndarray
    labels: np.ndarray
    documents: np.ndarray


class Samples:
    """The training samples of a mix.

    Args:
        mix: the mix's folder.
        length: the recipe's sequence length, in tokens.

    Raises:
        UserError: no mix of a known format, or one of another length.
    """

    def __init__(self, mix: Path, length: int) -> None:
        self.mix, self.folder, self.length = mix, mix / "train", length
        facts = read_json(self.folder / "dataset.json")
        if facts["format"] != _FORMAT or facts["sequence_length"] != length:
            raise UserError(
                f"{self.folder / 'dataset.json'}: format {facts['format']}, length {facts['sequence_length']}; "
                f"{_FORMAT} and {length} are expected. Fix: build the mix again for this run"
            )
        self.fingerprint = str(facts["mix_fingerprint"])
        self.whole_documents = facts["packing"] == "best_fit"
        self.shards = [str(shard["name"]) for shard in facts["shards"]]
        self.rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        self.starts = np.load(self.folder / "samples.npy", mmap_mode="r")
        self._tokens: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.starts) - 1

    def check_files(self, samples: int) -> None:
        """Holds the files against the manifest, and the rows of the first `samples` samples against the
        shards' indices.

        Raises:
            CheckFailedError: a file has changed since the mix was built, or the two records of a row differ.
        """
        listed = {record["path"]: record for record in read_json(self.mix / "manifest.json")["outputs"]}
        for name in ("rows.npy", "samples.npy", "dataset.json"):
            path = self.folder / name
            if f"sha256:{sha256_file(path)}" != listed[f"train/{name}"]["checksum"]:
                raise CheckFailedError(
                    f"{path}: not the file that {self.mix / 'manifest.json'} lists. Fix: build the mix again, "
                    "and train on it again"
                )
        end_row, into = self.starts[samples].tolist()
        rows = np.asarray(self.rows[: end_row + (into > 0)])
        for number in np.unique(rows["shard"]).tolist():
            mine = np.flatnonzero(rows["shard"] == number)
            lengths, offsets, _ = self._index(number)
            same = (lengths[: len(mine)] == rows["tokens"][mine]) & (
                offsets[: len(mine)] == rows["offset"][mine]
            )
            if not same.all():
                row = int(mine[np.flatnonzero(~same)[0]])
                raise CheckFailedError(
                    f"{self.folder}: row {row} of rows.npy is not where {self.shards[number]}.idx has it. "
                    "Fix: `emma mix verify`, then build the mix again"
                )

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, which is read at step `index // global batch + 1`."""
        (row, into), (end, end_into) = self.starts[index].tolist(), self.starts[index + 1].tolist()
        if self.whole_documents:
            pieces = [(number, 0, int(self.rows["tokens"][number])) for number in range(row, end)]
        else:
            # One stream: the sample's tokens and the first one of the next sample, its last label.
            stop = {end: end_into + 1}
            pieces = [
                (number, into if number == row else 0, stop.get(number, int(self.rows["tokens"][number])))
                for number in range(row, end + 1)
            ]
        text = np.concatenate([self._read(number, begin, stop) for number, begin, stop in pieces])
        lengths = [stop - begin for _, begin, stop in pieces]
        if len(text) > self.length + 1 or (not self.whole_documents and len(text) != self.length + 1):
            raise UserError(
                f"{self.folder}: sample {index} has {len(text)} tokens, {self.length} and one label were built. "
                "Fix: `emma mix verify`"
            )
        padding = self.length + 1 - len(text)
        documents = np.repeat(np.arange(len(pieces) + 1), [*lengths, padding])[: self.length]
        tokens = np.concatenate([text, np.zeros(padding, np.int64)])[: self.length]
        labels = np.concatenate([text[1:], np.full(padding, NOT_COUNTED)])
        return Sample(tokens, labels, documents)

    def _read(self, row: int, begin: int, stop: int) -> np.ndarray:
        record = self.rows[row]
        number = int(record["shard"])
        if number not in self._tokens:
            path = self.folder / f"{self.shards[number]}.bin"
            if not path.is_file():
                raise UserError(
                    f"{path}: leads nowhere. Fix: put the token store back, or build the mix again"
                )
            self._tokens[number] = np.memmap(path, self._index(number)[2], "r")
        tokens = self._tokens[number]
        first = int(record["offset"]) // tokens.dtype.itemsize
        return np.asarray(tokens[first + begin : first + stop], np.int64)

    def _index(self, number: int) -> tuple[np.ndarray, np.ndarray, np.dtype[Any]]:
        """Tokens (int32) and byte offsets (int64) of a shard's rows in reading order, and the type of its
        tokens."""
        path = self.folder / f"{self.shards[number]}.idx"
        header = np.fromfile(path, _IDX_HEADER, 1)
        if not len(header) or header["magic"][0] != b"MMIDIDX":
            raise UserError(f"{path}: not a Megatron index. Fix: build the mix again")
        rows, first = int(header["rows"][0]), _IDX_HEADER.itemsize
        lengths = np.memmap(path, "<i4", "r", first, rows)
        offsets = np.memmap(path, "<i8", "r", first + 4 * rows, rows)
        return lengths, offsets, np.dtype(_TOKEN_TYPES[int(header["type"][0])])
