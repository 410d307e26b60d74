"""`emma tokenizer extend` as typed: what it leaves in OUT."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from click.testing import CliRunner

from emma.base.files import write_json
from emma.commands.tokenizer import group
from emma.tools.tokenizer.extend import read_extension
from tests.small_recipe import write_small_run
from tests.tiny_text import BEGIN, END, SENTENCES, train_tokenizer
from tests.tools.tokenizer.tiny_corpus import write_corpus


def test_the_result_holds_what_it_costs_before_and_after(tmp_path: Path) -> None:
    base, out = train_tokenizer(tmp_path / "base", 512), tmp_path / "out"
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    write_json(base / "tokenizer_config.json", names)
    pairs = {
        language: [
            (english, other, "validation")
            for english, other in zip(SENTENCES["eng_Latn"], lines, strict=True)
        ]
        for language, lines in SENTENCES.items()
        if language != "eng_Latn"
    }
    train = {language: list(lines) * 3 for language, lines in SENTENCES.items()}
    write_corpus(tmp_path / "corpus", train, SENTENCES, pairs)
    run = write_small_run(tmp_path, tokenizer=base)
    arguments = ["extend", str(run), str(out), "--tokens", "60", "--workers", "1", "--json"]
    result = CliRunner().invoke(
        group, [*arguments, "tokenizer_extension.min_count=2"], catch_exceptions=False
    )
    assert json.loads(result.stdout)["tokens"] == 60
    rows = pq.read_table(out / "report.parquet").to_pylist()
    tokens = {
        name: sum(row["tokens"] for row in rows if row["tokenizer"] == str(name)) for name in (base, out)
    }
    assert 0 < tokens[out] < tokens[base]
    assert len(rows) == 2 * len(SENTENCES)
    page = (out / "report.html").read_text()
    assert str(out) in page and "hin_Deva" in page
    # All of OUT is in its manifest, and nothing names the folder in which it was written.
    outputs = {record.path for record in read_extension(out).manifest.outputs}
    assert outputs == {path.name for path in out.iterdir()} - {"manifest.json"}
    assert {row["tokenizer"] for row in rows} == {str(base), str(out)}
