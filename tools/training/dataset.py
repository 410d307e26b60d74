"""The training dataset: a mix read through Megatron's dataset interface, sample by sample as it was built.

How the training entry uses it:

    mix = read_mix(recipe.mix_folder)                # mix.json: fingerprint, samples, groups; opens no data
    train = open_dataset(mix.train, config)          # config: Megatron's GPTDatasetConfig
    group = open_dataset(mix.validation("component-monolingual"), config)

- `len(train)` is exactly steps × global batch. Sample i is the same at every start, so a plain sequential
  sampler that begins after the consumed samples resumes exactly, and it is known what was consumed
  (`mix.exclude_consumed` in a later phase).
- `train[i]` is the dictionary that `GPTDataset` returns. Masks, position ids and `cu_seqlens` are Megatron's
  own code; only the indexing is replaced. Nothing is built at start-up and no collective is needed: each rank
  may open it.
- Concatenation: the stream holds samples × L + 1 tokens, where L is the sequence length. Sample i takes
  tokens [i·L, (i+1)·L], as `GPTDataset` does, so each token but the stream's first is a label exactly once.
  The last sample of a validation group may be padded, with a loss mask of 0, so sum(loss × mask) / sum(mask)
  is the exact mean over tokens.
- Best fit: a sample holds whole documents (or pieces of longer ones), up to L + 1 tokens; the rest is masked
  padding.
- Padding inside the dataset is −1, which no token of a store can be (Megatron turns it into 0 with a loss
  mask of 0).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split

from emma.base.errors import UserError
from emma.tools.mix.layout import DatasetInfo, MixInfo, read_dataset_info, read_mix

__all__ = ["MixDataset", "MixInfo", "MixRows", "open_dataset", "read_mix"]

_PAD = -1
_OPEN_FILES = 128


class MixRows:
    """Tokens of a dataset folder's rows, read from the store's shards.

    Takes the place of Megatron's `IndexedDataset` in a `GPTDataset`. Shards are opened when first read, at
    most 128 at a time, and read with `pread`, so copies in forked data-loader workers do not disturb each
    other; spawned workers, which get a pickled copy, open them again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.info = read_dataset_info(self.folder)
        self.dtype = np.dtype(self.info.dtype)
        self.rows = _load(self.folder / "rows.npy", self.info.rows)
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sequence_lengths(self) -> np.ndarray:
        """Tokens of every row, int32."""
        return self.rows["tokens"]

    def get(self, row: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Tokens [offset, offset + length) of a row, by default to its end.

        Raises:
            UserError: the shard is gone or shorter than the mix says.
        """
        record = self.rows[row]
        count = int(record["tokens"]) - offset if length is None else length
        size = count * self.dtype.itemsize
        position = int(record["offset"]) + offset * self.dtype.itemsize
        content = os.pread(self._descriptor(int(record["shard"])), size, position)
        if len(content) != size:
            shard = self.folder / f"{self.info.shards[int(record['shard'])].name}.bin"
            raise UserError(
                f"{shard}: holds {len(content)} of the {size} bytes at {position}; run `emma mix verify`"
            )
        return np.frombuffer(content, self.dtype)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.get(row)

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is not None:
            self._descriptors.move_to_end(shard)
            return descriptor
        path = self.folder / f"{self.info.shards[shard].name}.bin"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(
                f"{path} → {path.resolve()}: cannot be opened ({error.strerror}); the token store has moved: build the mix "
                "again, or put the store back"
            ) from None
        self._descriptors[shard] = descriptor
        if len(self._descriptors) > _OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor


def _load(path: Path, length: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `emma mix verify`") from None
    if len(array) != length:
        raise UserError(
            f"{path}: holds {len(array)} entries, dataset.json says {length}; run `emma mix verify`"
        )
    return np.asarray(array)


class MixDataset(GPTDataset):
    """A mix's training data or one of its validation groups; open it with `open_dataset`."""

    cached_loss_mask: Any

    def __init__(self, rows: MixRows, config: GPTDatasetConfig, index_split: Split) -> None:
        info = rows.info
        self.info: DatasetInfo = info
        self.samples = _load(rows.folder / "samples.npy", info.samples + 1)
        super().__init__(
            rows,
            str(rows.folder),
            np.zeros(0, np.int32),
            info.samples,
            index_split,
            config,
        )
        # No token of a store has this id, so only padding is taken for padding.
        self._pad_token_id = _PAD

    def _build_document_sample_shuffle_indices(self) -> tuple[None, None, None]:
        """Builds nothing: the mix holds the order."""
        return None, None, None

    def __len__(self) -> int:
        return self.info.samples

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        """Megatron's dictionary of a sample; None gives a filler, whose loss mask is 0."""
        sample = super().__getitem__(idx)
        if self.cached_loss_mask is sample["loss_mask"]:
            # 0.19.2 masks the first sample's padding in this mask, then uses it for all other samples.
            self.cached_loss_mask = torch.ones_like(sample["loss_mask"])
        return sample

    def _query_document_sample_shuffle_indices(self, idx: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Token ids of a sample (int64, sequence length + 1), its rows, and tokens by row before padding."""
        if not 0 <= idx < self.info.samples:
            raise IndexError(
                f"sample {idx} of {self.info.samples}: a mix is read once, it does not wrap around"
            )
        (row, into), (end_row, end_into) = self.samples[idx].tolist(), self.samples[idx + 1].tolist()
        parts = []
        if self.info.packing == "best_fit":
            parts = [self.dataset.get(index) for index in range(row, end_row)]
        else:
            for index in range(row, end_row + 1):
                begin = into if index == row else 0
                stop = end_into + 1 if index == end_row else None
                parts.append(self.dataset.get(index, begin, None if stop is None else stop - begin))
        lengths = [len(part) for part in parts]
        text = np.full(self.info.sequence_length + 1, _PAD, np.int64)
        text[: sum(lengths)] = np.concatenate(parts)
        return text, np.arange(row, row + len(parts)), lengths

    def label_tokens(self, idx: int) -> int:
        """Number of a sample's labels that are tokens, not padding."""
        (row, into), (end_row, end_into) = self.samples[idx].tolist(), self.samples[idx + 1].tolist()
        tokens = self.dataset.rows["tokens"]
        if self.info.packing == "best_fit":
            return int(tokens[row:end_row].sum(dtype=np.int64)) - 1
        return int(tokens[row:end_row].sum(dtype=np.int64)) - into + end_into

    def documents_of(self, idx: int) -> torch.Tensor:
        """Number of the row that each input token of a sample belongs to (int64 [sequence length]); 0 for padding. Only
        of a stream, as validation groups are."""
        (row, into), (end_row, end_into) = self.samples[idx].tolist(), self.samples[idx + 1].tolist()
        lengths = self.dataset.rows["tokens"][row : end_row + 1].astype(np.int64)
        # The sample ends before this token, which is its last label.
        lengths[-1] = end_into
        lengths[0] -= into
        found = np.zeros(self.info.sequence_length, np.int64)
        found[: lengths.sum()] = np.repeat(np.arange(row, end_row + 1), lengths)
        return torch.from_numpy(found)

    def composition(self, start: int, stop: int) -> Mapping[tuple[str, str], int]:
        """Input tokens of samples [start, stop) by component and language."""
        (row, into), (end_row, end_into) = self.samples[start].tolist(), self.samples[stop].tolist()
        rows = self.dataset.rows[row : end_row + (end_into > 0)]
        tokens = rows["tokens"].astype(np.int64)
        if len(tokens) and self.info.packing == "concatenate":
            if end_into:
                tokens[-1] = end_into
            tokens[0] -= into
        totals = np.bincount(rows["source"], tokens, len(self.info.sources)).astype(np.int64)
        return {
            (source.component, source.language): int(total)
            for source, total in zip(self.info.sources, totals, strict=True)
            if total
        }


def open_dataset(folder: Path, config: GPTDatasetConfig) -> MixDataset:
    """Opens `mix/<name>/train` or `mix/<name>/validation/<group>`; takes milliseconds at any size.

    Args:
        folder: dataset folder of a mix.
        config: Megatron's configuration, whose blend and split are not used.

    Raises:
        UserError: no such dataset, or it was built for another sequence length or vocabulary.
    """
    rows = MixRows(Path(folder))
    if config.sequence_length != rows.info.sequence_length:
        raise UserError(
            f"{folder}: built for sequence length {rows.info.sequence_length}, but the run's is {config.sequence_length}; "
            "build the mix again for this run"
        )
    if not config.add_extra_token_to_sequence:
        raise UserError(
            f"{folder}: samples hold a label for every position; leave out --no-add-extra-token-to-sequence"
        )
    split = Split.valid if Path(folder).parent.name == "validation" else Split.train
    return MixDataset(rows, config, split)
