"""A small mirror for the demo's benchmark: of each held-out sentence, which of four is the translation?"""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import click
import orjson

from emma.base.errors import UserError
from emma.base.staging import staged_folder
from emma.tools.demo.commands import run_command
from emma.tools.demo.corpus_text import languages_of
from emma.tools.languages.labels import language_name

__all__ = ["write_mirror"]

FOLDER = "demo_pairs"
"""Folder in the mirror, as `recipes/evaluation/benchmarks.yaml` names it."""

_ENGLISH = "eng_Latn"
_LEAST, _MOST = 12, 24
"""Items of a language: with fewer nothing could be said of it, with more the demo would take longer."""
_ALIKE = 9
"""Wrong answers come from this many sentences nearest in length, so that length doesn't give the right one away."""


def write_mirror(corpus: Path, mirror: Path) -> dict[str, int]:
    """Writes `<mirror>/demo_pairs/<language>.jsonl` from the corpus's validation pairs with English.

    The three wrong answers are translations of other held-out sentences of like length. Sentences and translations that occur twice are
    left out, and so are translations equal to their sentence.

    Args:
        corpus: folder of the built corpus.
        mirror: folder of benchmarks.

    Returns:
        Items by language; languages with fewer than twelve are left out.

    Raises:
        UserError: the corpus is not built, or has no language with enough held-out pairs.
    """
    items: dict[str, list[dict[str, str | int]]] = {}
    for pair in languages_of(corpus, "parallel"):
        source, _, target = pair.partition("-")
        if source != _ENGLISH:
            continue
        pairs = _held_out(corpus / "split" / "parallel" / pair)
        if len(pairs) >= _LEAST:
            items[target] = _items(target, pairs)
    if not items:
        raise UserError(
            f"{corpus}: no language has {_LEAST} held-out pairs with English. Fix: build the corpus of the run `demo`"
        )
    with staged_folder(mirror / FOLDER, overwrite=True) as staging:
        for language, rows in items.items():
            (staging / f"{language}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return {language: len(rows) for language, rows in items.items()}


def _held_out(folder: Path) -> list[tuple[str, str]]:
    """Validation pairs of a folder, each side once."""
    import pyarrow.parquet as pq

    rows = [
        (row["src_text"].strip(), row["tgt_text"].strip())
        for path in sorted(folder.glob("part-*.parquet"))
        for row in pq.read_table(path, columns=["src_text", "tgt_text", "split"]).to_pylist()
        if row["split"] != "train"
    ]
    sources, targets = Counter(source for source, _ in rows), Counter(target for _, target in rows)
    return [
        (source, target)
        for source, target in rows
        if sources[source] == targets[target] == 1 and source.casefold() != target.casefold()
    ]


def _items(language: str, pairs: list[tuple[str, str]]) -> list[dict[str, str | int]]:
    generator = random.Random(language)
    names = [re.sub(r" \([^)]*\)$", "", language_name(code)) for code in (_ENGLISH, language)]
    found = []
    for source, target in generator.sample(pairs, min(_MOST, len(pairs))):
        others = sorted(
            (other for _, other in pairs if other != target), key=lambda o: abs(len(o) - len(target))
        )
        choices = [target, *generator.sample(others[:_ALIKE], 3)]
        generator.shuffle(choices)
        row: dict[str, str | int] = {"source": source, "source_name": names[0], "target_name": names[1]}
        row |= {f"choice{number}": choice for number, choice in enumerate(choices, 1)}
        found.append({**row, "answer": choices.index(target)})
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("mirror", type=click.Path(path_type=Path))
def command(corpus: Path, mirror: Path) -> None:
    """Write the demo's benchmark into MIRROR from the held-out translations of CORPUS: four choices a sentence."""
    counts = write_mirror(corpus, mirror)
    click.echo(f"{sum(counts.values())} items in {len(counts)} languages in {mirror / FOLDER}")


if __name__ == "__main__":
    run_command(command)
