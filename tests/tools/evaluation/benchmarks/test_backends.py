"""What is laid over lm-eval's classes, on a tiny Llama: `transformers` itself and vLLM's engine."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.backends import SAMPLE, ModelSettings, load_backend
from tests.tools.evaluation.tiny_model import TEXTS, write_model

LENGTH = 24
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose heads are as wide as vLLM's attention on the CPU wants them."""
    return write_model(tmp_path_factory.mktemp("reader") / "reader", seed=1, hidden=128)


@pytest.fixture(scope="module")
def _engine() -> None:
    """vLLM itself, on the CPU, in this process."""
    pytest.importorskip("vllm", reason="vLLM is not installed here (make test-vllm brings it)")


def _vllm(folder: Path, longest: int = 64, **settings: Any) -> Any:
    chosen = {"backend": "vllm", "dtype": "float32", "max_length": LENGTH, **settings}
    return load_backend(folder, ModelSettings(**chosen), longest)


@pytest.fixture(scope="module")
def vllm(_engine: None, reader: Path) -> Any:
    return _vllm(reader)


@pytest.fixture(scope="module")
def transformers(reader: Path) -> Any:
    """The same model and the same windows: vLLM's context is two tokens shorter than it says."""
    return load_backend(reader, ModelSettings(device="cpu", max_length=LENGTH - 2), 64)


def _requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one, task_name="") for one in arguments]


def test_vllm_is_given_what_the_settings_say(_engine: None, reader: Path) -> None:
    lm = _vllm(reader, seed=7, tensor_parallel=2, dtype=None, max_length=None)
    config = lm.model.llm_engine.vllm_config
    assert (config.model_config.max_model_len, lm.max_length, config.model_config.seed) == (64, 64, 7)
    assert config.parallel_config.tensor_parallel_size == 2
    assert lm.prefix_token_id == 0
    lm.model.llm_engine.engine_core.shutdown()  # its two workers would spin beside the other tests


def test_vllm_scores_texts_as_transformers_does(
    vllm: Any, transformers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [*TEXTS.values(), "z", TEXTS["eng_Latn"] * 3, "<|end_of_text|> as text"]
    requests = _requests(*((text,) for text in texts))
    with caplog.at_level(logging.WARNING):
        found = vllm.exact_rolling(requests)
    wanted = transformers.exact_rolling(requests)
    assert [tokens for _, tokens in found] == [len(ids) for ids in vllm.plain_ids(texts)]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], rel=1e-5)
    # Neither a token of the tokenizer's own nor one that the text spells.
    assert not {0, 1} & set(vllm.plain_ids(texts)[-1])
    # Nothing was cut to fit; vLLM keeps one of its positions for the token that it generates.
    assert "Truncating" not in caplog.text
    assert max(tokens for _, tokens in found) > 4 * LENGTH


def test_vllm_scores_answers_and_labels_as_transformers_does(vllm: Any, transformers: Any) -> None:
    requests = _requests(("All human", " beings"), ("born", " free and equal"), ("", "dignity"))
    found, wanted = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (vllm, transformers))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    labels = _requests(
        ("All human", " beings", None), ("All human beings", " free", 3), ("born", " equal", 1)
    )
    assert vllm.last_token(labels) == pytest.approx(transformers.last_token(labels), rel=1e-5)


def test_vllm_writes_what_transformers_writes(vllm: Any, transformers: Any) -> None:
    options = {"until": ["\n"], "do_sample": False, "max_gen_toks": 6}
    requests = _requests(("All human", dict(options)), ("born free", dict(options)))
    assert vllm.generate_until(requests, disable_tqdm=True) == transformers.generate_until(
        requests, disable_tqdm=True
    )


def test_a_sampled_answer_depends_on_the_seed_and_not_on_its_batch(
    _engine: None, vllm: Any, reader: Path
) -> None:
    options = {"until": ["\n"], "do_sample": True, "temperature": 1.0, "top_p": 0.95, "max_gen_toks": 8}
    prompts = ("All human", "born free", "equal in")

    def answers(lm: Any, *chosen: str) -> list[str]:
        return lm.generate_until(_requests(*((one, dict(options)) for one in chosen)), disable_tqdm=True)

    together = answers(vllm, *prompts)
    assert answers(vllm, prompts[2]) == together[2:]
    assert answers(vllm, *reversed(prompts)) == together[::-1]
    assert answers(_vllm(reader, seed=7), *prompts) != together


def test_samples_for_a_prompt_differ_and_are_the_same_again(vllm: Any) -> None:
    options = {"until": ["\n"], "do_sample": True, "temperature": 1.0, "top_p": 0.95, "max_gen_toks": 8}
    requests = _requests(*(("All human", {**options, SAMPLE: number}) for number in range(4)))
    first = vllm.generate_until(requests, disable_tqdm=True)
    assert len(set(first)) > 1
    alone = _requests(("All human", {**options, SAMPLE: 2}))
    assert vllm.generate_until(alone, disable_tqdm=True) == first[2:3]


def test_a_model_that_cannot_be_loaded_is_named(_engine: None, tmp_path: Path, reader: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for backend in ("hf", "vllm"):
        with pytest.raises(UserError, match=f"{backend} cannot load it"):
            load_backend(tmp_path, ModelSettings(backend=backend, device="cpu"), 512)
    with pytest.raises(UserError, match=r"vllm cannot load it: .*User-specified max_model_len"):
        _vllm(reader, longest=1 << 20, max_length=1 << 19)
