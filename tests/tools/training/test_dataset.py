"""The training dataset against an independent construction, against Megatron's own dataset, and at its
edges."""

from __future__ import annotations

import json
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from tests.tiny_mix import TinyMix, make_tiny_mix

SAMPLES, LENGTH = 48, 64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyMix:
    return make_tiny_mix(tmp_path_factory.mktemp("mix"), samples=SAMPLES, sequence_length=LENGTH)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> TinyMix:
    folder = tmp_path_factory.mktemp("best_fit")
    return make_tiny_mix(folder, samples=SAMPLES, sequence_length=200, packing="best_fit")


class FakeTokenizer:
    """What Megatron's dataset asks of a tokenizer."""

    def __init__(self, eod: int, pad: int = -1) -> None:
        self.eod, self.eos, self.pad, self.vocab_size = eod, eod, pad, 512
        self.unique_identifiers = {"class": "FakeTokenizer"}


def config(mix: TinyMix, length: int, **options: object):
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

    settings: dict[str, object] = {
        "random_seed": 1,
        "sequence_length": length,
        "tokenizer": FakeTokenizer(mix.end_id),
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "create_attention_mask": False,
    }
    return GPTDatasetConfig(**{**settings, **options})


def store_documents(mix: TinyMix) -> dict[tuple[str, ...], tuple[str, str, str]]:
    """Tokens of every document in the store → component, id, split, read with numpy alone."""
    found = {}
    for component in ("monolingual", "bilingual"):
        for number, table in enumerate(sorted((mix.store / component).glob("documents-*.parquet"))):
            tokens = np.fromfile(mix.store / component / f"shard-{number:05d}.bin", np.uint16)
            for row in pq.read_table(table).to_pylist():
                begin = row["offset"] // 2
                content = tuple(tokens[begin : begin + row["tokens"]].tolist())
                found[content] = (component, row["document_id"], row["split"])
    return found


def documents_of_stream(stream: list[int], end_id: int) -> list[tuple[int, ...]]:
    """Documents of a token stream, cut after each end of text."""
    documents, current = [], []
    for token in stream:
        current.append(token)
        if token == end_id:
            documents.append(tuple(current))
            current = []
    if current:
        documents.append(tuple(current))
    return documents


def stream_of(dataset) -> list[int]:
    """All inputs in order, and the last label."""
    stream: list[int] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        stream += sample["tokens"].tolist()
    return [*stream, int(sample["labels"][-1])]


def test_every_document_as_often_as_planned_and_every_token_a_label_once(tiny: TinyMix) -> None:
    from emma.tools.training.dataset import open_dataset

    dataset = open_dataset(tiny.mix / "train", config(tiny, LENGTH))
    assert len(dataset) == SAMPLES
    labels = [token for index in range(SAMPLES) for token in dataset[index]["labels"].tolist()]
    stream = stream_of(dataset)
    assert len(stream) == SAMPLES * LENGTH + 1
    assert stream[1:] == labels
    assert all(bool(dataset[index]["loss_mask"].all()) for index in range(SAMPLES))

    known = store_documents(tiny)
    seen = Counter(documents_of_stream(stream, tiny.end_id))
    cut = [document for document in seen if document not in known]
    assert len(cut) <= 1, "only the stream's last document may be shortened"
    if cut:
        assert cut[0][-1] != tiny.end_id or stream[-1] == cut[0][-1]
        assert any(document[: len(cut[0])] == cut[0] for document in known)
    assert {known[document][2] for document in seen if document in known} == {"train"}

    built = pq.read_table(tiny.mix / "plan.parquet").to_pylist()
    by_source: Counter[str] = Counter()
    for document, count in seen.items():
        if document in known:
            by_source[known[document][1].split("/")[0]] += count
    planned = Counter({row["language"]: row["built_documents"] for row in built})
    difference = (planned - by_source) + (by_source - planned)
    assert sum(difference.values()) == len(cut)
    # A document is seen at most once more than any other of its source.
    for language in by_source:
        names = [d for d in known if known[d][1].startswith(f"{language}/") and known[d][2] == "train"]
        counts = [seen[name] for name in names]
        assert max(counts) - min(counts) <= 1 + len(cut)


