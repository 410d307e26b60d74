from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.recipes.schema.corpus import Identification
from emma.tools.corpus.build import build_corpus, totals
from emma.tools.corpus.identification import Identifier, identifier
from tests.tools.corpus.raw_text import (
    ARTICLE,
    LANGUAGES,
    build_at,
    mono_source,
    pair_source,
    rows_of,
    write_jsonl,
)


class Model:
    """A model that knows four labels and says one."""

    def __init__(self, answer: str, probability: float) -> None:
        self.labels = ["en", "__nb", "no", "de"]
        self.answer = answer, probability

    def predict(self, text: str) -> tuple[str, float]:
        return self.answer


TEXT = "Some text that is long enough to be identified. " * 5


@pytest.mark.parametrize(
    ("label", "answer", "probability", "mismatch"),
    [
        ("eng_Latn", "de", 0.99, True),
        ("eng_Latn", "de", 0.5, False),
        ("eng_Latn", "en", 0.99, False),
        ("nno_Latn", "no", 0.99, False),  # one macro-language
        ("yor_Latn", "en", 0.99, False),  # the model does not know the label's language
        ("eng_Latn", "strange", 0.99, False),
    ],
)
def test_what_overrules_a_label(label: str, answer: str, probability: float, mismatch: bool) -> None:
    judge = Identifier(Identification(), Model(answer, probability))
    assert (judge.mismatch(TEXT, label) is not None) == mismatch
    assert judge.mismatch("short", label) is None


def test_py3langid_judges_real_text(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    rows = [{"lang": language, "text": ARTICLE[language]} for language in ("en", "de", "fr", "ru")]
    rows.append({"lang": "fr", "text": ARTICLE["de"]})
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    build = build_at(
        tmp_path / "corpus", {"s": mono_source(raw)}, identification=Identification(backend="py3langid")
    )
    build_corpus(build)
    assert totals(build)["filtered"]["removed_by"] == {"language_mismatch": 1}
    assert {row["language"] for row in rows_of(build.root, "split")} == {
        LANGUAGES[x] for x in ("en", "de", "fr", "ru")
    }


def test_sides_of_a_pair_that_were_swapped(tmp_path: Path) -> None:
    """The script says nothing about English and German; the model does."""
    pytest.importorskip("py3langid")
    sides = {"src_lang": "en", "tgt_lang": "de"}
    pairs = [
        {**sides, "src_text": ARTICLE["en"], "tgt_text": ARTICLE["de"]},
        {**sides, "src_text": ARTICLE["de"], "tgt_text": ARTICLE["en"]},
    ]
    build = build_at(
        tmp_path / "corpus",
        {"p": pair_source(write_jsonl(tmp_path / "pairs.jsonl", pairs))},
        identification=Identification(backend="py3langid"),
    )
    build_corpus(build)
    assert totals(build)["filtered"]["removed_by"] == {"language_mismatch": 1}
    assert [row["src_text"] for row in rows_of(build.root, "split")] == [ARTICLE["en"]]


def test_a_file_that_is_not_a_fasttext_model(tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    with pytest.raises(UserError, match="does not exist"):
        identifier(Identification(backend="fasttext", model=str(tmp_path / "no.bin")))
    (tmp_path / "bad.bin").write_bytes(b"no model at all")
    with pytest.raises(UserError, match="not a fastText model"):
        identifier(Identification(backend="fasttext", model=str(tmp_path / "bad.bin")))


def test_the_installed_package_reads_a_fasttext_model() -> None:
    pytest.importorskip("fasttext")
    model = Path(__file__).parents[1] / "evaluation" / "quality" / "identifier.ftz"
    found = identifier(Identification(backend="fasttext", model=str(model)))
    assert found is not None and {"eng", "spa", "rus"} <= found.known
    text = "Toda persona tiene derecho a la libertad de pensamiento, de conciencia y de religión. " * 2
    assert found.mismatch(text, "spa_Latn") is None
    assert (found.mismatch(text, "eng_Latn") or "").startswith("spa_Latn (")


def test_a_model_belongs_to_fasttext() -> None:
    with pytest.raises(ValueError, match="go together"):
        Identification(backend="fasttext")
