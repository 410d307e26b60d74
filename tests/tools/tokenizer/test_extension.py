"""Extensions of five tokenizer styles: their promises hold, and a planted fault breaks each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.base.manifest import FileRecord, Manifest
from emma.recipes.schema.tokenizer import Extension
from emma.recipes.vocabulary import growth_of
from emma.tools.tokenizer import agreement, words
from emma.tools.tokenizer.bpe import Bpe, open_tokenizer
from emma.tools.tokenizer.extend import EXTENSION, extend, read_extension
from emma.tools.tokenizer.promises import held_out, verify
from tests.tiny_text import SENTENCES
from tests.tokenizer_styles import STYLES, write_style
from tests.tools.tokenizer.scripts import DECLARATION
from tests.tools.tokenizer.tiny_corpus import write_corpus

_STYLES = ("llama3", "qwen", "mistral", "llama2", "gemma")
_SETTINGS = Extension(tokens=300, min_count=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd sentences of 20 scripts train, even ones are held out."""
    train = {language: list(lines[0::2]) * 2 for language, lines in DECLARATION.items()}
    rest = {language: list(lines[1::2]) for language, lines in DECLARATION.items()}
    pairs = {
        language: [
            (english, other, "train" if number < 8 else "validation")
            for number, (english, other) in enumerate(zip(SENTENCES["eng_Latn"], lines, strict=True))
        ]
        for language, lines in SENTENCES.items()
        if language != "eng_Latn"
    }
    return write_corpus(tmp_path_factory.mktemp("corpus"), train, rest, pairs)


def _base(folder: Path, style: str) -> Path:
    write_style(folder, style)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": STYLES[style].end},
    )
    return folder


@pytest.fixture(scope="module", params=_STYLES)
def made(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    base = _base(folder / "base", request.param)
    extend(open_tokenizer(base), corpus, folder / "out", _SETTINGS)
    return base, folder / "out"


def _faults(base: Path, out: Path, corpus: Path, *, repeat: bool = False) -> list[str]:
    return verify(base, out, held_out(corpus, 16, 20_000), corpus=corpus if repeat else None).faults


def test_promises_hold(made: tuple[Path, Path], corpus: Path) -> None:
    base, out = made
    found = verify(base, out, held_out(corpus, 16, 20_000), corpus=corpus)
    assert found.faults == []
    assert found.counts["languages"] >= 20
    assert found.counts["new_tokens_used"] > 100
    assert found.unread == []


def _rewrite(out: Path, change: Any) -> None:
    """Changes tokenizer.json as its maker might have, checksums included."""
    value = json.loads((out / "tokenizer.json").read_text())
    change(value)
    (out / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False))
    _seal(out)


def _seal(out: Path) -> None:
    manifest = Manifest.read(out)
    manifest.outputs = [FileRecord.of(out / record.path, out) for record in manifest.outputs]
    manifest.write(out)


def _copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    import shutil

    return made[0], Path(shutil.copytree(made[1], tmp_path / "out"))


@pytest.fixture
def llama3(corpus: Path, tmp_path: Path) -> tuple[Path, Path]:
    base = _base(tmp_path / "base", "llama3")
    extend(open_tokenizer(base), corpus, tmp_path / "out", _SETTINGS)
    return base, tmp_path / "out"


def test_control_tokens_outside_the_vocabulary_are_found(llama3: tuple[Path, Path], corpus: Path) -> None:
    def leave_out(value: dict[str, Any]) -> None:
        for token in value["added_tokens"]:
            del value["model"]["vocab"][token["content"]]

    _rewrite(llama3[1], leave_out)
    faults = _faults(*llama3, corpus)
    assert any("outside model.vocab" in fault for fault in faults)
    assert any(fault.startswith("transformers gives '<|begin_of_text|>'") for fault in faults)


def test_a_merge_before_old_ones_is_found(llama3: tuple[Path, Path], corpus: Path) -> None:
    def to_front(value: dict[str, Any]) -> None:
        merges = value["model"]["merges"]
        size = len(read_extension(llama3[1]).rows)
        # All of them, so that text shows it too.
        value["model"]["merges"] = merges[-size:] + merges[:-size]

    _rewrite(llama3[1], to_front)
    faults = _faults(*llama3, corpus)
    assert any("merges don't come first" in fault for fault in faults)
    assert any("pieces are not the base's ids" in fault for fault in faults)


