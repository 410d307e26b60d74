"""Overhead of this project's dataset, forward step, metrics and seams over Megatron's own loop, on the CPU.

    python -m benchmarks.train_cpu [--pairs 8] [--steps 30]

Both sides train the same model on the same documents in one forked rank each, in turn: ours is the trainer as `emma
train` starts it; Megatron's is `pretrain` with the flags of the recipe, its stock `GPTDataset` over the same mix, and
the shortest forward step. Each pair gives the ratio of their times a step (from the third step on, saving and
validation off); the interval is a bootstrap over pairs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recipes.load import load_recipe
from recipes.schema import Recipe
from tests.ranks import run_ranks
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix
from tools.training.arguments import LoadPlan, megatron_arguments
from tools.training.launch import rank_environment
from tools.training.run_folder import RunFolder

LENGTH, BATCH, WARM = 256, 4, 2


def timed() -> list[float]:
    """Wraps Megatron's step so that the returned list holds the time at the start of each."""
    from megatron.training import training

    starts: list[float] = []
    step = training.train_step

    def marked(*args: Any, **named: Any) -> Any:
        starts.append(time.perf_counter())
        return step(*args, **named)

    training.train_step = marked
    return starts


def ours(folder: str) -> list[float]:
    """The trainer of this project."""
    from tools.training.worker import train

    starts = timed()
    train(Path(folder))
    return starts


def megatrons(flags: list[str], prefix: str) -> list[float]:
    """Megatron's loop with its own dataset."""
    import functools

    import numpy
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split
    from megatron.core.enums import ModelType
    from megatron.training import get_args, get_tokenizer, pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    def provider(samples: list[int], vp_stage: int | None = None) -> tuple[Any, None, None]:
        args = get_args()
        config = GPTDatasetConfig(
            random_seed=args.seed,
            sequence_length=args.seq_length,
            blend=([prefix], None),
            split="1,0,0",
            tokenizer=get_tokenizer(),
            reset_position_ids=args.reset_position_ids,
            reset_attention_mask=args.reset_attention_mask,
            eod_mask_loss=False,
        )
        documents = GPTDataset.build_low_level_dataset(prefix, config)
        indices = numpy.arange(GPTDataset.numel_low_level_dataset(documents), dtype=numpy.int32)
        return GPTDataset(documents, prefix, indices, samples[0], Split.train, config), None, None

    provider.is_distributed = True  # type: ignore[attr-defined]

    def loss(
        mask: torch.Tensor, output: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        losses, weights = output.view(-1).float(), mask.view(-1).float()
        total, count = torch.sum(losses * weights), weights.sum()
        return total, count.to(torch.int), {"lm loss": torch.stack([total.detach(), count])}

    def forward_step(iterator: Any, model: Any) -> Any:
        batch = next(iterator)
        output = model(
            batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"]
        )
        return output, functools.partial(loss, batch["loss_mask"])

    starts = timed()
    sys.argv = ["pretrain", *flags]
    args = parse_and_validate_args()
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(config, provider, ModelType.encoder_or_decoder, forward_step)
    return starts


def seconds_per_step(starts: list[float]) -> float:
    """Median time between the starts of steps, without the first ones."""
    gaps = [after - before for before, after in zip(starts[WARM:], starts[WARM + 1 :], strict=False)]
    return statistics.median(gaps)


def measure(recipe: Recipe, folder: Path, pair: int, eos: int) -> tuple[float, float]:
    """One pair: seconds a step of ours and of Megatron's, in alternating order."""
    environment = rank_environment(recipe)
    run = RunFolder(recipe.run_folder)
    flags = megatron_arguments(recipe, LoadPlan("scratch"), eos, folder / f"peer-{pair}", None)
    prefix = str(next((recipe.mix_folder / "train").glob("*.idx")).with_suffix(""))

    def run_ours() -> float:
        run.prepare(recipe, take_over=True)
        return seconds_per_step(run_ranks(ours, 1, str(run.path), env=environment, timeout=600)[0])

    def run_peer() -> float:
        return seconds_per_step(run_ranks(megatrons, 1, flags, prefix, env=environment, timeout=600)[0])

    if pair % 2:
        peer = run_peer()
        return run_ours(), peer
    own = run_ours()
    return own, run_peer()


def main() -> None:
    """Measures, prints a line a pair and one JSON object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8, help="interleaved pairs of runs (default 8)")
    parser.add_argument("--steps", type=int, default=30, help="steps a run (default 30)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mix = make_tiny_mix(folder, samples=options.steps * BATCH, sequence_length=LENGTH, vocab_size=512)
        path = write_small_run(folder, mix.data.model_dump(mode="json"), mix.tokenizer)
        overrides = [
            "model.hidden_size=256",
            "model.ffn_hidden_size=688",
            "model.attention_heads=8",
            f"model.max_position_embeddings={LENGTH}",
            f"batch={{micro: {BATCH}, global: {BATCH}, sequence_length: {LENGTH}}}",
            f"schedule.steps={options.steps}",
            "checkpoint.interval=100000",
            "validation={groups: [], at_start: false}",
        ]
        ratios = []
        for pair in range(options.pairs):
            recipe = load_recipe(str(path), [*overrides, f"name=ours-{pair}"])
            own, peer = measure(recipe, folder, pair, mix.end_id)
            ratios.append(own / peer)
            print(
                f"pair {pair + 1}: ours {own * 1e3:.1f} ms a step, Megatron's {peer * 1e3:.1f} ms, ratio {ratios[-1]:.4f}"
            )
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(10000))
    result = {
        "overhead_percent": (statistics.median(ratios) - 1) * 100,
        "low": (medians[250] - 1) * 100,
        "high": (medians[9750] - 1) * 100,
        "pairs": options.pairs,
        "steps": options.steps,
    }
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
