"""NEXT.md: the commands of the whole road, in order, as they are typed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emma.recipes.schema import Recipe

__all__ = ["Section", "next_page", "road"]


_TOY = Path(__file__).with_name("toy_base.txt")
"""Commands that make the demo's base."""


@dataclass(frozen=True)
class Section:
    """A heading, what to look at, and commands."""

    title: str
    words: str
    commands: tuple[tuple[str, ...], ...]


def road(
    folder: Path, recipe: Recipe, base: Path, *, model: str, missing: bool, seen: Sequence[str], kept: bool
) -> list[Section]:
    """The commands of a run.

    Args:
        folder: of the run's recipes.
        recipe: the run.
        base: folder of the base model in Hugging Face format.
        model: its name in recipes/models, or its file.
        missing: whether the base was not there when the run was begun.
        seen: languages that a tiny base is made from.
        kept: whether there is text of a language to keep.
    """
    run, out = str(folder / "run.yaml"), recipe.run_folder
    slurm = recipe.cluster.launcher == "srun"
    # The demo's model exists nowhere: it is made from the corpus.
    toy = missing and recipe.model.huggingface is None
    sections = []
    if missing and not toy:
        sections.append(
            Section(
                "The base model",
                "It is not here yet. Some models' terms have to be accepted on their page first.",
                (("hf", "download", str(recipe.model.huggingface), "--local-dir", str(base)),),
            )
        )
    sections.append(
        Section(
            "Corpus",
            "Reads, filters and deduplicates the text, and holds some out. Look at what each rule removed: "
            f"`emma corpus peek {run} --rejected-by RULE` shows examples.",
            (("emma", "corpus", "build", run), ("emma", "corpus", "stats", run, "--languages")),
        )
    )
    if toy:
        values = {
            "corpus": recipe.paths.corpus,
            "tokenizer": recipe.model.tokenizer.path,
            "tokens": recipe.model.vocab_size,
            "base": base,
            "languages": ",".join(seen),
        }
        quoted = {key: shlex.quote(str(value)) for key, value in values.items()}
        commands = [shlex.split(line.format(**quoted)) for line in _TOY.read_text().splitlines()]
        sections.append(
            Section(
                "A toy base",
                f"`{model}` is the demo's model, which is made here: its tokenizer, and a model that knows {', '.join(seen)}.",
                tuple(map(tuple, commands)),
            )
        )
    sections += [
        Section(
            "Tokenizer",
            "What the base's tokenizer costs each language. Where premium is high and floor is low, new tokens help: "
            "docs/tokenizer.md.",
            (("emma", "tokenizer", "report", run),),
        ),
        Section(
            "Tokens",
            "Packs the text once. Then the budget is settled: the recipes are written again with the store's exact counts, "
            "and say what changed.",
            (("emma", "pack", "run", run), ("emma", "init", str(folder), "--settle")),
        ),
        Section(
            "Mix and plan",
            "Epochs of each language, what is at its cap, and what the run takes.",
            (
                ("emma", "mix", "plan", run),
                ("emma", "mix", "build", run),
                ("emma", "mix", "verify", run),
                ("emma", "plan", run),
            ),
        ),
        Section(
            "Train",
            "An interrupted run continues with the same command."
            + (" Wait until the jobs are done: `emma slurm jobs` shows them." if slurm else ""),
            (
                (
                    "emma",
                    "convert",
                    "hf-to-megatron",
                    str(base),
                    str(recipe.start.checkpoint),
                    "--model",
                    model,
                ),
                ("emma", "slurm", "submit", run) if slurm else ("emma", "train", run),
            ),
        ),
        Section(
            "Evaluate",
            "Bits per byte of every language, before and after"
            + (", and what was forgotten of the languages to keep." if kept else "."),
            (
                ("emma", "convert", "megatron-to-hf", str(out)),
                ("emma", "evaluate", "run", str(out), "--base", str(base)),
                ("emma", "report", "run", str(out)),
            ),
        ),
        Section(
            "Release",
            "A folder for the Hub with its card; nothing is uploaded.",
            (
                ("emma", "release", "model", str(out), str(out / "release"), "--license-from", str(base)),
                ("emma", "release", "verify", str(out / "release")),
            ),
        ),
    ]
    return sections


def next_page(
    name: str, here: Path, sections: Sequence[Section], table: Sequence[str], notes: Sequence[str]
) -> str:
    """The page.

    Args:
        name: of the run.
        here: the folder in which all commands are called.
        sections: the road.
        table: lines of the table of languages.
        notes: what to know before.
    """
    lines = [
        f"# {name}: from raw text to a release",
        "",
        "Written by `emma init`. Paste the commands one after the other; each checks what the one before it wrote, and a",
        "repeated one continues or says that there is nothing to do. All paths start at this folder:",
        "",
        "```bash",
        shlex.join(["cd", str(here)]),
        "```",
        "",
        "```text",
        *(line.rstrip() for line in table),
        "```",
        "",
        *(f"- {note}" for note in notes),
    ]
    for number, section in enumerate(sections, 1):
        lines += [
            "",
            f"## {number}. {section.title}",
            "",
            section.words,
            "",
            "```bash",
            *(shlex.join(command) for command in section.commands),
            "```",
        ]
    return "\n".join(lines) + "\n"
