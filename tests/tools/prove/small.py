"""Small real runs for proofs, and faults planted in what Megatron is told or reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.launch import rank_environment
from tests.checkpoints_conversion import families
from tests.ranks import run_ranks
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix

__all__ = ["FAULTS", "Small", "make_small", "train_faulty"]

GLOBAL_BATCH = 8

CONFIG: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Small:
    """A run file over a mix of `steps` steps, a base model, and its import."""

    folder: Path
    base: Path
    huggingface: Path
    steps: int
    length: int

    def given(self, name: str, *overrides: str) -> list[str]:
        """RUN and overrides of a run that starts from the base, as on a command line."""
        start = f"start={{mode: weights, checkpoint: '{self.base}'}}"
        sizes = (
            f"schedule.steps={self.steps}",
            f"batch.sequence_length={self.length}",
            "model.max_position_embeddings=512",
        )
        return [str(self.folder / "small.yaml"), f"name={name}", start, *sizes, *overrides]

    def recipe(self, name: str, *overrides: str) -> Recipe:
        """Its recipe."""
        run, *rest = self.given(name, *overrides)
        return load_recipe(run, rest)


def make_small(
    folder: Path,
    packing: Literal["concatenate", "best_fit"] = "concatenate",
    *,
    steps: int = 12,
    length: int = 32,
    family: str | None = None,
    **config: Any,
) -> Small:
    """Builds the mix, and a base model with random weights.

    Args:
        folder: gets everything.
        packing: of the mix.
        steps: of the mix and the runs.
        length: sequence length; documents have some 300 tokens, so `best_fit` leaves padding at 384.
        family: a case of `tests/checkpoints_conversion/families.py` instead of a Llama; the run's model is it.
        config: what the base model's configuration has otherwise than `CONFIG`, or the case.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from emma.checkpoints_conversion.config import model_from_hf
    from emma.checkpoints_conversion.hf_to_megatron import convert

    samples = steps * GLOBAL_BATCH
    mix = make_tiny_mix(
        folder, samples=samples, sequence_length=length, packing=packing, validation_groups=False
    )
    write_small_run(folder, mix.data.model_dump(mode="json"), mix.tokenizer)
    torch.manual_seed(0)
    if family is None:
        LlamaForCausalLM(LlamaConfig(**{**CONFIG, **config})).save_pretrained(folder / "hf")
    else:
        families.save(family, folder / "hf", vocab_size=512, **config)
        recipe = YAML(typ="safe").load((folder / "small.yaml").read_text())
        shape = model_from_hf(folder / "hf", vocab_padding=8).model_dump()
        names = ("name", "tokenizer")
        recipe["model"] = {**shape, **{name: recipe["model"][name] for name in names}}
        YAML(typ="safe").dump(recipe, folder / "small.yaml")
    convert(folder / "hf", folder / "base")
    return Small(folder, folder / "base", folder / "hf", steps, length)


def _argument(name: str, value: str | None) -> Callable[[], None]:
    """A fault: Megatron gets another value of an argument than the recipe says, or, with None, no such switch."""

    def plant() -> None:
        from emma.tools.training import arguments

        original = arguments.megatron_arguments

        def wrong(*given: Any, **named: Any) -> list[str]:
            result = original(*given, **named)
            at = result.index(f"--{name}")
            return (
                result[:at] + result[at + 1 :]
                if value is None
                else [*result[: at + 1], value, *result[at + 2 :]]
            )

        arguments.megatron_arguments = wrong

    return plant


def _another_order() -> None:
    """The batches of steps 2 and 3 change places."""
    from emma.tools.training.dataset import MixDataset

    original = MixDataset.__getitem__

    def wrong(self: Any, idx: int | None) -> Any:
        step = None if idx is None else idx // GLOBAL_BATCH
        return original(self, idx if idx is None else idx + {1: GLOBAL_BATCH, 2: -GLOBAL_BATCH}.get(step, 0))

    MixDataset.__getitem__ = wrong  # type: ignore[method-assign]


def _one_sample_twice() -> None:
    """The last sample of step 2 is read in place of the first of step 3, too."""
    from emma.tools.training.dataset import MixDataset

    original = MixDataset.__getitem__
    MixDataset.__getitem__ = lambda self, idx: original(  # type: ignore[method-assign]
        self, idx - 1 if idx == 2 * GLOBAL_BATCH else idx
    )


def _decay_of_norms() -> None:
    """Weight decay for the norms' weights too."""
    from megatron.training import training

    training.get_standard_config_overrides = lambda config: {}


def _mean_per_micro_batch() -> None:
    """Each micro-batch counts the same, however many of its labels do."""
    import torch

    from emma.tools.training import forward

    original = forward.loss_sum

    def wrong(loss_mask: Any, output: Any) -> Any:
        total, count, report = original(loss_mask, output)
        return (
            total / count,
            torch.ones_like(count),
            {k: torch.stack([v[0] / v[1], v[1] / v[1]]) for k, v in report.items()},
        )

    forward.loss_sum = wrong


def _padding_of_the_vocabulary() -> None:
    """The padding rows take part in the softmax."""
    from emma.tools.training import vocabulary

    vocabulary.mask_padding = lambda model, vocab_size: model


FAULTS: dict[str, Callable[[], None]] = {
    "learning rate": _argument("lr", "0.00303"),
    "mask": _argument("reset-attention-mask", None),
    "order": _another_order,
    "beta2": _argument("adam-beta2", "0.96"),
    "beta1": _argument("adam-beta1", "0.91"),
    "epsilon": _argument("adam-eps", "1e-6"),
    "weight decay": _argument("weight-decay", "0.0"),
    "decay of norms": _decay_of_norms,
    "clipping": _argument("clip-grad", "2.1"),
    "warm-up": _argument("lr-warmup-iters", "3"),
    "rotary base": _argument("rotary-base", "10000"),
    "norm epsilon": _argument("norm-epsilon", "1e-6"),
    "one sample twice": _one_sample_twice,
    "mean per micro-batch": _mean_per_micro_batch,
    "padding of the vocabulary": _padding_of_the_vocabulary,
}


def _faulty_rank(folder: str, fault: str) -> None:
    if fault:
        FAULTS[fault]()
    from emma.tools.training.worker import train

    train(Path(folder))


def train_faulty(recipe: Recipe, fault: str = "", timeout: float = 240.0) -> RunFolder:
    """Trains a run with a fault planted in each rank; with none, as it should be."""
    run = RunFolder(recipe.run_folder)
    env = rank_environment(recipe) | run.prepare(recipe, take_over=True).environment
    run_ranks(_faulty_rank, recipe.cluster.world_size, str(run.path), fault, env=env, timeout=timeout)
    return run
