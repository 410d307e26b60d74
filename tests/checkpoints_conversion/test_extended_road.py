"""The whole road of a model whose vocabulary grew: extension, surgery, pack, mix, import, training, export, parity."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from emma.base.files import write_json
from emma.base.manifest import Manifest
from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.extend_vocabulary import extend_vocabulary
from emma.checkpoints_conversion.parity import compare_weights
from emma.checkpoints_conversion.weights import open_weights
from emma.recipes.load import load_recipe
from emma.recipes.schema.tokenizer import Extension
from emma.recipes.vocabulary import growth_of
from emma.tools.plan.plan import make_plan
from emma.tools.plan.text import plan_text
from emma.tools.report.provenance import recipe_facts
from emma.tools.report.records import read_run
from emma.tools.tokenizer.bpe import open_tokenizer
from emma.tools.tokenizer.extend import extend
from tests.checkpoints_conversion.tiny_models import save_llama
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_corpus, make_tiny_mix
from tests.tiny_text import BEGIN, END, train_tokenizer
from tests.training_run import losses, train_run

_TOKENS = 90  # 512 + 90 rows need padding at tensor-parallel size 2


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_the_road_of_an_extended_model(tmp_path: Path, tied: bool) -> None:
    base = train_tokenizer(tmp_path / "base", 512)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    write_json(base / "tokenizer_config.json", names)
    ids = open_tokenizer(base).ids
    save_llama(
        base,
        vocab_size=512,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.02,
        bos_token_id=ids[BEGIN],
        eos_token_id=ids[END],
    )
    corpus = make_tiny_corpus(tmp_path / "corpus")
    Manifest("corpus/split", "", extra={"data": "tiny", "fingerprint": "0" * 64}).write(corpus / "split")
    tokenizer = tmp_path / "tokenizer"
    size = extend(open_tokenizer(base), corpus, tokenizer, Extension(tokens=_TOKENS, min_count=2)).extra[
        "vocab_size"
    ]
    assert size == 512 + _TOKENS
    extend_vocabulary(base, tmp_path / "extended", tokenizer)
    mix = make_tiny_mix(tmp_path, samples=80, sequence_length=32, vocab_size=size)
    assert mix.tokenizer == tokenizer
    hf_to_megatron.convert(tmp_path / "extended", tmp_path / "imported")
    path = write_small_run(tmp_path, mix.data.model_dump(mode="json"), tokenizer)
    recipe = load_recipe(
        str(path),
        [
            f"start={{mode: weights, checkpoint: {tmp_path / 'imported'}}}",
            f"model.vocab_size={size}",
            f"model.tie_embeddings={str(tied).lower()}",
            "cluster.gpus_per_node=4",
            "parallelism={tensor: 2, pipeline: 2, sequence: true}",
            "batch.micro=2",
        ],
    )
    assert recipe.batch.document_masking
    assert "extended by 90 tokens" in plan_text(make_plan(recipe))
    run = train_run(recipe)
    found = losses(run)
    assert len(found) == 10 and all(math.isfinite(loss) for loss in found.values())
    assert found[10] < found[1]
    out = tmp_path / "exported"
    megatron_to_hf.convert(run.path, out)
    report = compare_weights(open_weights(run.path), open_weights(out), names=("run", "export"))
    assert report.passed
    growth = growth_of(out)
    assert growth is not None and growth.tokens == _TOKENS
    assert any("90 tokens" in text for _, text in recipe_facts(read_run(run.path)))