def test_a_shifted_table_of_pieces_is_found(llama3: tuple[Path, Path], corpus: Path) -> None:
    path = llama3[1] / EXTENSION
    table = pq.read_table(path)
    pieces = table["pieces"].to_pylist()
    place = table.schema.get_field_index("pieces")
    shifted = pa.array([pieces[-1], *pieces[:-1]], table.schema.field("pieces").type)
    pq.write_table(table.set_column(place, table.schema.field("pieces"), shifted), path)
    _seal(llama3[1])
    assert any("has the pieces" in fault for fault in _faults(*llama3, corpus))


@pytest.mark.parametrize(
    ("name", "key", "value", "fault"),
    [
        ("tokenizer_config.json", "chat_template", "{{ x }}", "tokenizer_config.json is not the base's"),
        ("vocabulary_extension.json", "tokens", 7, "vocabulary_extension.json does not say what"),
    ],
)
def test_changed_companions_are_found(
    llama3: tuple[Path, Path], name: str, key: str, value: object, fault: str
) -> None:
    path = llama3[1] / name
    write_json(path, {**json.loads(path.read_text()), key: value})
    _seal(llama3[1])
    assert [each for each in verify(*llama3, {}).faults if each.startswith(fault)]


def test_tokens_without_a_row_are_found(llama3: tuple[Path, Path], corpus: Path) -> None:
    path = llama3[1] / EXTENSION
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path)
    _seal(llama3[1])
    faults = _faults(*llama3, corpus)
    assert any("300 new tokens, which are not the 299" in fault for fault in faults)
    assert any("pieces are not the base's ids" in fault for fault in faults)


def test_what_an_engine_does_with_the_base_too_is_no_fault(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastokens")
    base = _base(tmp_path / "base", "llama2")
    extend(open_tokenizer(base), corpus, tmp_path / "out", _SETTINGS)
    # fastokens 0.3 reads the spelling of a byte token as that token.
    found = verify(base, tmp_path / "out", {"eng_Latn": ["plain text", "hexadecimal <0x41>"]})
    assert found.faults == []
    assert "as it does with the base" in found.engines["fastokens"]
    path = tmp_path / "out" / "tokenizer.json"
    real = agreement.load_engine

    def other(name: str, file: Any) -> Any:
        engine = real(name, file)
        if name == "fastokens" and file.path == path:
            return real(name, open_tokenizer(base))
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "load_engine", other)
        faults = verify(base, tmp_path / "out", {"eng_Latn": DECLARATION["tha_Thai"][:2]}).faults
    assert any("fastokens gives other ids than the reference" in fault for fault in faults)


def test_validation_text_that_was_read_is_found(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _base(tmp_path / "base", "llama3")
    real = words.documents

    def every(root: Path, part: Any, column: str, split: str) -> Any:
        yield from real(root, part, column, "train")
        yield from real(root, part, column, "validation")

    with monkeypatch.context() as patch:
        patch.setattr(words, "documents", every)
        extend(open_tokenizer(base), corpus, tmp_path / "out", _SETTINGS)
    faults = _faults(base, tmp_path / "out", corpus, repeat=True)
    assert any("made of other text" in fault for fault in faults)


def test_a_word_of_validation_text_gives_no_token(corpus: Path, tmp_path: Path) -> None:
    root = write_corpus(
        tmp_path / "corpus", {"eng_Latn": ["abab abab abab"]}, {"eng_Latn": ["zqzqzq zqzqzq zqzqzq"] * 9}
    )
    base = _base(tmp_path / "base", "qwen")
    extend(open_tokenizer(base), root, tmp_path / "out", Extension(tokens=50, min_count=2))
    tokens = [row["token"] for row in read_extension(tmp_path / "out").rows]
    assert tokens
    assert not any("q" in token for token in tokens)


@pytest.mark.parametrize("selection", ["temperature", "parity"])
def test_any_process_and_hash_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path, selection: str) -> None:
    base = _base(tmp_path / "base", "qwen")
    code = (
        "import sys; from pathlib import Path; from emma.tools.tokenizer.extend import extend;"
        "from emma.tools.tokenizer.bpe import open_tokenizer; from emma.recipes.schema.tokenizer import Extension\n"
        "if __name__ == '__main__': extend(open_tokenizer(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]),"
        f" Extension(tokens=200, min_count=2, selection={selection!r}), workers=int(sys.argv[4]))"
    )
    script = tmp_path / "make.py"
    script.write_text(code)
    for workers, seed in ((1, 1), (4, 2)):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(workers)}
        out = tmp_path / f"out{workers}"
        arguments = [sys.executable, "-P", str(script), str(base), str(corpus), str(out), str(workers)]
        subprocess.run(arguments, check=True, env=environment)
    for name in ("tokenizer.json", EXTENSION):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out4" / name).read_bytes()


