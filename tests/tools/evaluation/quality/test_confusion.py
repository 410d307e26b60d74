"""Language of outputs, with a fastText model trained on the demo's text (`train_identifier.py`)."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.commands.evaluate import group
from emma.tools.corpus.identification import FastText
from emma.tools.evaluation.benchmarks.records import read_samples, unit_file
from emma.tools.evaluation.quality.confusion import Confusion
from emma.tools.evaluation.results import read_results
from tests.tools.evaluation.quality.saved_outputs import MODEL, write_evaluation
from tests.tools.evaluation.quality.train_identifier import sentences

pytest.importorskip("fasttext")

IDENTIFIER = Path(__file__).with_name("identifier.ftz")


def held_out() -> dict[str, list[str]]:
    """Sentences that the model was not trained on, of five words or ten characters at least."""
    found: dict[str, list[str]] = {}
    for label, sentence in sentences(held_out=True):
        if len(sentence.split()) >= 5 or (label == "cmn_Hani" and len(sentence) >= 15):
            found.setdefault(label, []).append(sentence)
    return found


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words"
    path.write_text("freedom\nrights\nthe\nLondon\nhuman\n")
    return path


def test_the_model_tells_the_languages_apart() -> None:
    scores = {label: Confusion(IDENTIFIER).scores(label, texts, []) for label, texts in held_out().items()}
    rates = {label: found["in_language"].value for label, found in scores.items()}
    assert len(rates) >= 9 and min(rates.values()) >= 0.5 and sum(rates.values()) / len(rates) > 0.9
    # The wrong language in the right script, which the script alone cannot tell.
    wrong = Confusion(IDENTIFIER).scores("ukr_Cyrl", held_out()["rus_Cyrl"], held_out()["ukr_Cyrl"])
    assert wrong["in_language"].value < 0.3 and wrong["reference_in_language"].value > 0.7


def authors(completions: list[str], lang: str, model: FastText, words: set[str]) -> tuple[float, float]:
    """`compute_metrics` of github.com/for-ai/language-confusion for languages with spaces."""
    with_word_errors = with_line_errors = non_skipped = 0
    for completion in completions:
        completion = (
            completion.strip()
            .translate(str.maketrans("", "", string.punctuation))
            .replace("—", " ")
            .replace("،", "")
        )
        lines = [line for line in completion.split("\n") if len(line.split()) >= 5]
        if lines:
            non_skipped += 1
            answers = [model.predict(line) for line in lines]
            if any((label if score > 0.3 else "unknown") != lang for label, score in answers):
                with_line_errors += 1
            elif any(token.strip() in words for line in lines for token in line.split()):
                with_word_errors += 1
    return 1 - with_line_errors / max(1, non_skipped), 1 - with_word_errors / max(
        1, non_skipped - with_line_errors
    )


def test_pass_rates_are_those_of_the_authors(words: Path) -> None:
    texts = held_out()
    russian, english = texts["rus_Cyrl"], texts["eng_Latn"]
    outputs = [
        russian[0],
        "\n".join(russian[:2]),
        f"{russian[0]}\n{english[0]}",
        english[1],
        f"{russian[1]} freedom",
        f"{russian[1]} Freedom the",
        "коротко",
        "",
        f"{russian[0]}\nOK",
    ]
    expected = authors(outputs, "rus_Cyrl", FastText(str(IDENTIFIER)), {"freedom", "rights", "human"})
    found = Confusion(IDENTIFIER, words).scores("rus_Cyrl", outputs, [])
    assert (found["line_pass_rate"].value, found["word_pass_rate"].value) == pytest.approx(expected)
    assert found["line_pass_rate"].items == [1, 1, 0, 0, 1, 1, None, None, 1]
    assert found["word_pass_rate"].items == [1, 1, None, None, 0, 1, None, None, 1]
    # Too short to tell, or in Latin script: no verdict rather than a wrong one.
    assert found["in_language"].items[6:8] == [None, None]
    assert "word_pass_rate" not in Confusion(IDENTIFIER, words).scores("eng_Latn", english, [])
    # A code that names no script has its language's.
    assert "word_pass_rate" not in Confusion(IDENTIFIER, words).scores("en", english, [])
    assert "word_pass_rate" in Confusion(IDENTIFIER, words).scores("ru", russian, [])


def test_what_the_model_only_guesses_is_in_no_language(monkeypatch: pytest.MonkeyPatch) -> None:
    confusion, russian = Confusion(IDENTIFIER), held_out()["rus_Cyrl"][:1]
    for probability, said in ((0.3, 0.0), (0.31, 1.0)):
        monkeypatch.setattr(confusion.backend, "predict", lambda text, p=probability: ("rus_Cyrl", p))
        found = confusion.scores("rus_Cyrl", russian, russian)
        assert {score.value for score in found.values()} == {said}


def test_scripts_without_spaces_are_counted_by_characters(words: Path) -> None:
    chinese = held_out()["cmn_Hani"][0]
    outputs = [
        chinese,
        f"{chinese}rights{chinese}",
        "自由",
        "Everyone has the right to life liberty and security",
    ]
    # Hans and Hani are one script to a label that does not tell them apart.
    found = Confusion(IDENTIFIER, words).scores("zho_Hans", outputs, [])
    assert found["in_language"].items == [1, found["in_language"].items[1], None, 0]
    assert found["line_pass_rate"].items[2:] == [None, 0]
    if found["line_pass_rate"].items[1]:
        assert found["word_pass_rate"].items[:2] == [1, 0]


def test_which_labels_stand_for_a_language() -> None:
    confusion = Confusion(IDENTIFIER)
    assert confusion._right("por_Latn") == {"por_Latn"} and confusion._right("swa_Latn") == {"swh_Latn"}
    # Its own label is missing, and the macro-language's stands in; in another script nothing does.
    assert confusion._right("arz_Arab") == {"arb_Arab"}
    assert not confusion.knows("arb_Latn") and not confusion.knows("fon_Latn")


def test_every_saved_text_is_identified_from_the_command_line(tmp_path: Path, words: Path) -> None:
    texts = held_out()
    russian, ukrainian, english = texts["rus_Cyrl"], texts["ukr_Cyrl"], texts["eng_Latn"]
    folder = write_evaluation(
        tmp_path / "evaluation",
        {
            ("flores200_eng_x", "eng_Latn-ukr_Cyrl"): [
                (english[0], ukrainian[0], ukrainian[1]),
                (english[1], russian[1], ukrainian[2]),
            ],
            ("flores200_x_eng", "ukr_Cyrl-eng_Latn"): [(ukrainian[0], english[0], english[1])],
            ("polywrite", "rus_Cyrl"): [("", russian[0], "")],
            ("humaneval", "eng_Latn"): [("", "def the(x): return x and x or x", "")],
            ("xlsum", "fon"): [("", "Gbɛtɔ lɛ bǐ wɛ nɔ jɔ", "Gbɛtɔ")],
        },
    )
    arguments = ["quality", str(folder), "--glotlid", str(IDENTIFIER), "--english-words", str(words)]
    dry = CliRunner().invoke(group, [*arguments, "--dry-run"], catch_exceptions=False)
    assert "in_language of 4 languages, 3 of them known to lid:identifier" in dry.output
    assert not any(row.metric == "in_language" for row in read_results(folder))
    found = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert "no label for xlsum/fon" in found.stderr
    rows = {(row.language, row.metric): row for row in read_results(folder)}
    assert (
        rows["eng_Latn-ukr_Cyrl", "in_language"].value == 0.5
        and rows["eng_Latn-ukr_Cyrl", "in_language"].n == 2
    )
    assert rows["ukr_Cyrl-eng_Latn", "line_pass_rate"].value == 1
    assert rows["rus_Cyrl", "word_pass_rate"].value == 1 and ("rus_Cyrl", "reference_in_language") not in rows
    assert "lid:identifier|sha256:" in rows["rus_Cyrl", "in_language"].signature
    path = unit_file(folder, MODEL, "flores200_eng_x", "eng_Latn-ukr_Cyrl")
    assert [sample["scores"]["in_language"] for sample in read_samples(path)] == [1, 0]
    # Again without a word list: other scores, and the word-level rate is not left from before.
    CliRunner().invoke(group, arguments[:4], catch_exceptions=False)
    assert not any(row.metric == "word_pass_rate" for row in read_results(folder))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--glotlid: .*nothing\.bin does not exist; fetch the model"):
        Confusion(tmp_path / "nothing.bin")
    (tmp_path / "bad.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a fastText model"):
        Confusion(tmp_path / "bad.bin")
    (tmp_path / "words").write_text("London\nabc\n")
    with pytest.raises(UserError, match="holds no lower-case word of 4 letters"):
        Confusion(IDENTIFIER, tmp_path / "words")
    with pytest.raises(UserError, match=r"--english-words .*none: no such file"):
        Confusion(IDENTIFIER, tmp_path / "none")
