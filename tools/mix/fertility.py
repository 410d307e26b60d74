"""Fertility: tokens that a tokenizer makes of a word, by language or script, for planning before anything is packed.

A fertility belongs to a tokenizer. The shipped table is Llama 3's; `emma corpus stats RUN --tokens` measures that of the
run's tokenizer on the run's own text. One tokenizer's budget is never planned with another's fertility.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError

__all__ = ["Fertility", "ScriptSize", "read_fertility", "script_table", "shipped_fertility"]

_SHIPPED, _SHIPPED_IDS = "llama3", 128_256
_COLUMNS = ("kind", "language", "tokens", "tokenizer_tokens", "tokenizer")


@dataclass(frozen=True)
class ScriptSize:
    """Tokens per word and UTF-8 bytes per word of a script, without whitespace."""

    tokens_per_word: float
    bytes_per_word: float


@functools.cache
def script_table() -> Mapping[str, ScriptSize]:
    """The shipped table by ISO 15924 script; `*` stands for scripts it doesn't list."""
    path = Path(__file__).with_name("scripts.csv")
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(line for line in handle if not line.startswith("#")))
    return {
        row["script"]: ScriptSize(float(row["tokens_per_word"]), float(row["bytes_per_word"])) for row in rows
    }


@dataclass(frozen=True)
class Fertility:
    """Tokens per word of one tokenizer.

    Attributes:
        tokenizer: what it is called in messages.
        source: where the values come from.
        of_language: measured languages.
        of_script: by ISO 15924 script; `*` stands for all others.
        name: the tokenizer's name in recipes (`data.mix.counted_in`), if it has one.
        vocab_size: its number of ids, if known.
        sha256: of its file, if known.
    """

    tokenizer: str
    source: str
    of_language: Mapping[str, float]
    of_script: Mapping[str, float]
    name: str | None = None
    vocab_size: int | None = None
    sha256: str | None = None

    def tokens_per_word(self, language: str) -> float:
        """Of a language's own text if that was measured, else of its script's."""
        if language in self.of_language:
            return self.of_language[language]
        script = language.partition("_")[2] or "*"
        return self.of_script.get(script, self.of_script["*"])

    def foreign(
        self, counted_in: str, vocab_size: int | None = None, sha256: str | None = None
    ) -> str | None:
        """Why this is not the fertility of a run's tokenizer, in words; None if nothing speaks against it.

        Args:
            counted_in: name of the tokenizer that the recipe's budget counts in.
            vocab_size: ids of the run's model, if there is a run.
            sha256: of the run's tokenizer, if its file exists.
        """
        if None not in (self.sha256, sha256):
            if self.sha256 == sha256:
                return None
            return f"measured with another tokenizer ({str(self.sha256)[:12]}) than the run's ({str(sha256)[:12]})"
        if None not in (self.vocab_size, vocab_size) and self.vocab_size != vocab_size:
            return f"measured with a tokenizer of {self.vocab_size:,} ids, but the run's model has {vocab_size:,}"
        if self.name is not None and self.name != counted_in:
            return f"{self.name}'s, but the recipe counts tokens of {counted_in} (data.mix.counted_in)"
        return None


def shipped_fertility() -> Fertility:
    """That of Llama 3's tokenizer, by script."""
    table = {script: size.tokens_per_word for script, size in script_table().items()}
    return Fertility("Llama 3", "tools/mix/scripts.csv", {}, table, _SHIPPED, _SHIPPED_IDS)


def read_fertility(path: Path) -> Fertility:
    """What `emma corpus stats RUN --tokens` measured (`<paths.corpus>/statistics/tokens-STAGE.parquet`).

    A script that a language without text of its own needs has the mean over its measured languages' words, `*` the median
    over scripts.

    Raises:
        UserError: not such a file, or it counts no monolingual text.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise UserError(
            f"{path}: lacks the column {missing[0]}; `emma corpus stats RUN --tokens` writes statistics/tokens-STAGE.parquet"
        )
    rows = [
        row for row in table.select(_COLUMNS).to_pylist() if row["kind"] == "monolingual" and row["tokens"]
    ]
    if not rows:
        raise UserError(f"{path}: counts no words of monolingual text")
    words: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for row in rows:
        script = row["language"].partition("_")[2] or "*"
        words[script] = words.get(script, 0) + row["tokens"]
        tokens[script] = tokens.get(script, 0) + row["tokenizer_tokens"]
    of_script = {script: tokens[script] / words[script] for script in words}
    of_script.setdefault("*", float(np.median(list(of_script.values()))))
    of_language = {row["language"]: row["tokenizer_tokens"] / row["tokens"] for row in rows}
    sha256 = rows[0]["tokenizer"]
    return Fertility(f"tokenizer {sha256[:12]}", str(path), of_language, of_script, sha256=sha256)
