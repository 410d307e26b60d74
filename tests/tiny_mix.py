"""A small token store and mix, made by the real `emma pack` and `emma mix` code on a few hundred documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from emma.recipes.schema.data import Data
from emma.recipes.schema.model import Tokenizer
from emma.tools.mix.build import build_mix
from emma.tools.mix.prepare import MixSettings
from emma.tools.pack.plan import PackSettings
from emma.tools.pack.run import pack_store
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tiny_text import BEGIN, END, SENTENCES, documents, pairs, train_tokenizer

__all__ = ["TinyMix", "make_tiny_corpus", "make_tiny_mix", "tiny_data"]


@dataclass(frozen=True)
class TinyMix:
    """Where things are, and what a recipe says about them."""

    mix: Path
    store: Path
    corpus: Path
    tokenizer: Path
    data: Data
    vocab_size: int
    begin_id: int | None
    end_id: int

    @property
    def tokenizer_settings(self) -> dict[str, Any]:
        """`model.tokenizer` of a recipe."""
        begin = {"begin_of_text": BEGIN} if self.begin_id is not None else {}
        return {"path": str(self.tokenizer), "end_of_text": END, **begin}


def make_tiny_corpus(folder: Path, documents_per_language: int = 40) -> Path:
    """`folder/split/<kind>/<language or pair>/part-00000.parquet` as the corpus stage writes it: six languages and two
    pairs; every tenth document is for validation."""
    for language in SENTENCES:
        rows = [
            {
                "id": f"{language}/{number}",
                "text": text,
                "language": language,
                "source": "tiny",
                "license": "CC0-1.0",
                "split": "validation" if number % 10 == 0 else "train",
            }
            for number, text in enumerate(documents(language, documents_per_language))
        ]
        _write(rows, folder / "split" / "monolingual" / language / "part-00000.parquet")
    for source, target in (("eng_Latn", "swh_Latn"), ("fra_Latn", "rus_Cyrl")):
        rows = [
            {
                "id": f"{source}-{target}/{number}",
                "src_lang": source,
                "src_text": src,
                "tgt_lang": target,
                "tgt_text": tgt,
                "source": "tiny",
                "license": "CC0-1.0",
                "split": "validation" if number < 20 else "train",
            }
            for number, (src, tgt) in enumerate(pairs(source, target, 4 * documents_per_language))
        ]
        _write(rows, folder / "split" / "parallel" / f"{source}-{target}" / "part-00000.parquet")
    return folder


def _write(rows: list[dict[str, str]], path: Path) -> None:
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def tiny_data(
    *,
    packing: Literal["concatenate", "best_fit"] = "concatenate",
    validation_groups: bool = True,
    seed: int = 1234,
) -> Data:
    """The `data` section of the tiny mix: 60 % monolingual text, 40 % pairs."""
    return Data.model_validate(
        {
            "name": "tiny",
            "pack": {
                "components": {"monolingual": {"kind": "text"}, "bilingual": {"kind": "bilingual"}},
                "engine": "tokenizers",
            },
            "mix": {
                "components": {
                    "monolingual": {
                        "share": 60,
                        "max_epochs": 100_000,
                        "categories": {"low": {"at_least": 0, "factor": 2}, "high": {"at_least": 800}},
                    },
                    "bilingual": {"share": 40, "max_epochs": 100_000},
                },
                "packing": packing,
                "seed": seed,
                "validation": {
                    "by_component": validation_groups,
                    "by_category": validation_groups,
                    "languages": ["swh_Latn"] if validation_groups else [],
                    "min_tokens": 50,
                },
            },
        }
    )


def make_tiny_mix(
    folder: Path,
    *,
    samples: int,
    sequence_length: int,
    vocab_size: int = 512,
    packing: Literal["concatenate", "best_fit"] = "concatenate",
    validation_groups: bool = True,
    seed: int = 1234,
    begin: bool = True,
) -> TinyMix:
    """Packs the tiny corpus and builds a mix of exactly `samples` samples below `folder`.

    Args:
        folder: gets `tokenizer/`, `corpus/`, `store/` and `mix/tiny/`; what is there is used again.
        samples: training samples (steps × global batch).
        sequence_length: input tokens of a sample.
        vocab_size: token ids of tokenizer and model, at least 300.
        packing: how documents fill samples.
        validation_groups: whether there are groups `component-monolingual`, `component-bilingual`,
            `category-monolingual-<low|high>` and `language-swh_Latn`.
        seed: of the mix.
        begin: whether documents open with `<|begin_of_text|>`.
    """
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        train_tokenizer(tokenizer, vocab_size)
    corpus = folder / "corpus"
    if not corpus.is_dir():
        make_tiny_corpus(corpus)
    data = tiny_data(packing=packing, validation_groups=validation_groups, seed=seed)
    settings = Tokenizer(path=str(tokenizer), begin_of_text=BEGIN if begin else None, end_of_text=END)
    file = TokenizerFile(settings, vocab_size)
    store = folder / "store"
    pack_store(PackSettings(data.pack, file, corpus, store, "0" * 64), workers=1)
    mix = folder / "mix" / "tiny"
    build_mix(
        MixSettings(data.mix, "tiny", mix, store, samples, sequence_length, "0" * 64, file.sha256),
        replace=True,
    )
    return TinyMix(
        mix, store, corpus, tokenizer, data, vocab_size, file.begin_of_text_id, file.end_of_text_id
    )
