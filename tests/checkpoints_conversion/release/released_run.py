"""A run with a real export of a real, tiny model, converted there and back with proven parameters; the
training logs are made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from emma.checkpoints_conversion.parity import compare
from emma.checkpoints_conversion.parity.report import LanguageResult, LogitsResult
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.evaluation.groups import language_facts
from tests.tools.evaluation.tiny_model import write_model
from tests.tools.report.sample_run import (
    codes,
    sample_recipe,
    write_evaluation,
    write_metrics,
    write_plan,
    write_start,
)

STEPS = 40

_SHAPE = (
    "layers=2 hidden_size=32 ffn_hidden_size=64 attention_heads=4 query_groups=2 vocab_size=384 vocab_padding=128 "
    "max_position_embeddings=256 norm_epsilon=1e-6"
)


def released_recipe(root: Path, *overrides: str) -> Recipe:
    """Recipe of the run; `root/base` holds the model, with its tokenizer."""
    sample_recipe(root, "sample", STEPS)
    shape = [f"model.{text}" for text in _SHAPE.split()]
    paths = [f"model.tokenizer.path={root / 'base'}"]
    return load_recipe(root / "sample.yaml", [*shape, *paths, *overrides])


def write_export(recipe: Recipe, root: Path, *, passed: bool = True) -> Path:
    """`hf/step-N` of the run, exported from a checkpoint of the base's weights."""
    export = recipe.run_folder / "hf" / f"step-{STEPS}"
    hf_to_megatron.convert(root / "base", root / "megatron")
    megatron_to_hf.convert(root / "megatron", export)
    report = compare(root / "megatron", export, logits=False)
    delta = 4e-6 if passed else 0.2
    results = [LanguageResult(language, 50, delta, 1e-11, 1e-10, 1.0) for language in codes(4)]
    logits = LogitsResult(1e-4, "tokenizer", "Megatron", "transformers", "cpu", results, [0.0, 1e-6])
    dataclasses.replace(report, logits=logits).write(export)
    return export


def write_released_run(root: Path, *overrides: str) -> Recipe:
    """The whole run."""
    write_model(root / "base", positions=256)
    recipe = released_recipe(root, *overrides)
    write_start(recipe)
    write_metrics(recipe)
    write_plan(recipe, codes(12))
    write_export(recipe, root)
    facts = language_facts(recipe.mix_folder, None, frozenset(codes(6)), recipe.data.mix)
    write_evaluation(recipe, codes(12), facts=facts)
    return recipe
