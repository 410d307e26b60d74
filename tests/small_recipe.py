"""A small run for tests: a two-kilobyte recipe in its own folder, with everything inline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe

__all__ = ["small_recipe", "write_small_run"]

DATA: dict[str, Any] = {
    "name": "small",
    "pack": {"components": {"monolingual": {"kind": "text"}}},
    "mix": {"components": {"monolingual": {"share": 1}}},
}


def write_small_run(folder: Path, data: dict[str, Any] | None = None, tokenizer: Path | None = None) -> Path:
    """Writes `folder/small.yaml`: 4 layers, 10 steps of 8 sequences of 32 tokens, one CPU rank, fp32, from scratch."""
    run = {
        "name": "small",
        "model": {
            "name": "small",
            "layers": 4,
            "hidden_size": 64,
            "ffn_hidden_size": 128,
            "attention_heads": 4,
            "query_groups": 2,
            "vocab_size": 512,
            "vocab_padding": 8,
            "max_position_embeddings": 64,
            "rope_theta": 500000.0,
            "tokenizer": {
                "path": str(tokenizer or "tokenizer"),
                "begin_of_text": "<|begin_of_text|>",
                "end_of_text": "<|end_of_text|>",
            },
        },
        "data": data or DATA,
        "precision": {"name": "fp32", "compute": "fp32"},
        "cluster": {"name": "cpu", "gpus_per_node": 1, "device": "cpu"},
        "batch": {"micro": 2, "global": 8, "sequence_length": 32},
        "schedule": {"steps": 10, "learning_rate": 3e-3, "min_learning_rate": 1e-4, "warmup_steps": 2},
        "start": {"mode": "scratch"},
        "checkpoint": {"interval": 5},
        "validation": {"interval": 10, "samples": 5},
        "logging": {"tensorboard": False},
        "paths": {name: str(folder / name) for name in ("corpus", "store", "mix", "runs")},
    }
    path = folder / "small.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    YAML(typ="safe").dump(run, path)
    return path


def small_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `write_small_run`, with `section.key=value` overrides."""
    return load_recipe(write_small_run(folder), overrides)
