"""The three recipes of a first run, each value under its reason."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emma.recipes.schema import Recipe
from emma.recipes.schema.data import Mix, MixComponent
from emma.tools.adapt.choices import KEEP_SHARE, TEMPERATURE, Choices
from emma.tools.adapt.measured import Measured
from emma.tools.adapt.yaml_text import Said, comment, yaml_text
from emma.tools.languages.labels import language_name

__all__ = ["Layout", "Wishes", "cluster_yaml", "data_yaml", "run_yaml", "table_lines"]


@dataclass(frozen=True)
class Wishes:
    """What was asked for. `epochs`, `tokens` and `gpu_hours`: one of them is the budget."""

    languages: list[str]
    keep: list[str]
    base: str
    base_path: str | None = None
    cluster: str = "here"
    text: list[str] = field(default_factory=list)
    data: str | None = None
    license: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    slurm: dict[str, str] = field(default_factory=dict)
    epochs: float | None = None
    tokens: float | None = None
    gpu_hours: float | None = None
    max_epochs: float = 4.0

    @property
    def budget(self) -> str:
        """The budget in words."""
        if self.epochs is not None:
            return f"{self.epochs:g} epochs of the languages' own text"
        if self.tokens is not None:
            return f"{self.tokens:,.0f} tokens"
        return f"{self.gpu_hours:,.0f} GPU-hours"


@dataclass(frozen=True)
class Layout:
    """How the run is divided over its cluster: values of `parallelism`, micro-batch, and why."""

    parallelism: dict[str, Any]
    micro: int
    why: str


def cluster_yaml(values: Mapping[str, Any]) -> str:
    """The cluster file."""
    head = comment(
        "The cluster of this run. `emma recipe explain cluster` says what each key means, `emma slurm site init` writes such "
        "a file from what Slurm says."
    )
    return "\n".join([*head, "", yaml_text(values)])


def table_lines(measured: Measured, choices: Choices) -> list[str]:
    """Languages and pairs: what is there, what it costs, how often it is read."""
    epochs = {planned.source.key: planned for planned in choices.plan.sources}
    unit = "tokens" if measured.counted else "tokens, estimated"
    lines = [f"{'':18}  documents        MB  premium  {unit:>17}  epochs"]
    for one in measured.of("monolingual"):
        planned = epochs.get((one.component, one.code))
        premium = measured.costs.get(one.code, {}).get("premium")
        read = f"{planned.epochs:.2f}{' (cap)' if planned.capped else ''}" if planned else "0"
        lines.append(
            f"{one.code:18}  {one.documents:>9,}  {one.bytes / 1e6:>8,.2f}  "
            f"{'–' if premium is None else f'{premium:.2f}':>7}  {one.tokens:>17,}  {read}"
        )
    if pairs := measured.of("bilingual"):
        found = [epochs[one.source.key] for one in pairs if one.source.key in epochs]
        read = f"{min(p.epochs for p in found):.2f} to {max(p.epochs for p in found):.2f}" if found else "0"
        lines.append(
            f"{f'{len(pairs)} pairs':18}  {sum(p.documents for p in pairs):>9,}  {sum(p.bytes for p in pairs) / 1e6:>8,.2f}  "
            f"{'':>7}  {sum(p.tokens for p in pairs):>17,}  {read}"
        )
    return lines


def data_yaml(
    wishes: Wishes,
    codes: Sequence[str],
    kept: Sequence[str],
    sources: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    unknown: Mapping[str, int],
    measured: Measured,
    choices: Choices,
    parent: Recipe,
    extra: Mapping[str, Any],
) -> str:
    """The data recipe.

    Args:
        wishes: what was asked for.
        codes, kept: languages to adapt to and to keep.
        sources, labels: of the corpus.
        unknown: documents under labels that name no language.
        measured, choices: what the text holds and what follows.
        parent: the shipped run that this one follows.
        extra: further keys of the corpus, taken from the data recipe that was given.
    """
    own = measured.of("monolingual")
    smallest = min((one for one in own if one.code in codes), key=lambda one: one.documents)
    floor = max(1, min(50, smallest.documents // 5))
    names = ", ".join(f"{code} ({language_name(code)})" for code in codes)
    why_only = f"To adapt to: {names}."
    if kept:
        why_only += f" To keep, since the base knows it: {', '.join(kept)}."
    why_only += " Other languages in the files are left out while reading."
    label_values: dict[str, Any] = dict(labels)
    for label, count in unknown.items():
        if label not in label_values:
            label_values[label] = Said(
                "und",
                f"{count:,} documents have this label, which names no language: left out. If they are yours, write the code.",
            )
    languages: dict[str, Any] = {"only": Said([*codes, *kept], why_only)}
    if label_values:
        languages["labels"] = label_values
    corpus: dict[str, Any] = {
        "sources": Said({name: dict(source) for name, source in sources.items()}, _why_sources(wishes)),
        "languages": languages,
        **extra,
        "deduplication": Said(
            {"near": {"jaccard": 0.8}},
            "Near copies add nothing but epochs. `emma recipe explain data.corpus` has what else can be done to the text: "
            "masking of personal data, identification of languages, limits from each language's own text.",
        ),
        "split": Said(
            {"share": 0.01, "cap": 1000, "floor": floor, "min_train": 4},
            f"Held out to validate: 1 % and at least {floor} documents, since the smallest language, {smallest.code}, has "
            f"{smallest.documents:,} raw ones: a fifth of them, at most 50.",
        ),
    }
    components: dict[str, Any] = {"monolingual": {"kind": "text"}}
    pack: dict[str, Any] = {"components": components}
    if "bilingual" in choices.mix.components:
        components["bilingual"] = {"kind": "bilingual"}
        pack["bilingual"] = Said(
            {
                "pairs_per_document": 10,
                "template": "[{src_lang}]: {src}\n[{tgt_lang}]: {tgt}\n",
                "direction": "balanced",
            },
            "As in Mix 1 of the papers: ten pairs a document, with languages labelled, both ways in turn.",
        )
    shipped = parent.data.pack
    if shipped.max_tokens is not None:
        pack["max_tokens"] = Said(
            shipped.max_tokens,
            f"As in {parent.data.name}: a step is {parent.tokens_per_step:,} tokens there.",
        )
    values = {
        "corpus": corpus,
        "pack": pack,
        "mix": Said(_mix(choices, kept), _why_mix(choices)),
    }
    head = comment(
        "Text, tokens and mix of this run. Written by `emma init`; change what you like."
        f"\nMeasured in the {'packed store' if measured.counted else 'raw text'} (tokens: {measured.tokenizer}):"
    )
    table = [f"#   {line}".rstrip() for line in table_lines(measured, choices)]
    note = comment(
        "premium: tokens for the same sentences as English (`emma tokenizer report`); – where it was not measured."
    )
    return "\n".join([*head, *table, *note, "", yaml_text(values)])


def _why_sources(wishes: Wishes) -> str:
    if wishes.data:
        return f"From {wishes.data}: its text and pairs. The first source's copy of equal documents stays."
    said = (
        "What was found in --text. The first source's copy of equal documents stays, so put the best first."
    )
    if wishes.license is None:
        said += " No licence was named (--license): write it in before a release of the corpus."
    return said


def _why_mix(choices: Choices) -> str:
    parts = choices.parts
    said = (
        f"Of {parts.total:,.0f} tokens, {parts.own:,.0f} are the languages' own text ({parts.epochs:.2f} epochs on average), "
        f"{parts.kept:,.0f} text to keep, {parts.pairs:,.0f} translations."
    )
    return "\n".join([said, *choices.plan.notes])


def _mix(choices: Choices, kept: Sequence[str]) -> dict[str, Any]:
    mix: Mix = choices.mix
    components = {}
    for name, component in mix.components.items():
        components[name] = _component(name, component, choices, kept)
    return {
        "components": components,
        "allow_short": Said(True, "What a component cannot give at its caps, the other does."),
        "validation": Said(
            {
                "languages": mix.validation.languages,
                "max_tokens": mix.validation.max_tokens,
                "min_tokens": mix.validation.min_tokens,
                "omit_small": True,
            },
            "A loss of its own for each language; those with too little held-out text have none.",
        ),
    }


def _component(name: str, component: MixComponent, choices: Choices, kept: Sequence[str]) -> dict[str, Any]:
    why = (
        "Translations, in proportion to their tokens and at most a third (Mix 1 has 32.3 %)."
        if name == "bilingual"
        else "All the rest of the budget."
    )
    values: dict[str, Any] = {
        "share": Said(component.share, why),
        "temperature": Said(
            component.temperature,
            f"Languages weigh tokens^(1/{TEMPERATURE}), so that small ones are read more often (mT5, arXiv 2010.11934).",
        ),
        "max_epochs": Said(
            component.max_epochs,
            "Repetition beyond some four epochs is worth little (arXiv 2305.16264).",
        ),
    }
    if component.max_epochs_of:
        values["max_epochs_of"] = Said(
            component.max_epochs_of,
            f"So many epochs of {', '.join(kept)} are at most {KEEP_SHARE:.0%} of the budget: {choices.parts.kept:,.0f} tokens, "
            "against forgetting (arXiv 2403.08763: 5 % for a weak shift, 25 % for a strong one).",
        )
    return values


def run_yaml(
    name: str,
    folder: Path,
    wishes: Wishes,
    parent: Recipe,
    tokenizer: str,
    layout: Layout,
    choices: Choices,
    count: int,
    length: int,
    on_cpu: bool,
) -> str:
    """The run's file; `tokenizer` is the folder of the base's tokenizer files, `count` the number of languages to adapt to."""
    schedule, parts = choices.schedule, choices.parts
    model: Any = wishes.base
    if model.endswith((".yaml", ".yml")):
        model = os.path.relpath(model, folder)
    base_name = Path(wishes.base).stem if model != wishes.base else model
    budget = (
        f"{wishes.budget}: {schedule.steps} steps of {schedule.batch * length:,} tokens"
        if choices.lowered is None
        else f"{wishes.budget} would be {choices.lowered:,.0f} tokens, more than the text holds at its caps: lowered to "
        f"{schedule.steps} steps of {schedule.batch * length:,}"
    )
    batch_why = f"{parent.name} has {parent.batch.global_}"
    if schedule.halved:
        batch_why += f"; halved {schedule.halved} time{'s' * (schedule.halved > 1)}, towards more steps"
    values: dict[str, Any] = {
        "extends": Said(
            parent.name, f"The shipped run that this one follows: {parent.description}. What it says holds."
        ),
        "description": f"{base_name} continued on {count} language{'s' * (count != 1)}",
        "model": Said(
            {"base": model, "tokenizer": {"path": tokenizer}}, "As given, and the folder of its tokenizer."
        ),
        "data": "data.yaml",
        "cluster": "cluster.yaml",
    }
    if on_cpu:
        values["layout"] = Said("local_cpu", "Processes without GPUs.")
    elif parent.name == "demo":
        values["layout"] = Said("h100_64_bf16", "Settings of GPUs; what follows takes precedence.")
    values |= {
        "precision": Said(
            "fp32" if on_cpu else "bf16",
            "CPUs train in FP32."
            if on_cpu
            else "BF16; FP8 is faster where Transformer Engine has it (docs/recipes.md).",
        ),
        "parallelism": Said(layout.parallelism, layout.why),
        "batch": {
            "micro": layout.micro,
            "global": Said(schedule.batch, f"{batch_why}."),
            "sequence_length": length,
        },
        "schedule": {
            "steps": Said(schedule.steps, f"{budget}; {parts.epochs:.2f} epochs."),
            "learning_rate": Said(
                schedule.rate,
                f"{parent.name} has {parent.schedule.learning_rate:g}"
                + (
                    f"; times the square root of {schedule.scaled}/{parent.batch.global_}, as the batches (down to 128)."
                    if schedule.scaled != parent.batch.global_
                    else "."
                ),
            ),
            "min_learning_rate": Said(float(f"{schedule.rate / 10:.2g}"), "A tenth."),
            "warmup_steps": Said(schedule.warmup, "A twentieth of the steps."),
        },
        "start": Said(
            {"mode": "weights", "checkpoint": str(folder / "base-megatron")},
            "The base's weights with a fresh optimizer; `emma convert hf-to-megatron` writes the checkpoint.",
        ),
        "checkpoint": {
            "interval": Said(schedule.save, f"{parent.name}'s, but at least five saves."),
            "keep": 3,
            "keep_every": None,
        },
        "validation": {
            "interval": Said(schedule.validate, "Ten times."),
        },
        "paths": Said(
            {key: str(folder / key) for key in ("corpus", "store", "mix", "runs")},
            "Relative to the folder in which the commands are called.",
        ),
    }
    head = comment(
        f"The run `{name}`. Written by `emma init`; change what you like: `emma recipe explain KEY`."
    )
    return "\n".join([*head, "", yaml_text({"name": name, **values})])