def test_stock_dataset_and_blend_fail_the_same_check(tiny: TinyMix, tmp_path: Path) -> None:
    """Megatron's own way over the very same indices: the counts of documents are not the planned ones."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset

    from emma import megatron_patches
    from emma.tools.training.dataset import open_dataset

    megatron_patches.apply()
    prefixes = sorted(str(path.with_suffix("")) for path in (tiny.mix / "train").glob("*.idx"))
    stock = config(tiny, LENGTH, blend=(prefixes, [0.6, 0.4]), split="1,0,0", path_to_cache=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blend = BlendedMegatronDatasetBuilder(GPTDataset, [SAMPLES, 0, 0], lambda: True, stock).build()[0]
    places = list(zip(blend.dataset_index.tolist(), blend.dataset_sample_index.tolist(), strict=True))
    read = tokens_read((part, blend.datasets[part], sample) for part, sample in places)
    wanted = {
        (part, row): int(tokens)
        for part, dataset in enumerate(blend.datasets)
        for row, tokens in enumerate(dataset.dataset.sequence_lengths)
    }
    assert abs_difference(read, wanted) > LENGTH, "the stock path read every planned document exactly once"

    ours = open_dataset(tiny.mix / "train", config(tiny, LENGTH))
    read = tokens_read((0, ours, sample) for sample in range(SAMPLES))
    wanted = {(0, row): int(tokens) for row, tokens in enumerate(ours.dataset.sequence_lengths)}
    assert abs_difference(read, wanted) == 1, "only the last token, a label, is no input"


def tokens_read(samples: Iterable[tuple[int, object, int]]) -> Counter[tuple[int, int]]:
    """Input tokens that samples take of every row, by part of a blend."""
    read: Counter[tuple[int, int]] = Counter()
    for part, dataset, sample in samples:
        _, rows, lengths = dataset._query_document_sample_shuffle_indices(sample)
        lengths = [*lengths[:-1], lengths[-1] - 1]
        for row, length in zip(rows.tolist(), lengths, strict=True):
            read[part, row] += length
    return read


def abs_difference(read: Mapping[tuple[int, int], int], wanted: Mapping[tuple[int, int], int]) -> int:
    return sum(abs(read.get(row, 0) - wanted.get(row, 0)) for row in {*read, *wanted})


def test_megatron_reads_every_index(tiny: TinyMix, packed: TinyMix) -> None:
    """`IndexedDataset` finds in each `.idx` the rows of its shard, in the order of training, with the store's
    tokens."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    for mix in (tiny, packed):
        known = [np.array(document, np.uint16).tobytes() for document in store_documents(mix)]
        for path in sorted(mix.mix.rglob("*.idx")):
            dataset = IndexedDataset(str(path.with_suffix("")))
            rows = np.load(path.parent / "rows.npy")
            info = json.loads((path.parent / "dataset.json").read_text())
            number = [shard["name"] for shard in info["shards"]].index(path.stem)
            mine = rows[rows["shard"] == number]
            assert len(dataset) == len(mine) == dataset.document_indices[-1]
            assert dataset.index.dtype is np.uint16
            for index in range(len(mine)):
                tokens = dataset[index]
                assert len(tokens) == mine["tokens"][index]
                # Best-fit packing cuts documents that are longer than a sample: a row is a document or a part
                # of one.
                assert any(tokens.tobytes() in document for document in known)


