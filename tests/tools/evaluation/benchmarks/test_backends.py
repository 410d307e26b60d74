"""What is laid over lm-eval's classes."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.backends import ModelSettings, _vllm_class, load_backend


def letters(text: str, **options: Any) -> dict[str, list[int]]:
    return {"input_ids": [ord(letter) for letter in text]}


@pytest.fixture
def vllm_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """This project's class on lm-eval's, whose module imports vLLM's names at once; none of them is called here."""
    parts = ("", ".lora", ".lora.request", ".renderers", ".renderers.hf", ".tokenizers")
    for part in parts:
        monkeypatch.setitem(sys.modules, f"vllm{part}", MagicMock())
    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.20.0" if name == "vllm" else known(name)
    )
    return _vllm_class(7)


def test_vllm_scores_every_token_once_within_its_length(vllm_class: Any) -> None:
    model: Any = object.__new__(vllm_class)
    model._max_length, model.custom_prefix_token_id = 12, 1
    model.tokenizer = letters
    asked: list[tuple[list[int], list[int]]] = []

    def score(requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        asked.extend((context, continuation) for _, context, continuation in requests)
        return [(-float(sum(continuation)), False) for _, _, continuation in requests]

    model._loglikelihood_tokens = score
    text = "abcdefghijklmnopqrstuvwxyz"
    found = model.loglikelihood_rolling([SimpleNamespace(args=(part,)) for part in (text, "z")])
    assert found == [(float(sum(map(ord, text))), 26), (float(ord("z")), 1)]
    assert asked[0][0] == [1]
    # vLLM keeps one of its positions for the token that it makes, and lm-eval cuts what is longer at its beginning.
    assert all(len(context) + len(continuation) <= 11 for context, continuation in asked)
    assert all(len(context) >= 5 for context, _ in asked[1:-1])


def test_vllm_draws_with_a_seed(vllm_class: Any) -> None:
    options = {"until": ["x"], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_gen_toks": 5}
    values, until, longest = vllm_class.modify_gen_kwargs(dict(options), eos="<e>")
    assert (values["temperature"], values["top_p"], values["seed"], longest) == (0.6, 0.9, 7, 5)
    assert until == ["x", "<e>"]
    greedy, _, _ = vllm_class.modify_gen_kwargs({"until": [], "do_sample": False}, eos="<e>")
    assert "seed" not in greedy


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="hf cannot load it"):
        load_backend(tmp_path, ModelSettings(device="cpu"), 512)
