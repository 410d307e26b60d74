"""The demo's steps: what a user would type, in order, and what shows that each is done."""

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
    """One command of the demo.

    Attributes:
        name: unique; identifies the step in the demo's record.
        title: what it does, for the reader.
        command: `emma ...` or `python -m ...`, as typed.
        outputs: files and folders that exist once the step is done.
        stop: when to send SIGTERM to training; None lets the command end by itself.
        accepts: exit codes that are a result; of those but 0, with all outputs there.
    """

    name: str
    title: str
    command: Sequence[str]
    outputs: tuple[Path, ...] = ()
    stop: Stop | None = None
    accepts: tuple[int, ...] = (0,)


def demo_steps(
    recipe: Recipe, base: Path, overrides: Sequence[str] = (), base_options: Sequence[str] = ()
) -> list[Step]:
    """Steps of `make demo`.

    Args:
        recipe: the run `demo`.
        base: folder of the base model in Hugging Face format; the recipe names those of the tokenizer and the imported
            checkpoint.
        overrides: `section.key=value` that the recipe was loaded with, repeated in the commands.
        base_options: options for the command that trains the base model.
    """
    corpus, tokenizer = Path(recipe.paths.corpus), Path(recipe.model.tokenizer.path)
    imported = Path(str(recipe.start.checkpoint))
    run, last = recipe.run_folder, recipe.schedule.steps
    export = run / "hf" / f"step-{last}"
    name, mirror = recipe.name, base.with_name("mirror")
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
            "a base model that knows five languages, in place of Llama",
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
            "train with tensor 2 × pipeline 2, until a SIGTERM",
            ("emma", "train", name, *overrides),
            (run / "checkpoints",),
            stop=Stop(run, round(last * 0.4)),
        ),
        Step(
            "resume",
            "continue from the checkpoint, until the next SIGTERM",
            ("emma", "train", name, *overrides),
            (run / "checkpoints",),
            stop=Stop(run, round(last * 0.6)),
        ),
        Step(
            "reshard",
            "continue with another layout: tensor 1 × pipeline 2 × data 2",
            ("emma", "train", name, *overrides, "parallelism.tensor=1", "parallelism.sequence=false"),
            (run / "checkpoints",),
        ),
        Step(
            "export",
            "Megatron → Hugging Face",
            # Parity is a separate step here, so that its result is printed.
            ("emma", "convert", "megatron-to-hf", str(run), str(export), "--no-parity", "--overwrite"),
            (export / "config.json",),
        ),
        Step(
            "parity",
            "compare FP32 logits of Megatron and transformers on multilingual text",
            ("emma", "convert", "verify", str(run), str(export)),
            (export / "parity.json",),
        ),
        Step(
            "mirror",
            "a small benchmark of held-out translations",
            ("python", "-P", "-m", "emma.tools.demo.mirror", str(corpus), str(mirror)),
            (mirror,),
        ),
        Step(
            "evaluate",
            "bits per byte of every language, and the benchmark, before and after",
            (
                *("emma", "evaluate", "run", str(run), "--base", str(base)),
                *("--benchmarks", "heldout,demo_translations", "--mirror", str(mirror), "--skip-missing"),
            ),
            (run / "evaluation",),
        ),
        Step(
            "report",
            "one page about the run, and the atlas of its languages",
            ("emma", "report", "run", str(run)),
            (run / "report" / "index.html", run / "report" / "atlas.html"),
        ),
        Step(
            "release",
            "release folder",
            ("emma", "release", "model", str(run), str(run / "release"), "--overwrite"),
            (run / "release",),
        ),
    ]


def compare_steps(mono: Recipe, bilingual: Recipe, base: Path, overrides: Sequence[str] = ()) -> list[Step]:
    """Steps that train without and with translations, and with the shares that an optimisation proposes, at equal budget from
    the demo's token store, and compare."""
    runs = Path(bilingual.paths.runs)
    proposal = runs / "demo-mix" / "demo" / "proposal.yaml"
    optimised = "demo_opt"
    page = base.parent / "mono-bi.html"
    steps = []
    for recipe in (mono, bilingual):
        made = (recipe.mix_folder / "mix.json",)
        steps += _compared(recipe, recipe.name, recipe.description, (recipe.name, *overrides), made, base)
    steps.append(
        Step(
            "optimise",
            "other shares, from 24 small runs of other mixes, checked with new seeds",
            ("emma", "mix", "optimise", "demo", *overrides, "--settings", "demo", "--local"),
            (proposal, proposal.with_name("check.json")),
            # 1: the check found a limit broken, which its page says.
            accepts=(0, 1),
        )
    )
    # The proposal names its mix after its shares.
    words = (bilingual.name, *overrides, f"name={optimised}", f"data={proposal}")
    title = "The demo's comparison: with the shares that the optimisation proposes"
    steps += _compared(bilingual, optimised, title, words, (proposal,), base)
    names = (mono.name, bilingual.name, optimised)
    return [
        *steps,
        Step(
            "compare",
            "all on one page",
            ("emma", "report", "compare", *(str(runs / name) for name in names), "--output", str(page)),
            (page,),
        ),
    ]


def _compared(
    recipe: Recipe, name: str, title: str, words: Sequence[str], made: tuple[Path, ...], base: Path
) -> list[Step]:
    """Steps of one run of a comparison; `words` name it in commands, `made` shows that its mix is there."""
    run = Path(recipe.paths.runs) / name
    export = run / "hf" / f"step-{recipe.schedule.steps}"
    return [
        Step(f"{name}-mix", "token store → datasets", ("emma", "mix", "build", *words), made),
        Step(f"{name}-train", title, ("emma", "train", *words), (run / "checkpoints",)),
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
