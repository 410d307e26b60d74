"""The demo's tokenizer: deterministic, lossless, of the requested size, loadable, blind to control tokens in text."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from emma.base.errors import UserError
from emma.tools.demo.corpus_text import languages_of, training_documents
from emma.tools.demo.tokenizer import CONTROL_TOKENS, capped, command, train_tokenizer
from tests.tools.demo.small_corpus import SENTENCES, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folder(corpus: Path) -> Path:
    result = CliRunner().invoke(
        command, [str(corpus), str(corpus / "tokenizer"), "--vocab-size", "400"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "400 tokens" in result.output
    return corpus / "tokenizer"


def test_validation_documents_train_nothing(corpus: Path) -> None:
    assert languages_of(corpus, "monolingual") == ["deu_Latn", "eng_Latn", "yor_Latn"]
    assert len(list(training_documents(corpus, "monolingual", "eng_Latn"))) == 36
    both = SENTENCES["eng_Latn"] + "\n" + SENTENCES["deu_Latn"]
    assert list(training_documents(corpus, "parallel", "eng_Latn-deu_Latn")) == [both]
    with pytest.raises(UserError, match="build the corpus first"):
        languages_of(corpus / "nowhere", "monolingual")


def test_auto_tokenizer_loads_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 400
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(392, 400))
    for text in (*SENTENCES.values(), "ក្រុម 你好 \t 𐐷 12345\r\n", "  spaces "):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == 392
        assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.eos_token_id == 393
    spelt = tokenizer("a<|end_of_text|>b", split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in spelt
    assert tokenizer.decode(spelt[1:]) == "a<|end_of_text|>b"


def test_training_is_deterministic(corpus: Path, folder: Path) -> None:
    CliRunner().invoke(command, [str(corpus), str(corpus / "again"), "--vocab-size", "400"])
    for path in folder.iterdir():
        assert path.read_bytes() == (corpus / "again" / path.name).read_bytes()


def test_too_little_text_is_an_error(corpus: Path) -> None:
    with pytest.raises(UserError, match="fewer than --vocab-size 4096"):
        CliRunner().invoke(
            command, [str(corpus), str(corpus / "big"), "--vocab-size", "4096"], catch_exceptions=False
        )
    assert not (corpus / "big").exists()


def test_cap_keeps_one_source_from_dominating() -> None:
    assert list(capped(["abc", "def", "ghi"], 4)) == ["abc", "def"]
    rare = train_tokenizer([*capped(["the " * 500], 10), "ẹ̀tọ́ " * 50], 300)
    assert len(rare.encode(" ẹ̀tọ́", add_special_tokens=False).ids) < 4
