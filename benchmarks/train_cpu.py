"""Overhead of this project's dataset, forward step, metrics and wrappers over Megatron's own loop, on the CPU.

    python -m benchmarks.train_cpu [--pairs 8] [--steps 30]

Both sides train the same model on the same documents, in turn, in one forked rank each. Ours is the trainer as `emma
train` starts it; Megatron's is `pretrain` with the recipe's flags and nothing of ours (benchmarks/megatron_loop.py).
Each pair gives the ratio of their times per step (from the third step on, without saving and validation); the
interval is a bootstrap over pairs. The ratio of processor times shows how much of it is work, also on a busy machine.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.measure import overhead
from benchmarks.megatron_loop import Course, train_megatron, train_ours
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import LoadPlan
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.arguments import megatron_arguments
from emma.tools.training.launch import rank_environment
from tests.ranks import run_ranks
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix

LENGTH, BATCH, WARM = 256, 4, 2


def measure_pair(recipe: Recipe, folder: Path, pair: int, eos: int) -> tuple[Course, Course]:
    """One run of ours and one of Megatron's; the order alternates from pair to pair."""
    environment = rank_environment(recipe)
    run = RunFolder(recipe.run_folder)
    flags = megatron_arguments(recipe, LoadPlan("scratch"), eos, folder / f"peer-{pair}", None)
    prefix = str(next((recipe.mix_folder / "train").glob("*.idx")).with_suffix(""))

    def run_ours() -> Course:
        own = environment | run.prepare(recipe, take_over=True).environment
        (course,) = run_ranks(train_ours, 1, str(run.path), env=own, timeout=600)
        return course

    def run_peer() -> Course:
        (course,) = run_ranks(train_megatron, 1, flags, prefix, env=environment, timeout=600)
        return course

    if pair % 2:
        peer = run_peer()
        return run_ours(), peer
    own = run_ours()
    return own, run_peer()


def main() -> None:
    """Measures; prints one line per pair and a JSON object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8, help="pairs of runs (default 8)")
    parser.add_argument("--steps", type=int, default=30, help="steps per run (default 30)")
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
        pairs: list[tuple[float, float]] = []
        processor: list[tuple[float, float]] = []
        for number in range(options.pairs):
            recipe = load_recipe(str(path), [*overrides, f"name=ours-{number}"])
            courses = measure_pair(recipe, folder, number, mix.end_id)
            own, peer = (course.seconds_per_step(WARM) for course in courses)
            own_cpu, peer_cpu = (course.processor_seconds_per_step(WARM) for course in courses)
            pairs.append((own, peer))
            processor.append((own_cpu, peer_cpu))
            print(
                f"pair {number + 1}: ours {own * 1e3:.1f} ms per step, Megatron's {peer * 1e3:.1f} ms, ratio {own / peer:.4f}; "
                f"processor time {own_cpu * 1e3:.1f} and {peer_cpu * 1e3:.1f} ms, ratio {own_cpu / peer_cpu:.4f}",
                flush=True,
            )
    cpu = {f"processor_{name}": value for name, value in overhead(processor).items()}
    result = {**overhead(pairs), **cpu, "pairs": options.pairs, "steps": options.steps}
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
