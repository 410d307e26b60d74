"""The release of a model whose vocabulary grew: what its card says of that, checked where only the release is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.checkpoints_conversion.extend_vocabulary import extend_vocabulary
from emma.checkpoints_conversion.release.build import plan_release, write_release
from emma.checkpoints_conversion.release.verify import generate_faults, release_faults
from emma.recipes.schema.tokenizer import Extension
from emma.recipes.vocabulary import GROWTH_NAME
from emma.tools.evaluation.groups import language_facts
from emma.tools.hub.checksums import write_checksums
from emma.tools.tokenizer.bpe import open_tokenizer
from emma.tools.tokenizer.extend import extend
from emma.tools.tokenizer.report import make_report, write_report
from tests.checkpoints_conversion.release.released_run import released_recipe, write_export
from tests.tiny_text import SENTENCES
from tests.tools.evaluation.tiny_model import write_model
from tests.tools.report.sample_run import codes, write_evaluation, write_metrics, write_plan, write_start
from tests.tools.tokenizer.tiny_corpus import write_corpus

_TOKENS = 128


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of a tiny model whose tokenizer and embeddings were extended; its run and corpus are gone."""
    root = tmp_path_factory.mktemp("grown")
    pairs = {
        language: [
            (english, other, "validation")
            for english, other in zip(SENTENCES["eng_Latn"], lines, strict=True)
        ]
        for language, lines in SENTENCES.items()
        if language != "eng_Latn"
    }
    corpus = write_corpus(
        root / "corpus", {key: lines * 3 for key, lines in SENTENCES.items()}, SENTENCES, pairs
    )
    plain = write_model(root / "plain", positions=256)
    extend(open_tokenizer(plain), corpus, root / "tokenizer", Extension(tokens=_TOKENS, min_count=2))
    extend_vocabulary(plain, root / "base", root / "tokenizer")
    recipe = released_recipe(root, f"model.vocab_size={384 + _TOKENS}")
    write_start(recipe)
    write_metrics(recipe)
    write_plan(recipe, codes(12))
    mix = recipe.mix_folder / "mix.json"
    write_json(mix, {**read_json(mix), "tokenizer_sha256": open_tokenizer(root / "base").sha256})
    write_report(make_report(recipe), recipe)
    write_export(recipe, root)
    facts = language_facts(recipe.mix_folder, None, frozenset(codes(6)), recipe.data.mix)
    write_evaluation(recipe, codes(12), facts=facts)
    folder = tmp_path_factory.mktemp("elsewhere") / "release"
    write_release(plan_release(str(recipe.run_folder)), folder, shard_bytes=60_000)
    shutil.rmtree(root)
    return folder


def test_the_card_says_so_and_can_be_checked_elsewhere(grown: Path) -> None:
    card = (grown / "README.md").read_text()
    assert f"384 ids was extended by {_TOKENS} tokens" in card
    assert "began as `subword`" in card
    assert f"{len(SENTENCES) - 1} languages need" in card
    assert read_json(grown / GROWTH_NAME)["tokens"] == _TOKENS
    assert release_faults(grown) == []
    assert generate_faults(grown) == []


@pytest.mark.parametrize("key, value", [("growth", None), ("cost", None)])
def test_a_card_that_its_records_do_not_give_is_found(
    grown: Path, tmp_path: Path, key: str, value: object
) -> None:
    release = Path(shutil.copytree(grown, tmp_path / "release"))
    path = release / "record/vocabulary.json"
    write_json(path, {**read_json(path), key: value})
    write_checksums(release)
    assert any("not what the released records give" in fault for fault in release_faults(release))


def test_a_damaged_record_is_named(grown: Path, tmp_path: Path) -> None:
    release = Path(shutil.copytree(grown, tmp_path / "release"))
    write_json(release / "record/vocabulary.json", {"growth": {"ids": 3}})
    write_checksums(release)
    try:
        faults = release_faults(release)
    except UserError as error:
        faults = [str(error)]
    assert any("vocabulary.json" in fault and "write the release again" in fault for fault in faults)