def test_languages_are_counted_in_their_order_whoever_counts_them(corpus: Path, tmp_path: Path) -> None:
    bpe = Bpe.read(open_tokenizer(_base(tmp_path / "base", "qwen")))
    # Work is shared out by size; ties between languages must not depend on that.
    found = words.count_words(bpe, corpus, 1 << 20)
    assert found.languages == sorted(found.languages)
    assert len(found.languages) >= 20


def test_parity_serves_the_most_expensive_language(corpus: Path, tmp_path: Path) -> None:
    base = _base(tmp_path / "base", "llama3")
    settings = {"tokens": 40, "min_count": 2}
    served = {}
    for selection in ("temperature", "parity"):
        out = tmp_path / selection
        extend(open_tokenizer(base), corpus, out, Extension(**settings, selection=selection))
        own = Bpe.read(open_tokenizer(out))
        served[selection] = sum(
            len(ids) for ids in own.encode_words(list(own.words(dict.fromkeys(SENTENCES["hin_Deva"], 1))))
        )
    assert served["parity"] < served["temperature"]
    unserved = read_extension(tmp_path / "parity").manifest.extra["without_pairs"]
    assert "tha_Thai" in unserved and "hin_Deva" not in unserved
    growth = growth_of(tmp_path / "parity")
    assert growth is not None and "hin_Deva" in growth.languages and "tha_Thai" not in growth.languages
    assert read_extension(tmp_path / "temperature").manifest.extra["without_pairs"] == []
    assert verify(base, tmp_path / "parity", {}).faults == []


def test_marks_belong_to_words(corpus: Path, tmp_path: Path) -> None:
    base = _base(tmp_path / "base", "llama3")
    extend(
        open_tokenizer(base), corpus, tmp_path / "out", Extension(tokens=300, min_count=2, pattern="marks")
    )
    found = verify(base, tmp_path / "out", held_out(corpus, 16, 20_000), corpus=corpus)
    assert found.faults == []
    assert any("marks" in line for line in found.unread)
    own = Bpe.read(open_tokenizer(tmp_path / "out"))
    assert len(own.words({"किताब": 1})) == 1
    assert len(Bpe.read(open_tokenizer(base)).words({"किताब": 1})) > 1


@pytest.mark.parametrize(
    "style, message", [("wordpiece", "its model is WordPiece"), ("unigram", "its model is Unigram")]
)
def test_other_models_are_refused(corpus: Path, tmp_path: Path, style: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        extend(open_tokenizer(_base(tmp_path / "base", style)), corpus, tmp_path / "out", _SETTINGS)
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_there_is_nothing_to_add(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "corpus", {"eng_Latn": ["a"]})
    with pytest.raises(UserError, match="nothing to add"):
        extend(open_tokenizer(_base(tmp_path / "base", "qwen")), root, tmp_path / "out", _SETTINGS)
    assert not (tmp_path / "out").exists()


def test_missing_characters_come_first_and_bytes_are_never_merged(corpus: Path, tmp_path: Path) -> None:
    base = _base(tmp_path / "base", "llama2")
    extend(open_tokenizer(base), corpus, tmp_path / "out", _SETTINGS)
    rows = read_extension(tmp_path / "out").rows
    kinds = [row["left"] is None for row in rows]
    assert any(kinds) and kinds == sorted(kinds, reverse=True)
    assert not any("<0x" in row["token"] for row in rows)
    assert all(row["bytes"].decode() for row in rows)
