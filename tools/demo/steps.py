"""The demo's steps: what a user would type, in order, and how each is seen to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emma.recipes.schema import Recipe

__all__ = ["Step", "Stop", "compare_steps", "demo_steps"]


@dataclass(frozen=True)
class Stop:
    """SIGTERM for a training command once its run (a folder) has logged `step`."""

    run: Path
    step: int


@dataclass(frozen=True)
class Step:
    """One command of the road.

    Attributes:
        name: unique, kept in the demo's record of finished steps.
        title: what it does, for the reader.
        command: `emma ...` or `python -m ...`, as typed.
        outputs: files and folders without which the step is not done.
        stop: for training: when SIGTERM is sent; None lets the command end by itself.
    """

    name: str
    title: str
    command: Sequence[str]
    outputs: tuple[Path, ...] = ()
    stop: Stop | None = None


def demo_steps(
    recipe: Recipe, base: Path, overrides: Sequence[str] = (), base_options: Sequence[str] = ()
) -> list[Step]:
    """Steps of `make demo`.

    Args:
        recipe: the run `demo`.
        base: folder of the base model in Hugging Face format; the tokenizer's and the imported checkpoint's folders
            are the recipe's.
        overrides: `section.key=value` that the recipe was loaded with, repeated in the commands.
        base_options: options of the base model's command.
    """
    corpus, tokenizer = Path(recipe.paths.corpus), Path(recipe.model.tokenizer.path)
    imported = Path(str(recipe.start.checkpoint))
    run, last = recipe.run_folder, recipe.schedule.steps
    export = run / "hf" / f"step-{last}"
    name = recipe.name
    return [
        Step(
            "corpus",
            "raw text → clean, deduplicated, split text",
            ("emma", "corpus", "build", name, *overrides),
            (corpus / "split",),
        ),
        Step(
            "tokenizer",
            "a small tokenizer for the tiny model",
            ("python", "-P", "-m", "emma.tools.demo.tokenizer", str(corpus), str(tokenizer)),
            (tokenizer / "tokenizer.json",),
        ),
        Step(
            "pack",
            "clean text → token store",
            ("emma", "pack", "run", name, *overrides),
            (Path(recipe.paths.store),),
        ),
        Step(
            "mix",
            "token store → training and validation datasets",
            ("emma", "mix", "build", name, *overrides),
            (recipe.mix_folder / "mix.json",),
        ),
        Step(
            "base",
            "a base model that knows five languages (the stand-in for Llama)",
            (
                "python",
                "-P",
                "-m",
                "emma.tools.demo.base_model",
                str(corpus),
                str(tokenizer),
                str(base),
                *base_options,
            ),
            (base / "model.safetensors",),
        ),
        Step(
            "import",
            "Hugging Face → Megatron checkpoint",
            ("emma", "convert", "hf-to-megatron", str(base), str(imported), "--overwrite"),
            (imported,),
        ),
        Step(
            "train",
            "train with tensor 2 × pipeline 2; SIGTERM comes half-way",
            ("emma", "train", name, *overrides),
            (run / "checkpoints",),
            stop=Stop(run, round(last * 0.4)),
        ),
        Step(
            "resume",
            "go on where it stopped, until the next SIGTERM",
            ("emma", "train", name, *overrides),
            (run / "checkpoints",),
            stop=Stop(run, round(last * 0.6)),
        ),
        Step(
            "reshard",
            "go on with another layout: tensor 1 × pipeline 2 × data 2",
            ("emma", "train", name, *overrides, "parallelism.tensor=1", "parallelism.sequence=false"),
            (run / "checkpoints",),
        ),
        Step(
            "export",
            "Megatron → Hugging Face",
            # The proof of parity is a step of its own here, so that it is printed.
            ("emma", "convert", "megatron-to-hf", str(run), str(export), "--no-parity", "--overwrite"),
            (export / "config.json",),
        ),
        Step(
            "parity",
            "fp32 logits of Megatron and transformers on multilingual text",
            ("emma", "convert", "verify", str(run), str(export)),
            (export / "parity.json",),
        ),
        Step(
            "evaluate",
            "bits per byte of every language, before and after",
            ("emma", "evaluate", "run", str(run), "--base", str(base)),
            (run / "evaluation",),
        ),
        Step(
            "report",
            "one page on the run",
            ("emma", "report", "run", str(run)),
            (run / "report" / "index.html",),
        ),
        Step(
            "release",
            "release folder",
            ("emma", "release", "model", str(run), str(run / "release"), "--overwrite"),
            (run / "release",),
        ),
    ]


def compare_steps(mono: Recipe, bilingual: Recipe, base: Path, overrides: Sequence[str] = ()) -> list[Step]:
    """Steps of the comparison: with and without translations, at the same budget, from the demo's token store."""
    steps = []
    for recipe in (mono, bilingual):
        name, run, last = recipe.name, recipe.run_folder, recipe.schedule.steps
        export = run / "hf" / f"step-{last}"
        steps += [
            Step(
                f"{name}-mix",
                "token store → datasets",
                ("emma", "mix", "build", name, *overrides),
                (recipe.mix_folder / "mix.json",),
            ),
            Step(
                f"{name}-train",
                recipe.description,
                ("emma", "train", name, *overrides),
                (run / "checkpoints",),
            ),
            Step(
                f"{name}-export",
                "Megatron → Hugging Face",
                ("emma", "convert", "megatron-to-hf", str(run), str(export), "--no-parity", "--overwrite"),
                (export / "config.json",),
            ),
            Step(
                f"{name}-evaluate",
                "bits per byte of every language",
                ("emma", "evaluate", "run", str(run), "--base", str(base)),
                (run / "evaluation",),
            ),
        ]
    runs = (str(mono.run_folder), str(bilingual.run_folder))
    page = base.parent / "mono-bi.html"
    steps.append(
        Step(
            "compare",
            "both on one page",
            ("emma", "report", "compare", *runs, "--output", str(page)),
            (page,),
        )
    )
    return steps
