"""The proof's own reader of a mix, against the documents of the token store."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json
from emma.tools.prove.samples import NOT_COUNTED, Samples
from tests.tiny_mix import make_tiny_mix


def documents_of(mix: Path) -> list[np.ndarray]:
    """The rows of a mix as token ids, cut from the shards' bytes."""
    facts = read_json(mix / "train" / "dataset.json")
    shards = [(mix / "train" / f"{shard['name']}.bin") for shard in facts["shards"]]
    found = []
    for offset, tokens, shard, _ in np.load(mix / "train" / "rows.npy").tolist():
        content = shards[shard].read_bytes()[offset : offset + 2 * tokens]
        found.append(np.frombuffer(content, "<u2").astype(np.int64))
    return found


@pytest.fixture(scope="module")
def concatenated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concatenated")
    return make_tiny_mix(folder, samples=40, sequence_length=32, validation_groups=False).mix


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    mix = make_tiny_mix(folder, samples=20, sequence_length=384, packing="best_fit", validation_groups=False)
    return mix.mix


def test_concatenated_samples_are_the_stream(concatenated: Path) -> None:
    samples, documents = Samples(concatenated, 32), documents_of(concatenated)
    stream = np.concatenate(documents)
    number = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    assert len(samples) == 40 and len(stream) == 40 * 32 + 1
    for index in range(40):
        sample, inputs = samples[index], slice(32 * index, 32 * index + 32)
        assert sample.tokens.tolist() == stream[inputs].tolist()
        assert sample.labels.tolist() == stream[32 * index + 1 : 32 * index + 33].tolist()
        assert (np.diff(sample.documents) != 0).tolist() == (np.diff(number[inputs]) != 0).tolist()


def test_packed_samples_are_documents_and_padding(packed: Path) -> None:
    samples, documents = Samples(packed, 384), documents_of(packed)
    first, padded = 0, 0
    for index in range(len(samples)):
        sample = samples[index]
        text: list[int] = []
        while len(text) < np.count_nonzero(sample.labels != NOT_COUNTED) + 1:
            text += documents[first].tolist()
            first += 1
        counted = len(text) - 1
        assert sample.tokens.tolist() == (text + [0] * 384)[:384]
        assert sample.labels.tolist() == (text[1:] + [NOT_COUNTED] * 384)[:384]
        padded += 384 - counted
    assert first == len(documents)
    assert padded > 0, "a mix without padding shows nothing about it"
    facts = read_json(packed / "train" / "dataset.json")
    assert padded == 384 * 20 - facts["label_tokens"]


def test_another_length_is_refused(concatenated: Path) -> None:
    with pytest.raises(UserError, match=r"length 32; 2 and 64 are expected"):
        Samples(concatenated, 64)


def copied(mix: Path, folder: Path) -> Path:
    """A copy beside the mix, so that its links still lead to the store."""
    copy = mix.parent / folder.name
    shutil.copytree(mix, copy, symlinks=True)
    return copy


def test_a_mix_that_was_changed_is_refused(concatenated: Path, tmp_path: Path) -> None:
    mix = copied(concatenated, tmp_path)
    Samples(mix, 32).check_files(40)
    rows = np.load(mix / "train" / "rows.npy")
    np.save(mix / "train" / "rows.npy", rows[::-1])
    with pytest.raises(CheckFailedError, match=r"rows\.npy: not the file that"):
        Samples(mix, 32).check_files(40)


def test_rows_that_megatrons_index_has_elsewhere_are_refused(concatenated: Path, tmp_path: Path) -> None:
    mix = copied(concatenated, tmp_path)
    index = next((mix / "train").glob("*.idx"))
    content = bytearray(index.read_bytes())
    content[34] ^= 1  # the first row's length
    index.write_bytes(bytes(content))
    with pytest.raises(CheckFailedError, match=r"row \d+ of rows\.npy is not where"):
        Samples(mix, 32).check_files(40)
