"""One small mix and one small base model for all training tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix

LENGTH, GLOBAL_BATCH = 32, 8


@dataclass(frozen=True)
class Small:
    """A run file over a mix of a given number of steps; `recipe(name, *overrides)` makes runs of it."""

    folder: Path
    base: Path

    def recipe(self, name: str, *overrides: str, start: str = "weights") -> Recipe:
        begin = (
            f"start={{mode: {start}, checkpoint: '{self.base}'}}"
            if start == "weights"
            else "start.mode=scratch"
        )
        return load_recipe(str(self.folder / "small.yaml"), [f"name={name}", begin, *overrides])


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Hugging Face Llama of the small recipe's shape, fp32, with a vocabulary of 512."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        initializer_range=0.02,
    )
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_small(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Callable[[int], Small]:
    """Builds a mix of `steps` steps, a run file for it, and imports the base model."""
    from emma.checkpoints_conversion.hf_to_megatron import convert

    made: dict[int, Small] = {}

    def make(steps: int) -> Small:
        if steps not in made:
            folder = tmp_path_factory.mktemp(f"small-{steps}")
            mix = make_tiny_mix(folder, samples=steps * GLOBAL_BATCH, sequence_length=LENGTH, vocab_size=512)
            data = mix.data.model_dump(mode="json")
            path = write_small_run(folder, data, mix.tokenizer)
            text = path.read_text().replace("steps: 10", f"steps: {steps}")
            path.write_text(text)
            convert(base_model, folder / "base")
            made[steps] = Small(folder, folder / "base")
        return made[steps]

    return make
