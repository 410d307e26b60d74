"""Megatron's own loader reads an imported checkpoint in every layout and computes transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emma.checkpoints_conversion import hf_to_megatron
from emma.checkpoints_conversion.checkpoint import find_checkpoint
from emma.recipes.schema.model import Shape
from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.tiny_models import LLAMA31_SCALING, save_llama
from tests.ranks import run_ranks

TOKENS = [[(position * 37 + sequence * 11) % 517 for position in range(128)] for sequence in range(2)]
TP2, PP2 = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
VPP2 = ("--num-layers-per-virtual-pipeline-stage", "1")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Shape, Any]]:
    """Per kind of model: the imported folder, its shape, and transformers' logits."""
    from transformers import AutoModelForCausalLM

    kinds: dict[str, dict[str, Any]] = {
        "untied, scaled": {"num_key_value_heads": 2, "rope_scaling": LLAMA31_SCALING},
        "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "one group": {"num_key_value_heads": 1},
        "all groups": {"num_key_value_heads": 8},
    }
    result = {}
    for kind, changes in kinds.items():
        folder = tmp_path_factory.mktemp("imported")
        source = save_llama(folder / "hf", num_hidden_layers=4, **changes)
        hf_to_megatron.convert(source, folder / "megatron")
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(source)(torch.tensor(TOKENS)).logits.numpy()
        result[kind] = (folder / "megatron", find_checkpoint(folder / "megatron").shape, logits)
    return result


@pytest.mark.parametrize(
    ("kind", "ranks", "flags"),
    [
        ("one group", 1, ("--verify-integrity",)),
        ("untied, scaled", 2, TP2),
        ("tied", 2, (*PP2, *VPP2)),
        *(
            pytest.param(kind, ranks, flags, marks=pytest.mark.slow)
            for kind, ranks, flags in (
                ("all groups", 1, ()),
                ("untied, scaled", 2, PP2),
                ("untied, scaled", 2, ("--ckpt-fully-parallel-load",)),
                ("tied", 2, TP2),
                ("tied", 4, (*TP2, *PP2, "--sequence-parallel")),
                ("all groups", 4, ("--tensor-model-parallel-size", "4")),
            )
        ),
    ],
)
def test_megatron_loads_it(
    imported: dict[str, tuple[Path, Shape, Any]], kind: str, ranks: int, flags: tuple[str, ...]
) -> None:
    folder, shape, expected = imported[kind]
    results = run_ranks(megatron_ranks.logits, ranks, shape, folder, TOKENS, *flags)
    computed = [result for result in results if result is not None]
    assert computed
    for result in computed:
        assert np.abs(result - expected).max() < 1e-4