def test_masks_positions_and_boundaries_are_megatrons(tiny: TinyMix, tmp_path: Path) -> None:
    """Over one shard, the stock dataset without shuffling returns the same dictionaries, whatever the
    options."""
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    from emma import megatron_patches
    from emma.tools.training.dataset import open_dataset

    megatron_patches.apply()
    group = tiny.mix / "validation" / "language-swh_Latn"
    prefix = group / "monolingual-00000"
    for options in (
        {},
        {"create_attention_mask": True, "reset_attention_mask": True, "reset_position_ids": True},
        {"eod_mask_loss": True},
        {"inter_document_masking": True},
    ):
        settings = config(tiny, LENGTH, path_to_cache=str(tmp_path / "cache"), **options)
        settings.drop_last_partial_validation_sequence = False
        ours = open_dataset(group, settings)
        low = IndexedDataset(str(prefix))

        class InOrder(GPTDataset):
            """The stock dataset, its two shuffles taken out."""

            def _build_document_sample_shuffle_indices(self):
                from megatron.core.datasets import helpers

                documents = np.arange(len(self.dataset), dtype=np.int32)
                tokens = int(self.dataset.sequence_lengths.sum())
                samples = helpers.build_sample_idx(
                    self.dataset.sequence_lengths.copy(), documents, LENGTH, 1, tokens, False, True
                )
                return documents, samples, np.arange(len(samples) - 1)

        stock = InOrder(low, str(prefix), np.arange(len(low), dtype=np.int32), None, Split.valid, settings)
        assert len(ours) == len(stock)
        for index in range(len(ours)):
            mine, theirs = ours[index], stock[index]
            assert mine.keys() == theirs.keys()
            for key in mine:
                assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key])), (
                    options,
                    index,
                    key,
                )


def test_the_last_sample_of_a_group_is_padded_and_masked(tiny: TinyMix) -> None:
    from emma.tools.training.dataset import open_dataset

    for group in sorted((tiny.mix / "validation").iterdir()):
        dataset = open_dataset(group, config(tiny, LENGTH))
        masks = [int(dataset[index]["loss_mask"].sum()) for index in range(len(dataset))]
        assert masks == [dataset.label_tokens(index) for index in range(len(dataset))]
        assert sum(masks) == dataset.info.label_tokens == dataset.info.tokens - 1
        assert all(count == LENGTH for count in masks[:-1])
        assert 0 < masks[-1] <= LENGTH
        stream = stream_of(dataset)[: dataset.info.tokens]
        known = store_documents(tiny)
        documents = documents_of_stream(stream, tiny.end_id)
        assert all(known[document][2] == "validation" for document in documents[:-1])


def test_best_fit_cuts_no_document_that_fits_and_masks_padding(packed: TinyMix) -> None:
    from emma.tools.training.dataset import open_dataset

    length = 200
    dataset = open_dataset(packed.mix / "train", config(packed, length))
    assert len(dataset) == SAMPLES
    known = store_documents(packed)
    for index in range(SAMPLES):
        sample = dataset[index]
        real = dataset.label_tokens(index)
        assert int(sample["loss_mask"].sum()) == real
        assert bool(sample["loss_mask"][:real].all())
        text = [*sample["tokens"].tolist(), int(sample["labels"][-1])][: real + 1]
        for document in documents_of_stream(text, packed.end_id):
            if document not in known:
                whole = [
                    d for d in known if any(d[at : at + len(document)] == document for at in range(len(d)))
                ]
                assert any(len(d) > length + 1 for d in whole), "a document that fits was cut"
    assert dataset.info.padding < 0.2


def test_composition_counts_every_input_token(tiny: TinyMix, packed: TinyMix) -> None:
    from emma.tools.training.dataset import open_dataset

    dataset = open_dataset(tiny.mix / "train", config(tiny, LENGTH))
    whole = dataset.composition(0, SAMPLES)
    assert sum(whole.values()) == SAMPLES * LENGTH
    parts: Counter[tuple[str, str]] = Counter()
    for index in range(SAMPLES):
        parts.update(dataset.composition(index, index + 1))
    assert dict(parts) == dict(whole)
    shares = Counter()
    for (component, _), tokens in whole.items():
        shares[component] += tokens
    assert shares["monolingual"] / whole_tokens(whole) == pytest.approx(
        0.6, abs=0.07
    )  # a document more or less


def whole_tokens(counts: dict[tuple[str, str], int]) -> int:
    return sum(counts.values())


def test_a_store_of_other_tokens_than_the_pad_id(tiny: TinyMix) -> None:
    """A tokenizer whose pad id is an ordinary token: nothing of the text is masked."""
    from emma.tools.training.dataset import open_dataset

    frequent = open_dataset(tiny.mix / "train", config(tiny, LENGTH))[0]["labels"][3].item()
    dataset = open_dataset(
        tiny.mix / "train", config(tiny, LENGTH, tokenizer=FakeTokenizer(tiny.end_id, pad=frequent))
    )
    assert all(bool(dataset[index]["loss_mask"].all()) for index in range(SAMPLES))


