"""BERTScore against its definition, on a tiny encoder with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks.similarity import BertScore
from tests.tools.evaluation.benchmarks.sample_mirror import SENTENCES


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = sorted(set("".join(SENTENCES.values()).lower()) - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_identical_texts_score_one_and_empty_ones_zero(encoder: Path) -> None:
    metric = BertScore(encoder)
    texts = [SENTENCES["eng_Latn"], SENTENCES["swh_Latn"], "", SENTENCES["eng_Latn"]]
    references = [SENTENCES["eng_Latn"], SENTENCES["eng_Latn"], SENTENCES["eng_Latn"], SENTENCES["eng_Latn"]]
    score = metric.score([*texts[:3], None], references)
    assert score.items[0] == pytest.approx(1, abs=1e-5)
    assert score.items[1] is not None
    assert 0 < score.items[1] < 0.999
    assert score.items[2:] == [0.0, None]
    assert score.n == 3
    assert score.signature.startswith("bertscore-f1|layer:2|idf:no|baseline:no|encoder:")


def test_it_is_the_mean_of_the_best_matches(encoder: Path) -> None:
    metric = BertScore(encoder, layer=1)
    left, right = SENTENCES["swh_Latn"], SENTENCES["eng_Latn"]

    def vectors(text: str) -> torch.Tensor:
        with torch.inference_mode():
            inputs = metric.tokenizer(text, return_tensors="pt")
            return torch.nn.functional.normalize(
                metric.model(**inputs, output_hidden_states=True).hidden_states[1][0], dim=-1
            )

    one, other = vectors(left), vectors(right)
    # [CLS] and [SEP] may be matched, but have no weight.
    precision = torch.stack([(other @ row).max() for row in one[1:-1]]).mean()
    recall = torch.stack([(one @ row).max() for row in other[1:-1]]).mean()
    expected = float(2 * precision * recall / (precision + recall))
    # Padding of the batch changes nothing.
    assert metric.score([left, right * 2], [right, left]).items[0] == pytest.approx(expected, abs=1e-5)


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformers cannot load it"):
        BertScore(tmp_path)
