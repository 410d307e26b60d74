"""What `benchmarks.pack` compares `emma pack run` with, each as a process of its own.

    python -m benchmarks.pack_peers raw|fast|old --tokenizer FOLDER --end TOKEN --input TEXT.jsonl --output PREFIX [--workers 2]

fast
    What Megatron-LM's tools/preprocess_data_fast.py does, as of November 2026: gigatoken encodes the whole file at once,
    on all cores, into one awkward array; a column with the end of text is concatenated to it; one batched write hands it
    to Megatron's `IndexedDatasetBuilder`, whose `finalize` writes the index. The tokenizer is a `transformers` one,
    turned into gigatoken's. A process is started for each field of the records, so Megatron is imported in it again.
    Megatron-LM's main branch has the batched write (`add_documents`); the released wheel lacks it, so the same steps are
    done here with the builder's own file and lists.
old
    What tools/preprocess_data.py does: worker processes encode one document a call with Hugging Face `tokenizers`, and
    the parent adds one document a call with `IndexedDatasetBuilder.add_document`. Spellings of control tokens stay text
    here, unlike there, so that it can be compared with ours.
raw
    gigatoken's `encode_files` alone: ids in memory, nothing written. A floor.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import orjson


def load_gigatoken(folder: Path) -> Any:
    """gigatoken's tokenizer, by way of `transformers` as in Megatron's tokenizer classes."""
    import gigatoken
    from transformers import PreTrainedTokenizerFast

    return gigatoken.Tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))


def encode_whole(tokenizer: Any, text: Path) -> Any:
    """Ids of all documents of a jsonl file, as an awkward array."""
    import gigatoken

    return tokenizer.encode_files(gigatoken.JsonlFileSource([str(text)], field="text"), parallel=True)


def raw(folder: Path, text: Path) -> None:
    """Encodes a file and counts the ids."""
    import gigatoken

    encoded = encode_whole(gigatoken.Tokenizer(str(folder / "tokenizer.json")), text)
    print(f"raw: {len(encoded):,} documents")


def fast(folder: Path, text: Path, prefix: Path, end: int) -> None:
    """Runs in the process for a field: encodes a file, appends the end of text, writes `.bin` and `.idx`."""
    import awkward as ak
    import numpy as np
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    tokenizer = load_gigatoken(folder)
    encoded = encode_whole(tokenizer, text)
    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    ends = ak.singletons(ak.Array(np.full(len(encoded), end, dtype=np.uint32)))
    encoded = ak.concatenate([encoded, ends], axis=1)
    builder.data_file.write(np.asarray(ak.flatten(encoded), dtype=dtype).tobytes(order="C"))
    lengths = np.asarray(ak.num(encoded, axis=1))
    offset = len(builder.sequence_lengths)
    builder.sequence_lengths.extend(lengths.tolist())
    builder.document_indices.extend((offset + np.cumsum(lengths)).tolist())
    builder.finalize(f"{prefix}.idx")


class _Encode:
    """Encodes one line in a worker process."""

    tokenizer: Any
    end: int

    @classmethod
    def start(cls, folder: Path, end: int) -> None:
        from tokenizers import Tokenizer

        cls.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        cls.tokenizer.encode_special_tokens = True
        cls.end = end

    @classmethod
    def line(cls, line: bytes) -> list[int]:
        return [*cls.tokenizer.encode(orjson.loads(line)["text"], add_special_tokens=False).ids, cls.end]


def old(folder: Path, text: Path, prefix: Path, end: int, workers: int) -> None:
    """Encodes a file document by document."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    context = multiprocessing.get_context("fork")
    with (
        context.Pool(workers, initializer=_Encode.start, initargs=(folder, end)) as pool,
        text.open("rb") as lines,
    ):
        for ids in pool.imap(_Encode.line, lines, 32):
            builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def end_id(folder: Path, token: str) -> int:
    """Id of an added token."""
    content = orjson.loads((folder / "tokenizer.json").read_bytes())
    return int(next(each["id"] for each in content["added_tokens"] if each["content"] == token))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=["raw", "fast", "old"])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer.json")
    parser.add_argument("--end", required=True, help="token that ends a document")
    parser.add_argument("--input", type=Path, required=True, help="jsonl with the field text")
    parser.add_argument("--output", type=Path, required=True, help="path without .bin and .idx")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.peer == "raw":
        raw(options.tokenizer, options.input)
        return
    end = end_id(options.tokenizer, options.end)
    if options.peer == "old":
        old(options.tokenizer, options.input, options.output, end, options.workers)
        return
    # The script imports Megatron before it starts the process, which imports it too.
    import awkward  # noqa: F401
    import megatron.core.datasets.indexed_dataset  # noqa: F401

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.starmap(fast, [(options.tokenizer, options.input, options.output, end)])


if __name__ == "__main__":
    main()
