"""Prompts of the authors' variants, letter for letter, and how their examples are drawn."""

from __future__ import annotations

import random

import numpy as np
import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_benchmark
from emma.tools.evaluation.benchmarks.items import Item, build_items, draws, render, stops
from emma.tools.evaluation.benchmarks.stores import Mirror
from tests.tools.evaluation.benchmarks.sample_mirror import SENTENCES


def item(name: str, language: str, store: Mirror, number: int = 0, **options: int) -> Item:
    return build_items(get_benchmark(name), language, store, **options)[number]


def shown(prompt: str) -> list[int]:
    """Numbers in parentheses: which examples a prompt shows, and its own."""
    return [int(part.split(")")[0]) for part in prompt.split("(")[1:] if part.split(")")[0].isdigit()]


SW, EN, HI = SENTENCES["swh_Latn"], SENTENCES["eng_Latn"], SENTENCES["hin_Deva"]


def authors_seeds(count: int) -> list[int]:
    random.seed(42)
    return [random.randint(0, 1000) for _ in range(count)]


def test_sib200(store: Mirror) -> None:
    first, second, third = np.random.RandomState(authors_seeds(1)[0]).choice(12, 3, replace=False)
    topics = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
    expected = (
        "Topic Classification: science/technology, travel, politics, sports, health, entertainment, geography.\n\n"
        f'The topic of the news "{SW} ({first}) "quoted" train" is {topics[first % 7]}\n'
        f'The topic of the news "{SW} ({second}) "quoted" train" is {topics[second % 7]}\n'
        f'The topic of the news "{SW} ({third}) "quoted" train" is {topics[third % 7]}\n'
        f'The topic of the news "{SW} (0) "quoted" test" is\n'
    )
    found = item("sib200_emma", "swh_Latn", store)
    assert found.prompt == expected
    assert found.choices == tuple(topics)
    assert found.gold == 0
    # The sound variant asks the same without the line break, so that " label" follows.
    assert item("sib200", "swh_Latn", store).prompt == expected[:-1]


def test_taxi1500(store: Mirror) -> None:
    labels = ["Recommendation", "Faith", "Description", "Sin", "Grace", "Violence"]
    first, second, third = np.random.RandomState(authors_seeds(2)[1]).choice(12, 3, replace=False)
    verses = [f"{SW} ({n}) train" for n in range(12)]
    verses[0] = '"' + verses[0]
    shots = "\n".join(
        f'The topic of the verse "{verses[n]}" is {labels[n % 6]}' for n in (first, second, third)
    )
    head = "Topic Classification: Recommendation, Faith, Description, Sin, Grace, Violence.\n\n"
    found = item("taxi1500_emma", "swh_Latn", store, number=1)
    assert found.prompt == f'{head}{shots}\nThe label of "{SW} (1) test" is\n'
    assert item("taxi1500", "swh_Latn", store, number=1).prompt == (
        f'{head}{shots}\nThe topic of the verse "{SW} (1) test" is'
    )
    assert found.gold == 1


def test_flores200(store: Mirror) -> None:
    generator = random.Random(authors_seeds(1)[0])
    numbers = [generator.randint(0, 8) for _ in range(3)]
    shots = "".join(f"[English]: {EN} ({n}) dev\n[Swahili]: {SW} ({n}) dev\n" for n in numbers)
    found = item("flores200_eng_x_emma", "eng_Latn-swh_Latn", store)
    assert found.prompt == (
        f"{shots}Translate the following sentence from English to Swahili\n"
        f"[English]: {EN} (0) devtest\n[Swahili]:"
    )
    assert found.reference == f"{SW} (0) devtest"
    back = item("flores200_x_eng_emma", "swh_Latn-eng_Latn", store, shots=1)
    assert back.prompt == (
        f"[Swahili]: {SW} ({numbers[0]}) dev\n[English]: {EN} ({numbers[0]}) dev\n"
        "Translate the following sentence from Swahili to English\n"
        f"[Swahili]: {SW} (0) devtest\n[English]:"
    )
    benchmark = get_benchmark("flores200_eng_x_emma")
    assert benchmark.max_new_tokens == 2048
    assert benchmark.sampling is not None
    assert (benchmark.sampling.temperature, benchmark.sampling.top_p) == (0.6, 0.9)
    assert stops(benchmark, "swh_Latn") == ("\n",)
    assert get_benchmark("flores200_eng_x").sampling is None


