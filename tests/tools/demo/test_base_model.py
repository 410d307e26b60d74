"""The demo's base model: learns its languages, is a plain Llama, and says what it has seen."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from emma.base.errors import UserError
from emma.base.files import write_text
from emma.tools.demo import base_model, tokenizer
from tests.tools.demo.small_corpus import write_corpus

MODEL = """\
layers: 2
hidden_size: 32
ffn_hidden_size: 64
attention_heads: 4
query_groups: 2
vocab_size: 400
max_position_embeddings: 128
init_std: 0.05
tokenizer: {path: tokenizer, begin_of_text: <|begin_of_text|>, end_of_text: <|end_of_text|>}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    write_corpus(root / "corpus")
    CliRunner().invoke(
        tokenizer.command, [str(root / "corpus"), str(root / "tokenizer"), "--vocab-size", "400"]
    )
    write_text(root / "small.yaml", MODEL)
    return root


def make(work: Path, out: str, *options: str) -> str:
    arguments = [work / "corpus", work / "tokenizer", work / out, "--model", work / "small.yaml"]
    result = CliRunner().invoke(
        base_model.command,
        [str(a) for a in (*arguments, "--length", "32", *options)],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_base_model_learns_its_languages(work: Path) -> None:
    output = make(work, "base", "--languages", "eng_Latn,deu_Latn", "--steps", "60")
    assert "loss" in output
    folder = work / "base"
    assert json.loads((folder / "languages.json").read_text()) == {"seen": ["eng_Latn", "deu_Latn"]}
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    reader = AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert (config.num_key_value_heads, config.tie_word_embeddings, config.vocab_size) == (2, False, 400)
    assert (config.bos_token_id, config.eos_token_id) == (reader.bos_token_id, reader.eos_token_id)

    def loss(text: str) -> float:
        ids = torch.tensor([reader(text)["input_ids"]])
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    seen = loss("3 All human beings are born free and equal in dignity and rights. ")
    unseen = loss("3 Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba. ")
    assert seen < 3.0 < unseen
    generated = model.generate(**reader("All human", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert reader.decode(generated[0], skip_special_tokens=True).startswith("All human beings")


def test_the_same_seed_gives_the_same_weights(work: Path) -> None:
    for out in ("one", "two"):
        make(work, out, "--languages", "eng_Latn", "--steps", "3")
    weights = [(work / out / "model.safetensors").read_bytes() for out in ("one", "two")]
    assert weights[0] == weights[1]


def test_unknown_language_and_other_vocabulary(work: Path) -> None:
    with pytest.raises(UserError, match="no monolingual text in swh_Latn"):
        make(work, "none", "--languages", "eng_Latn,swh_Latn")
    write_text(work / "other.yaml", MODEL.replace("400", "512"))
    with pytest.raises(UserError, match="--vocab-size 512"):
        make(work, "none", "--model", str(work / "other.yaml"))
    assert not (work / "none").exists()
