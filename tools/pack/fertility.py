"""Tokens of the run's tokenizer per language, and tokens per byte: what a language costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import atomic_write
from emma.recipes.schema import Recipe
from emma.recipes.schema.model import Tokenizer
from emma.tools.corpus.layout import Part, part_path, read_row_groups, text_columns
from emma.tools.corpus.passes import count_parts
from emma.tools.corpus.stage import Build

__all__ = ["add_tokens", "count_tokens"]


def count_tokens(
    root: str, stage: str, parts: Sequence[Part], tokenizer: Tokenizer, vocab_size: int, engine: str
) -> list[list[Any]]:
    """Tokens (not counting document boundaries) and bytes of parts: rows of kind, language, tokens, bytes."""
    from emma.tools.pack.encoder import Encoder
    from emma.tools.pack.engine import choose_engine
    from emma.tools.pack.tokenizer_file import TokenizerFile

    encoder = Encoder(TokenizerFile(tokenizer, vocab_size), choose_engine(engine))
    found = []
    for part in parts:
        tokens = size = 0
        for table in read_row_groups(part_path(Path(root), stage, part), text_columns(part.kind)):
            for column in table.columns:
                texts = column.combine_chunks().cast(pa.large_string())
                languages = pa.array([part.language] * len(texts), pa.large_string())
                tokens += int(encoder.encode(texts, languages).lengths.sum())
                size += sum(len(text) for text in texts.cast(pa.large_binary()).to_pylist())
        found.append([part.kind, part.language, tokens, size])
    return found


def add_tokens(
    build: Build, recipe: Recipe, stage: str, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Adds `tokenizer_tokens` and `tokens_per_byte` to rows of a statistics table.

    Also writes them to `statistics/tokens-STAGE.parquet`. An interrupted count resumes where it stopped.

    Args:
        build: the corpus.
        recipe: for the tokenizer (`model.tokenizer`) and its engine (`data.pack.engine`).
        stage: the stage to count.
        rows: the stage's rows of `statistics.statistics`.

    Raises:
        UserError: the model names no tokenizer, or the tokenizer cannot be read.
    """
    from emma.tools.pack.tokenizer_file import TokenizerFile

    tokenizer = recipe.model.tokenizer
    if tokenizer is None:
        raise UserError(
            f"model {recipe.model.name} names no tokenizer; set model.tokenizer, or leave out --tokens"
        )
    checksum = TokenizerFile(tokenizer, recipe.model.vocab_size).sha256
    settings = (tokenizer, recipe.model.vocab_size, recipe.data.pack.engine)
    results = count_parts(build, stage, "tokens", count_tokens, *settings, key=checksum)
    sums: dict[tuple[str, str], list[int]] = {}
    for result in results:
        for kind, language, tokens, size in result:
            total = sums.setdefault((kind, language), [0, 0])
            total[0] += tokens
            total[1] += size
    found = []
    for row in rows:
        tokens, size = sums.get((row["kind"], row["language"]), (0, 0))
        found.append({**row, "tokenizer_tokens": tokens, "tokens_per_byte": tokens / size if size else 0.0})
    table = pa.Table.from_pylist(found).append_column("tokenizer", pa.array([checksum] * len(found)))
    with atomic_write(build.root / "statistics" / f"tokens-{stage}.parquet") as handle:
        pq.write_table(table, handle, compression="zstd")
    return found
