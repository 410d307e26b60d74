from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emma.base.errors import UserError
from emma.tools.evaluation.likelihood import Scorer, cut_windows
from tests.tools.evaluation.tiny_model import END, TEXTS, write_model


@pytest.fixture(scope="module")
def loaded(model: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)


def direct_nll(model: Any, ids: list[int], window: int, stride: int) -> float:
    """One token at a time from `transformers`' own logits: the context of id p is what its window holds before it."""
    total = 0.0
    for position in range(1, len(ids)):
        number = 0 if position <= window else math.ceil((position - window) / stride)
        start = number * stride
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:position]])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, -1)[ids[position]])
    return total


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (17, 17), (17, 5), (64, 1)])
def test_likelihood_equals_direct_computation(loaded: tuple[Any, Any], window: int, stride: int) -> None:
    model, tokenizer = loaded
    documents = [(language, text[:60]) for language, text in TEXTS.items()]
    scores = Scorer(model, tokenizer, window=window, stride=stride, batch_tokens=200).score(documents)
    assert [score.id for score in scores] == list(TEXTS)
    for score, (_, text) in zip(scores, documents, strict=True):
        ids = tokenizer(text)["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == 1
        assert score.tokens == len(ids) - 1
        assert score.bytes == len(text.encode())
        assert abs(score.nll - direct_nll(model, ids, window, stride)) / score.bytes < 1e-6


def test_document_alone_equals_document_in_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    scorer = Scorer(model, tokenizer, window=64)
    documents = [(language, text) for language, text in TEXTS.items()]
    together = scorer.score(documents)
    alone = [scorer.score([document])[0] for document in documents]
    assert [score.nll for score in together] == pytest.approx([score.nll for score in alone], rel=1e-6)


def test_end_of_text_adds_its_own_likelihood(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    text = TEXTS["spa_Latn"][:30]
    without = Scorer(model, tokenizer, window=64).score([("a", text)])[0]
    with_end = Scorer(model, tokenizer, window=64, score_end_of_text=True).score([("a", text)])[0]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, -1].double()
    expected = -float(torch.log_softmax(logits, -1)[tokenizer.eos_token_id])
    assert with_end.tokens == without.tokens + 1
    assert with_end.nll - without.nll == pytest.approx(expected, abs=1e-4)


def test_control_tokens_in_text_are_text(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = Scorer(model, tokenizer, window=64).encode([f"a{END}b"])[0]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids[1:]) == f"a{END}b"


def test_without_begin_of_text_the_end_token_is_the_context(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", begin=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = TEXTS["eng_Latn"][:40]
    score = Scorer(model, tokenizer, window=64).score([("a", text)])[0]
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    assert score.nll == pytest.approx(direct_nll(model, ids, 64, 32), rel=1e-6)


def test_logits_after_the_output_layer_count(loaded: tuple[Any, Any]) -> None:
    """A model that changes its logits after the output layer (as soft-capping does) is scored by what it returns."""
    model, tokenizer = loaded
    handle = model.register_forward_hook(
        lambda _module, _inputs, output: type(output)(logits=torch.tanh(output.logits))
    )
    try:
        text = TEXTS["spa_Latn"][:40]
        score = Scorer(model, tokenizer, window=64).score([("a", text)])[0]
        assert score.nll == pytest.approx(direct_nll(model, tokenizer(text)["input_ids"], 64, 32), rel=1e-6)
    finally:
        handle.remove()


@pytest.mark.parametrize("length", [2, 5, 8, 9, 10, 30])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (8, 1), (1, 1)])
def test_windows_score_every_id_once(length: int, window: int, stride: int) -> None:
    windows = list(cut_windows(0, length, window, stride))
    scored = [position for w in windows for position in range(w.first, w.end + 1)]
    assert scored == list(range(1, length))
    for w in windows:
        assert w.end - w.start <= window
        assert w.first - w.start >= min(w.first, window - stride + 1)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"window": 65}, "window is 65, but this model takes 1 to 64"),
        ({"window": 8, "stride": 9}, "stride is 9"),
        ({"window": 8, "stride": 0}, "stride is 0"),
    ],
)
def test_bad_window(loaded: tuple[Any, Any], options: dict[str, int], part: str) -> None:
    with pytest.raises(UserError, match=part):
        Scorer(*loaded, **options)


def test_tokenizer_of_another_model_is_refused(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = loaded[0].config.to_dict() | {"vocab_size": 100}
    small = LlamaForCausalLM(LlamaConfig(**config))
    with pytest.raises(UserError, match="do not belong together"):
        Scorer(small, loaded[1], window=64).score([("a", TEXTS["hin_Deva"])])


def test_broken_weights_are_named(loaded: tuple[Any, Any], model: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="document a: its likelihood is nan"):
        Scorer(broken, loaded[1], window=64).score([("a", "text")])
