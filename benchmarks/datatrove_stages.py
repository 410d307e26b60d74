"""The stages of a corpus in datatrove's blocks: the same text in and out of parquet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emma.recipes.schema.corpus import NearDuplicates

__all__ = ["kept", "stage_run"]


def _words() -> Any:
    import re

    from datatrove.utils.word_tokenizers import WordTokenizer

    word = re.compile(r"\w+")

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return word.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return text.splitlines()

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [match.span() for match in word.finditer(text)]

    return Words()


def _let_xxhash_take_text() -> None:
    """datatrove 0.10 hands texts to xxhash, whose version 4 takes bytes only."""
    import xxhash
    from datatrove.utils.hashes import xxhash as hashes

    def xxhash64(data: str | bytes) -> int:
        return xxhash.xxh64_intdigest(data.encode() if isinstance(data, str) else data)

    hashes.xxhash64 = xxhash64


def stage_run(folder: Path, stage: str, near: NearDuplicates) -> Callable[[], Any]:
    """The stage's run.

    Args:
        folder: holds `input.jsonl`, and the same text in `parquet/`.
        stage: `integrate`, `filter`, `exact` or `near`.
        near: settings of the search for near duplicates.
    """
    _let_xxhash_take_text()
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader, ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    root = folder / f"datatrove-{stage}"
    shutil.rmtree(root, ignore_errors=True)
    text = str(folder / "parquet")

    def run(*steps: Any, tasks: int = 1) -> None:
        LocalPipelineExecutor(
            pipeline=list(steps),
            tasks=tasks,
            workers=1,
            logging_dir=str(root.with_name(f"logs-{time.time_ns()}")),
        ).run()

    if stage == "integrate":
        from datatrove.pipeline.formatters import FTFYFormatter

        reader = JsonlReader(str(folder), glob_pattern="input.jsonl")
        return lambda: run(reader, FTFYFormatter(), ParquetWriter(str(root)))
    if stage == "filter":
        from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

        words = _words()
        quality = GopherQualityFilter(min_stop_words=0, language=words)
        steps = (
            ParquetReader(text),
            GopherRepetitionFilter(language=words),
            quality,
            ParquetWriter(str(root)),
        )
        return lambda: run(*steps)
    if stage == "exact":
        return lambda: _exact(root, text, run)
    return lambda: _near(root, text, run, near)


def _exact(root: Path, text: str, run: Callable[..., None]) -> None:
    from datatrove.pipeline.dedup.exact_dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    config = ExactDedupConfig(content_getter=lambda document: document.text)
    run(ParquetReader(text), ExactDedupSignature(str(root / "signatures"), finder_workers=1, config=config))
    run(ExactFindDedups(str(root / "signatures"), str(root / "duplicates"), config=config))
    run(
        ParquetReader(text),
        ExactDedupFilter(str(root / "duplicates"), config=config),
        ParquetWriter(str(root / "out")),
    )


def _near(root: Path, text: str, run: Callable[..., None], near: NearDuplicates) -> None:
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    config = MinhashConfig(
        n_grams=near.word_shingle,
        num_buckets=near.bands,
        hashes_per_bucket=near.rows,
    )
    signatures, buckets, removed = (str(root / name) for name in ("signatures", "buckets", "removed"))
    run(ParquetReader(text), MinhashDedupSignature(signatures, config=config, language=_words()))
    run(MinhashDedupBuckets(signatures, buckets, config=config), tasks=near.bands)
    run(MinhashDedupCluster(buckets, removed, config=config))
    run(ParquetReader(text), MinhashDedupFilter(removed), ParquetWriter(str(root / "out")))


def kept(folder: Path) -> set[str]:
    """Ids that datatrove's near deduplication kept."""
    import pyarrow.parquet as pq

    paths = (folder / "datatrove-near" / "out").glob("*.parquet")
    return {i for path in paths for i in pq.read_table(path, columns=["id"])["id"].to_pylist()}