def test_xcopa_xstorycloze_xnli(store: Mirror) -> None:
    # The premise loses its last character and gets the language's connective; choices begin in lower case.
    found = [item("xcopa_emma", "sw", store, n) for n in range(2)]
    assert [one.prompt for one in found] == [f"{SW} (0) kwa sababu", f"{SW} (1) kwa hiyo"]
    assert found[1].choices == (f"abc {SW} (1)", f"xyz {SW} (2)")
    assert [one.gold for one in found] == [0, 1]
    story = item("xstorycloze_emma", "sw", store, 1)
    assert story.prompt == f"{SW} (1) 1. {SW} (1) 2. {SW} (1) 3. {SW} (1) 4."
    assert (story.choices, story.gold) == ((f"{SW} (1) A", f"{SW} (1) B"), 1)
    inference = item("xnli_emma", "sw", store, 2)
    assert inference.prompt == ""
    assert inference.choices == (
        f"{SW} (2), sahihi? Ndiyo, {SW} (3)",
        f"{SW} (2), sahihi? Hivyo, {SW} (3)",
        f"{SW} (2), sahihi? Hapana, {SW} (3)",
    )
    assert inference.gold == 2


def test_belebele_and_arc(store: Mirror) -> None:
    found = item("belebele_emma", "swh_Latn", store, 3)
    assert found.prompt == (
        f"P: {SW} (3)\nQ: {SW} (3)?\nA: {SW} (3) 1\nB: {SW} (3) 2\nC: {SW} (3) 3\nD: {SW} (3) 4\nAnswer:"
    )
    assert (found.choices, found.gold) == (("A", "B", "C", "D"), 3)
    found = item("arc_multilingual_emma", "hi", store, 1)
    # Brackets go, double spaces too, and the missing fifth option is not a choice.
    assert found.prompt == f"Question: {HI} (1) x y\nAnswer:"
    assert found.choices == tuple(f"{HI} (1) {letter}" for letter in "abcd")
    assert found.gold == 1


def test_summaries(store: Mirror) -> None:
    article = " ".join(f"{SW} ({n})" for n in range(1, 12))
    found = item("xlsum_emma", "swh_Latn", store)
    assert found.prompt == (
        f"Hati: {article}\nKulingana na maandishi yaliyotangulia, toa muhtasari mmoja mfupi:"
    )
    assert found.reference == f"{SW} (0)"
    english = item("xlsum_emma", "eng_Latn", store).prompt
    assert english.startswith(f"Document: {EN} (1)")
    assert english.endswith(f"{EN} (11)\nBased on the previous text, provide a brief single summary::")
    assert (get_benchmark("xlsum_emma").max_new_tokens, get_benchmark("xlsum_emma").stop) == (64, ())
    short = item("massivesumm_short_emma", "hin_Deva", store)
    article = " ".join(f"{HI} ({n})" for n in range(1, 8))
    assert (
        short.prompt == f"Document\n\n{article}\n\nBased on the previous text, provide a brief single summary"
    )


