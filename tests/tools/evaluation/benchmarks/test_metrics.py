"""Metrics against independent computations."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import sacrebleu.tokenizers.tokenizer_spm
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, f1_score

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks import answers, choices, diversity, summaries, translation
from emma.tools.evaluation.benchmarks.definitions import get_benchmark, spbleu_model
from emma.tools.evaluation.benchmarks.items import Item
from emma.tools.evaluation.benchmarks.metrics import Resources, measure
from emma.tools.evaluation.benchmarks.scores import Response, mean_score
from tests.tools.evaluation.benchmarks.sample_mirror import SENTENCES

LABELS = ("science", "travel", "politics", "a")


def answered(gold: list[int], chosen: list[int]) -> tuple[list[Item], list[Response]]:
    items = [Item(n, "", LABELS, label) for n, label in enumerate(gold)]
    responses = [Response(likelihoods=tuple(-1.0 - (k != label) for k in range(4))) for label in chosen]
    return items, responses


def sentences(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    words = "the cat sat on a mat . and it slept there , well".split()
    return [" ".join(generator.choices(words, k=generator.randint(3, 20))) for _ in range(count)]


def test_accuracy_and_f1_against_scikit_learn() -> None:
    generator = random.Random(0)
    gold = [generator.randrange(4) for _ in range(60)]
    chosen = [label if generator.random() < 0.5 else generator.randrange(3) for label in gold]
    items, responses = answered(gold, chosen)
    accuracy, f1 = choices.accuracy(items, responses), choices.macro_f1(items, responses)
    assert accuracy.value == pytest.approx(accuracy_score(gold, chosen))
    assert accuracy.error == pytest.approx(np.std(np.equal(gold, chosen), ddof=1) / np.sqrt(60))
    assert f1.value == pytest.approx(f1_score(gold, chosen, average="macro"))
    assert f1.error is not None
    assert 0.03 < f1.error < 0.12


@pytest.mark.parametrize(
    ("gold", "chosen"), [([0, 0, 1], [0, 1, 1]), ([0, 0, 1, 2], [0, 1, 1, 0]), ([0, 0, 1, 1], [0, 1, 1, 2])]
)
def test_labels_count_once_they_are_given(gold: list[int], chosen: list[int]) -> None:
    items, responses = answered(gold, chosen)
    assert choices.macro_f1(items, responses).value == pytest.approx(f1_score(gold, chosen, average="macro"))


def test_collapse_and_baselines() -> None:
    items, responses = answered([0, 0, 1, 2], [1, 1, 1, 2])
    assert choices.label_collapse(items, responses).value == 0.75
    assert {name: score.value for name, score in choices.baselines(items).items()} == {
        "chance": 0.25,
        "majority": 0.5,
    }


def test_length_decides_only_where_asked() -> None:
    items = [Item(0, "", ("ab", "abcdef"), 1)]
    responses = [Response(likelihoods=(-2.0, -3.0))]
    assert choices.accuracy(items, responses).value == 0
    assert choices.accuracy(items, responses, by_length=True).value == 1
    # Equal likelihoods: the last by its text, as the authors' reverse sorting has it.
    assert choices.predictions([Item(0, "", ("b", "c", "a"), 0)], [Response(likelihoods=(-1, -1, -1))]) == [1]


def test_translation_metrics_are_sacrebleus(
    spm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, references = sentences(20, 1), sentences(20, 2)
    outputs[3] = ""
    chrf = translation.chrf(outputs, references)
    assert chrf.value == pytest.approx(CHRF(word_order=2).corpus_score(outputs, [references]).score)
    assert "nw:2" in chrf.signature
    assert chrf.signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")
    bleu = translation.bleu(outputs, references)
    assert bleu.value == pytest.approx(BLEU().corpus_score(outputs, [references]).score)
    assert "tok:13a" in bleu.signature

    # sacrebleu takes whatever is where it keeps the FLORES-200 model.
    (tmp_path / "models").mkdir()
    shutil.copy(spm, tmp_path / "models" / "flores200sacrebleuspm")
    monkeypatch.setattr(sacrebleu.tokenizers.tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    expected = BLEU(tokenize="flores200")
    value = expected.corpus_score(outputs, [references]).score
    found = translation.SentencePiece(spm, spbleu_model().sha256)
    other = translation.spbleu(found, outputs, references)
    assert other.value == pytest.approx(value)
    assert f"tok:spm-{found.sha256[:12]}" in other.signature
    right = translation.SentencePiece(spm, found.sha256)
    assert translation.spbleu(right, outputs, references).signature == expected.get_signature().format()
    # The items' statistics give the corpus score back.
    total = np.sum(other.items, axis=0).astype(int).tolist()
    assert expected._compute_score_from_stats(total).score == pytest.approx(value)


def test_error_of_a_corpus_score_is_that_of_a_bootstrap() -> None:
    outputs, references = sentences(200, 3), sentences(200, 4)
    generator = random.Random(0)
    drawn = []
    for _ in range(60):
        chosen = [generator.randrange(200) for _ in range(200)]
        scored = CHRF(word_order=2).corpus_score(
            [outputs[n] for n in chosen], [[references[n] for n in chosen]]
        )
        drawn.append(scored.score)
    assert translation.chrf(outputs, references).error == pytest.approx(np.std(drawn), rel=0.35)


def test_spbleu_never_takes_another_model_silently(spm: Path, tmp_path: Path) -> None:
    known = spbleu_model()
    with pytest.raises(UserError, match="spBLEU needs the FLORES-200 sentencepiece model"):
        translation.find_spbleu_model(known, None, None, allow_other=True)
    with pytest.raises(UserError, match=r"is not that of the FLORES-200 .* --spbleu-other"):
        translation.find_spbleu_model(known, spm, None, allow_other=False)
    with pytest.raises(UserError, match="no such file"):
        translation.find_spbleu_model(known, tmp_path / "none", spm, allow_other=True)
    found = translation.find_spbleu_model(known, None, spm, allow_other=True)
    assert not found.is_flores200
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"no model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        translation.find_spbleu_model(known, broken, None, allow_other=True)


@pytest.mark.parametrize("code", ["tha_Thai", "zho_Hans", "hin_Deva", "swh_Latn"])
def test_rouge_of_identical_texts_is_one(code: str) -> None:
    text = SENTENCES[code]
    assert summaries.rouge_unicode([text], [text]).value == 1
    assert summaries.rouge_unicode([text[: len(text) // 2]], [text]).value > 0.5
    assert summaries.rouge_unicode([""], [text]).value == 0


def test_rouge_by_ascii_loses_other_scripts() -> None:
    assert summaries.rouge_ascii([SENTENCES["tha_Thai"]], [SENTENCES["tha_Thai"]]).value == 0
    assert summaries.rouge_ascii([SENTENCES["eng_Latn"]], [SENTENCES["eng_Latn"]]).value == 1


@pytest.mark.parametrize(
    ("output", "reference", "value"),
    [
        # Computed with `rouge` 1.0.1, `Rouge(metrics=["rouge-l"]).get_scores(output, reference)`, entry `f`.
        ("The cat sat. On the mat it sat.", "A cat sat on the mat. It slept", 0.5333333283555556),
        ("g g a e . h g e h f . d . c e c b . e . cat . c e b cat b the x", "h . b f g f . the d . h x", 0.7777777730246914),
        ("人人生而自由", "人人生而", 0.0),
    ],
)  # fmt: skip
def test_rouge_by_whitespace_is_that_of_the_rouge_package(output: str, reference: str, value: float) -> None:
    assert summaries.rouge_whitespace_item(output, reference) == pytest.approx(value, abs=1e-9)


def test_empty_outputs_count_or_are_dropped() -> None:
    items = [Item(n, "p", reference="a b c") for n in range(4)]
    responses = [Response(text=text) for text in ("a b c", "", "...", "a b c")]
    sound = measure(get_benchmark("xlsum"), "eng_Latn", items, responses, Resources())
    assert sound["rougeL_uni"].value == pytest.approx(0.5)
    assert sound["empty_rate"].value == 0.5
    authors = measure(get_benchmark("xlsum_emma"), "eng_Latn", items, responses, Resources())
    assert authors["rougeL_ws"].value == pytest.approx(1, abs=1e-6)
    assert (authors["rougeL_ws"].n, authors["empty_rate"].value) == (2, 0.5)


def test_self_bleu_is_sacrebleus() -> None:
    texts = sentences(9, 5)
    texts[4] = texts[2]
    metric = BLEU(effective_order=True)
    expected = [metric.sentence_score(text, texts[:n] + texts[n + 1 :]).score for n, text in enumerate(texts)]
    assert diversity.self_bleu(texts).items == pytest.approx(expected)
    authors = BLEU(force=True)
    expected = [
        authors.corpus_score([text], [texts[:n] + texts[n + 1 :]]).score for n, text in enumerate(texts)
    ]
    assert diversity.self_bleu_first(texts).items == pytest.approx(expected)
    assert diversity.distinct(["a b a b"], 2).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7.", "7."),
        ("The answer is 1,250", "1,250"),
        ("none", "[invalid]"),
        ("-5 then $12", "$12"),
    ],
)
def test_the_last_number_is_the_answer(text: str, number: str) -> None:
    assert answers.answer_number(text) == number


def test_exact_match_ignores_punctuation() -> None:
    assert answers.exact_match(["1,250.", "[invalid]"], ["1250", "3"]).items == [1.0, 0.0]
    assert answers.answer_number("Jibu ni 12. Ndiyo 13", r"Jibu ni (\-?[0-9\.\,]+)") == "12."


def test_off_target_script() -> None:
    texts = [SENTENCES["hin_Deva"], SENTENCES["eng_Latn"], "12"]
    score = answers.off_target_rate(texts, "hin_Deva")
    assert score is not None
    assert (score.value, score.n) == (0.5, 2)
    # Characters alone are Japanese too, simplified ones are not.
    japanese = ["人口一万人以下市町村", "これは日本語の文です", SENTENCES["zho_Hans"]]
    assert answers.off_target_rate(japanese, "jpn_Jpan").items == [0.0, 0.0, 1.0]  # type: ignore[union-attr]
    assert answers.off_target_rate(texts, "sw") is None


def test_mean_of_nothing_is_no_score() -> None:
    assert (mean_score([None]).n, mean_score([None]).error) == (0, None)