def test_worker_processes_read_the_same(tiny: TinyMix) -> None:
    import torch

    from emma.tools.training.dataset import open_dataset

    dataset = open_dataset(tiny.mix / "train", config(tiny, LENGTH))
    alone = [dataset[index]["tokens"] for index in range(SAMPLES)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=2, shuffle=False)
    assert all(torch.equal(batch["tokens"][0], mine) for batch, mine in zip(loader, alone, strict=True))
    again = pickle.loads(pickle.dumps(dataset.dataset))
    assert np.array_equal(again.get(5), dataset.dataset.get(5))


def test_what_is_wrong_is_said_in_one_line_by_a_worker_process_too(tmp_path: Path) -> None:
    import torch

    from emma.tools.training.dataset import open_dataset
    from emma.tools.training.forward import ForwardStep

    mix = make_tiny_mix(tmp_path, samples=4, sequence_length=LENGTH, vocab_size=512)
    dataset = open_dataset(mix.mix / "train", config(mix, LENGTH))
    for shard in (mix.mix / "train").glob("*.bin"):
        shard.resolve().write_bytes(b"")
    messages = []
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=workers)
        with pytest.raises(UserError) as caught:
            ForwardStep()(iter(loader), torch.nn.Identity())
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "run `emma mix verify`" in messages[0]
    assert "\n" not in messages[0]


def test_samples_are_read_once(tiny: TinyMix) -> None:
    from emma.tools.training.dataset import open_dataset

    dataset = open_dataset(tiny.mix / "train", config(tiny, LENGTH))
    with pytest.raises(IndexError, match="does not wrap around"):
        dataset[SAMPLES]


def test_few_files_are_open_however_many_shards(tiny: TinyMix) -> None:
    from emma.tools.training import dataset as module

    rows = module.MixRows(tiny.mix / "train")
    before, limit = len(list(Path("/proc/self/fd").iterdir())), module._OPEN_FILES
    module._OPEN_FILES = 1
    try:
        texts = [rows.get(index) for index in range(len(rows))]
    finally:
        module._OPEN_FILES = limit
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert all(np.array_equal(text, rows.get(index)) for index, text in enumerate(texts))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "no such dataset"),
        (lambda folder: (folder / "rows.npy").write_bytes(b"junk"), "cannot be read"),
        (lambda folder: np.save(folder / "samples.npy", np.zeros((3, 2), np.int64)), "dataset.json says"),
    ],
)
def test_a_damaged_dataset_is_refused(tmp_path: Path, tiny: TinyMix, break_it, message: str) -> None:
    import shutil

    from emma.tools.training.dataset import open_dataset

    folder = tmp_path / "mix" / "train"
    shutil.copytree(tiny.mix / "train", folder, symlinks=True)
    break_it(folder)
    with pytest.raises(UserError, match=message):
        open_dataset(folder, config(tiny, LENGTH))


def test_another_sequence_length_and_a_moved_store_are_refused(tmp_path: Path, tiny: TinyMix) -> None:
    import shutil

    from emma.tools.training.dataset import open_dataset

    with pytest.raises(UserError, match="built for sequence length 64, but the run's is 32"):
        open_dataset(tiny.mix / "train", config(tiny, 32))
    folder = tmp_path / "elsewhere" / "train"
    shutil.copytree(tiny.mix / "train", folder, symlinks=True)
    with pytest.raises(UserError, match="store has moved"):
        open_dataset(folder, config(tiny, LENGTH))[0]


def test_mix_info(tiny: TinyMix) -> None:
    from emma.tools.training.dataset import read_mix

    mix = read_mix(tiny.mix)
    assert (mix.samples, mix.sequence_length, mix.tokens) == (SAMPLES, LENGTH, SAMPLES * LENGTH)
    assert mix.end_id == tiny.end_id
    assert len(mix.fingerprint) == 64
    assert mix.validation("language-swh_Latn").is_dir()
    with pytest.raises(UserError, match="no validation group 'x'; there are category-"):
        mix.validation("x")
    with pytest.raises(UserError, match="emma mix build"):
        read_mix(tiny.mix / "nowhere")