def test_mgsm(store: Mirror) -> None:
    direct = item("mgsm_direct_emma", "sw", store, 4, shots=0)
    assert direct.prompt == f"Swali: {SW} (4)?\nAnswer:"
    assert direct.reference == "4"
    cot = item("mgsm_cot_emma", "sw", store, 4, shots=0)
    assert cot.prompt == f"Swali: {SW} (4)?\nJibu la Hatua kwa Hatua:"
    assert stops(get_benchmark("mgsm_cot_emma"), "sw") == ("Swali:", "</s>", "<|im_end|>")
    first, second, third = random.Random(1234).sample(range(8), 3)
    expected = "".join(
        f"Swali: {SW} ({n})?\nJibu la Hatua kwa Hatua: {n} + 1. The answer is {n + 1}.\n\n"
        for n in (first, second, third)
    )
    assert item("mgsm_cot_emma", "sw", store).prompt == (
        f"{expected}Swali: {SW} (0)?\nJibu la Hatua kwa Hatua:"
    )
    assert item("mgsm_direct_emma", "sw", store).prompt.startswith(
        f"Swali: {SW} ({first})?\nAnswer:{first + 1}\n\nSwali:"
    )


def test_open_ended_and_likelihood(store: Mirror) -> None:
    assert item("aya_emma", "hin_Deva", store).prompt == f"{EN} (0) dolly_machine_translated"
    assert item("polywrite_emma", "hin_Deva", store, 2).prompt == f"{HI} (2)"
    assert item("nll_glot500", "swh_Latn", store, 1).prompt == f"{SW} (1)"
    assert item("nll_pbc", "hin_Deva", store, 1).prompt == f"{HI} (1)"


def test_numbers_of_languages() -> None:
    counts = {name.removesuffix("_emma"): len(get_benchmark(name).languages) for name in benchmark_names()}
    assert counts == {
        "sib200": 205, "taxi1500": 1507, "xcopa": 11, "xstorycloze": 11, "xnli": 15, "flores200_eng_x": 203,
        "flores200_x_eng": 203, "xlsum": 45, "massivesumm_long": 55, "massivesumm_short": 88, "belebele": 122,
        "arc_multilingual": 31, "mgsm_direct": 11, "mgsm_cot": 11, "nll_glot500": 534, "nll_pbc": 370, "aya": 119,
        "polywrite": 240,
    }  # fmt: skip


def test_words_of_every_language() -> None:
    row = {
        "premise": "a b.", "hypothesis": "c", "choice1": "D", "choice2": "E", "question": "cause", "label": 1,
        "text": "t", "summary": "s", "answer": "x" * 40, "answer_number": 1, "source": "s", "target": "t",
    }  # fmt: skip
    for name in ("xnli_emma", "xcopa_emma", "mgsm_cot_emma", "xlsum_emma", "flores200_eng_x"):
        benchmark = get_benchmark(name)
        for code in benchmark.data.codes:
            found = render(benchmark, code, row, [row] if benchmark.shots else [])
            assert found.prompt or found.choices


def test_examples_do_not_depend_on_the_limit(store: Mirror) -> None:
    whole = build_items(get_benchmark("sib200_emma"), "hin_Deva", store)
    assert build_items(get_benchmark("sib200_emma"), "hin_Deva", store, limit=2) == whole[:2]
    assert len({tuple(shown(one.prompt)[:3]) for one in whole}) > 1


def test_pandas_draws_are_those_of_pandas() -> None:
    import pandas as pd

    frame = pd.DataFrame({"number": range(701)})
    drawn = [frame.sample(n=3, random_state=seed)["number"].tolist() for seed in authors_seeds(30)]
    assert [list(numbers) for numbers in draws("pandas", 701, 3, 30)] == drawn


@pytest.mark.parametrize(
    ("name", "row", "part"),
    [
        ("sib200", {"text": "a", "category": "poems"}, "answer `poems` is none of science/technology"),
        ("belebele_emma", {"question": "q"}, "'flores_passage' is undefined; its fields are question"),
        ("xnli_emma", {"premise": "p", "hypothesis": "h", "label": 7}, "index 7, but there are 3 choices"),
        ("xnli_emma", {"premise": "p", "hypothesis": "h", "label": -1}, "index -1"),
    ],
)
def test_bad_rows_are_named(name: str, row: dict[str, object], part: str) -> None:
    with pytest.raises(UserError, match=part):
        render(get_benchmark(name), "en", row, [], 5)
