"""Whether new tokens help a model: no extension against extensions of two sizes, at equal bytes and at equal FLOPs.

    python -m benchmarks.vocabulary RUN BASE OUT [--tokens N]... [--initialise HOW]... [SECTION.KEY=VALUE]...

RUN is a run with a built corpus whose tokenizer is that of BASE, a Hugging Face model. Everything is made by the commands
that a user would type: the tokenizer is extended and the model with it, the corpus packed, and every arm trained from
the imported model on monolingual text in proportion to its size, exported, and scored with `emma evaluate run`. An arm is
a number of new tokens, a way to begin their rows, a budget and a seed:

    bytes    every arm reads the training documents `--epochs` times; an extension needs fewer steps for them
    flops    every arm spends the FLOPs that no extension spends on these; how much text that is, the table says

Bits per byte of whole held-out documents, never losses per token, are averaged over languages: those that BASE names in
`languages.json`, and the others' upper and lower half by training bytes. What is finished is kept: run again, it
continues. Writes OUT/vocabulary.json and OUT/vocabulary.md. With one GPU and a 1B base: RUN's cluster `h200_1`;
`--list` prints the commands, and `emma plan OUT/run.yaml` says how long a run takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import read_json, write_json, write_text
from emma.base.manifest import Manifest
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.arithmetic.flops import flops_per_token
from emma.tools.demo.commands import run_command
from emma.tools.demo.driver import Record, exclusive, run_steps
from emma.tools.demo.steps import Step
from emma.tools.evaluation.groups import SEEN_FILE, read_seen
from emma.tools.evaluation.results import read_results
from emma.tools.pack.store import open_component

__all__ = ["Arm", "arms_of", "keep_settings", "language_groups", "steps_of", "table"]

BUDGETS = ("bytes", "flops")
_KIND = "monolingual"


@dataclass(frozen=True)
class Arm:
    """One trained model: new tokens (0: the base's vocabulary), how their rows begin, the budget and the seed."""

    tokens: int
    initialise: str
    budget: str
    seed: int

    @property
    def label(self) -> str:
        """Name without the seed."""
        return f"{self.initialise}-{self.tokens}-{self.budget}" if self.tokens else "none"

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"{self.label}-seed{self.seed}"


def arms_of(
    tokens: Sequence[int], initialise: Sequence[str], budgets: Sequence[str], seeds: int
) -> list[Arm]:
    """All arms; no extension has one budget, which both compare with."""
    every = range(1, seeds + 1)
    none = [Arm(0, "", "bytes", seed) for seed in every]
    return none + [Arm(*each) for each in product(tokens, initialise, budgets, every)]


def steps_of(
    store_tokens: int, flops: float, none: tuple[int, float], budget: str, per_step: int, epochs: float
) -> int:
    """Steps of an arm.

    Args:
        store_tokens: training tokens of its store: all training text, in this vocabulary.
        flops: model FLOPs a token with this vocabulary.
        none: the same two of the base's vocabulary.
        budget: `bytes`: the text `epochs` times, to within a step; `flops`: what the base's vocabulary spends on that.
        per_step: tokens of a step.
        epochs: how often the text is read.

    Raises:
        UserError: the budget does not fill one step.
    """
    read = epochs * store_tokens if budget == "bytes" else epochs * none[0] * none[1] / flops
    if read < per_step:
        raise UserError(f"the text gives {read:,.0f} tokens, but a step has {per_step:,}; make steps smaller")
    return int(read // per_step)


def language_groups(sizes: Mapping[str, int], seen: Sequence[str]) -> dict[str, list[str]]:
    """Languages that the base has seen, and the others' upper and lower half by training bytes."""
    rest = sorted(set(sizes) - set(seen), key=lambda language: (-sizes[language], language))
    half = (len(rest) + 1) // 2
    found = {"seen": sorted(set(sizes) & set(seen)), "large": rest[:half], "small": rest[half:]}
    return {name: languages for name, languages in found.items() if languages}


def table(
    scores: Mapping[Arm, Mapping[str, float]], groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """A row per arm: for each group of languages the mean over seeds of its mean bits per byte, their standard deviation,
    and the mean and range of the differences from no extension with the same seed.

    Raises:
        CheckFailedError: arms have scores for different languages.
    """
    languages = {tuple(sorted(own)) for own in scores.values()}
    if len(languages) != 1:
        raise CheckFailedError(
            "arms were scored on different languages; delete OUT/runs/*/evaluation and go on"
        )
    means = {
        arm: {name: statistics.fmean(own[language] for language in group) for name, group in groups.items()}
        for arm, own in scores.items()
    }
    rows = []
    for label in dict.fromkeys(arm.label for arm in scores):
        own = [arm for arm in scores if arm.label == label]
        row: dict[str, Any] = {"arm": label, "seeds": len(own)}
        for name in groups:
            values = [means[arm][name] for arm in own]
            against = [means[arm][name] - means[Arm(0, "", "bytes", arm.seed)][name] for arm in own]
            row[name] = {
                "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
                "difference": statistics.fmean(against),
                "range": [min(against), max(against)],
            }
        rows.append(row)
    return rows


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Notes what all arms share, so that a second call adds arms and never continues some of them otherwise.

    Raises:
        UserError: OUT was begun with other settings.
    """
    path = out / "settings.json"
    if path.is_file() and (known := read_json(path)) != settings:
        key = next(key for key in settings if known.get(key) != settings[key])
        raise UserError(
            f"{out}: was begun with another {key} ({known.get(key)}, now {settings[key]}); name another OUT, since arms "
            "of two settings cannot be compared"
        )
    write_json(path, dict(settings))


class _Comparison:
    """Where everything is, and the commands that make it."""

    def __init__(self, run: str, base: Path, out: Path, overrides: Sequence[str], epochs: float) -> None:
        self.base, self.out, self.epochs = base, out, epochs
        self.overrides = list(overrides)
        self.recipe = load_recipe(run, overrides)
        self.file = out / "run.yaml"
        parent = str(Path(run).resolve()) if Path(run).suffix else run
        mix = {
            "components": {_KIND: {"share": 100, "max_epochs": 1000}},
            "validation": {"by_component": False, "by_category": False},
        }
        # JSON is YAML.
        write_json(out / "data.yaml", {"pack": {"components": {_KIND: {"kind": "text"}}}, "mix": mix})
        validation = {"groups": [], "at_start": False}
        write_json(self.file, {"extends": parent, "data": "data.yaml", "validation": validation})

    def tokenizer(self, tokens: int) -> Path:
        return self.out / f"tokenizer-{tokens}" if tokens else self.base

    def vocabulary(self, tokens: int) -> list[str]:
        """Overrides of a vocabulary."""
        size = self.recipe.model.vocab_size
        if tokens:
            size = int(Manifest.read(self.tokenizer(tokens)).extra["vocab_size"])
        return [
            *self.overrides,
            f"model.tokenizer.path={self.tokenizer(tokens)}",
            f"model.vocab_size={size}",
            f"paths.store={self.out / f'store-{tokens}'}",
        ]

    def extensions(self, sizes: Sequence[int]) -> list[Step]:
        """Steps that make the tokenizers."""
        return [
            Step(
                f"tokenizer-{tokens}",
                f"{tokens:,} new tokens",
                ("emma", "tokenizer", "extend", str(self.file), str(self.tokenizer(tokens)), "--tokens", str(tokens),
                 *self.overrides, f"model.tokenizer.path={self.base}", "--overwrite"),
                (self.tokenizer(tokens) / "tokenizer.json",),
            )
            for tokens in sizes
        ]  # fmt: skip

    def stores(self, sizes: Sequence[int]) -> list[Step]:
        """Steps that pack the corpus in every vocabulary."""
        return [
            Step(
                f"store-{tokens}",
                f"the corpus, packed with {tokens:,} new tokens",
                ("emma", "pack", "run", str(self.file), *self.vocabulary(tokens)),
                (self.out / f"store-{tokens}" / _KIND,),
            )
            for tokens in (0, *sizes)
        ]

    def train_sizes(self, tokens: int) -> dict[str, tuple[int, int]]:
        """Training tokens and bytes of each language."""
        rows = open_component(self.out / f"store-{tokens}" / _KIND).sources.to_pylist()
        return {row["language"]: (row["tokens"], row["bytes"]) for row in rows if row["split"] == "train"}

    def cost(self, tokens: int) -> tuple[int, float]:
        """Training tokens of a store, and FLOPs a token."""
        recipe = load_recipe(str(self.file), self.vocabulary(tokens))
        flops = flops_per_token(recipe.model, recipe.batch.sequence_length)
        return sum(size for size, _ in self.train_sizes(tokens).values()), flops

    def steps(self, arm: Arm) -> int:
        recipe = self.recipe
        return steps_of(*self.cost(arm.tokens), self.cost(0), arm.budget, recipe.tokens_per_step, self.epochs)

    def model(self, arm: Arm) -> Path:
        """The model that an arm starts from: noise has the arm's seed, other rows have none."""
        if not arm.tokens:
            return self.base
        seed = f"-seed{arm.seed}" if arm.initialise in ("mean", "random") else ""
        return self.out / "models" / f"{arm.initialise}-{arm.tokens}{seed}"

    def settings(self, arm: Arm) -> tuple[list[str], Recipe]:
        """Overrides of an arm's run, and its recipe."""
        start, steps = self.model(arm), self.steps(arm)
        schedule = self.recipe.schedule
        warmup = max(1, round(schedule.warmup_steps * steps / schedule.steps))
        overrides = [
            *self.vocabulary(arm.tokens),
            f"name={arm.name}",
            f"start={{mode: weights, checkpoint: {self.imported(arm)}, reference: {start}}}",
            f"schedule.steps={steps}",
            f"schedule.warmup_steps={warmup}",
            f"checkpoint.interval={steps}",
            f"seed={arm.seed}",
            f"data.mix.seed={arm.seed}",
            f"paths.mix={self.out / 'mix' / f'{arm.tokens}-{arm.budget}-{arm.seed}'}",
            f"paths.runs={self.out / 'runs'}",
        ]
        return overrides, load_recipe(str(self.file), overrides)

    def imported(self, arm: Arm) -> Path:
        return self.out / "imported" / (self.model(arm).name if arm.tokens else "base")

    def arm_steps(self, arm: Arm, limit: int | None) -> list[Step]:
        """Steps of one arm, from the base model to its scores."""
        overrides, recipe = self.settings(arm)
        model, imported, run = self.model(arm), self.imported(arm), recipe.run_folder
        export = run / "hf" / f"step-{recipe.schedule.steps}"
        own = str(self.file)
        result = []
        if arm.tokens:
            extend = ("emma", "convert", "extend-vocabulary", str(self.base), str(model), "--overwrite")
            how = (
                "--tokenizer",
                str(self.tokenizer(arm.tokens)),
                "--initialise",
                arm.initialise,
                "--seed",
                str(arm.seed),
            )
            result.append(Step(f"model-{model.name}", f"rows for new tokens: {model.name}",
                               (*extend, *how) if "seed" in model.name else (*extend, *how[:-2]), (model / "config.json",)))  # fmt: skip
        limited = ("--limit", str(limit)) if limit else ()
        score = ("emma", "evaluate", "run", str(run), "--kinds", _KIND, "--rows", "1", *limited)
        return [
            *result,
            Step(f"import-{imported.name}", f"import {imported.name}",
                 ("emma", "convert", "hf-to-megatron", str(model), str(imported), "--overwrite"), (imported,)),
            Step(f"mix-{arm.tokens}-{arm.budget}-{arm.seed}", f"mix of {arm.name}",
                 ("emma", "mix", "build", own, *overrides), (recipe.mix_folder / "mix.json",)),
            Step(f"train-{arm.name}", f"train {arm.name}", ("emma", "train", own, *overrides), (run / "checkpoints",)),
            Step(f"export-{arm.name}", f"export {arm.name}",
                 ("emma", "convert", "megatron-to-hf", str(run), str(export), "--no-parity", "--overwrite"), (export / "config.json",)),
            Step(f"score-{arm.name}", f"bits per byte of {arm.name}", score, (run / "evaluation" / "results.parquet",)),
        ]  # fmt: skip

    def scores(self, arm: Arm) -> dict[str, float]:
        """Bits per byte by language."""
        folder = self.out / "runs" / arm.name / "evaluation"
        rows = [row for row in read_results(folder) if row.metric == "bits_per_byte"]
        return {row.language: row.value for row in rows if row.benchmark == f"heldout/{_KIND}"}


def _markdown(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> str:
    names = [f"{name} ({len(group)})" for name, group in groups.items()]
    lines = [f"| arm | steps | epochs | FLOPs | {' | '.join(names)} |", "|---" * (4 + len(names)) + "|"]
    for row in rows:
        cells = []
        for name in groups:
            own = row[name]
            spread = "" if own["deviation"] is None else f" ± {own['deviation']:.3f}"
            low, high = own["range"]
            difference = (
                "" if row["arm"] == "none" else f"; {own['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            )
            cells.append(f"{own['mean']:.3f}{spread}{difference}")
        lines.append(
            f"| {row['arm']} | {row['steps']:,} | {row['epochs']:.2f} | {row['flops']:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.argument("run")
@click.argument("base", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--tokens", type=click.IntRange(min=1), multiple=True, default=(8192, 32768), show_default=True)
@click.option(
    "--initialise",
    type=click.Choice(["subword", "auxiliary", "mean", "random"]),
    multiple=True,
    default=("subword", "auxiliary", "mean", "random"),
    show_default=True,
)
@click.option("--budget", type=click.Choice(BUDGETS), multiple=True, default=BUDGETS, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Held-out documents a language.  [default: all]")
@click.option(
    "--list", "only_list", is_flag=True, help="Make the tokenizers and stores, then print the other commands."
)
def main(
    run: str,
    base: Path,
    out: Path,
    overrides: tuple[str, ...],
    tokens: tuple[int, ...],
    initialise: tuple[str, ...],
    budget: tuple[str, ...],
    seeds: int,
    epochs: float,
    limit: int | None,
    only_list: bool,
) -> None:
    base, out = base.resolve(), out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    comparison = _Comparison(run, base, out, overrides, epochs)
    keep_settings(
        out,
        {"recipe": comparison.recipe.sha256, "base": str(base), "epochs": epochs, "limit": limit},
    )
    arms = arms_of(tokens, initialise, budget, seeds)
    with exclusive(out) as lock:
        record = Record(out)
        run_steps(comparison.extensions(tokens), record, lock)
        run_steps(comparison.stores(tokens), record, lock)
        steps = {step.name: step for arm in arms for step in comparison.arm_steps(arm, limit)}
        if only_list:
            for step in steps.values():
                click.echo(" ".join(step.command))
            return
        run_steps(list(steps.values()), record, lock)
    seen = read_seen(base / SEEN_FILE) if (base / SEEN_FILE).is_file() else frozenset()
    scores = {arm: comparison.scores(arm) for arm in arms}
    scored = next(iter(scores.values()))
    sizes = {
        language: size for language, (_, size) in comparison.train_sizes(0).items() if language in scored
    }
    groups = language_groups(sizes, sorted(seen))
    rows = table(scores, groups)
    none = comparison.steps(arms[0]) * comparison.cost(0)[1]
    for row in rows:
        arm = next(arm for arm in arms if arm.label == row["arm"])
        count, (total, flops) = comparison.steps(arm), comparison.cost(arm.tokens)
        row |= {
            "steps": count,
            "epochs": count * comparison.recipe.tokens_per_step / total,
            "flops": count * flops / none,
        }
    by_arm = [{**asdict(arm), "bits_per_byte": own} for arm, own in scores.items()]
    write_json(out / "vocabulary.json", {"groups": groups, "rows": rows, "arms": by_arm})
    write_text(out / "vocabulary.md", _markdown(rows, groups))
    click.echo(_markdown(rows, groups))


if __name__ == "__main__":
    run_command(main)
