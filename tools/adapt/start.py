"""`emma init`: from wishes and raw text to the files of a first run; after packing, the same files with exact counts."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import write_text
from emma.recipes.compose import list_names
from emma.recipes.devices import device
from emma.recipes.load import load_recipe, load_section
from emma.recipes.schema import Recipe
from emma.recipes.schema.corpus import Corpus
from emma.recipes.schema.data import Data
from emma.recipes.schema.model import Model
from emma.tools.adapt.choices import Choices, solve
from emma.tools.adapt.clusters import choose_cluster
from emma.tools.adapt.languages import codes_of, read_languages, with_text
from emma.tools.adapt.layouts import ALONE, choose_layout, sequence_length
from emma.tools.adapt.measured import Measured, measure_store, measure_survey, notes_of
from emma.tools.adapt.raw import find_sources
from emma.tools.adapt.recipes import Wishes, cluster_yaml, data_yaml, run_yaml, table_lines
from emma.tools.adapt.road import next_page, road
from emma.tools.adapt.written import VERSION, read_state, sha256_text
from emma.tools.corpus.survey import survey
from emma.tools.languages.labels import LanguageResolver
from emma.tools.plan.plan import Plan, make_plan

__all__ = ["Begun", "begin", "settle"]

_SHIPPED_KEYS = ("language_filters", "filters", "normalisation", "identification", "max_document_megabytes")
"""Keys of a given data recipe's corpus that the new one takes over."""


@dataclass(frozen=True)
class Text:
    """The corpus's part: sources, labels, and what was found in them.

    Attributes:
        codes, kept: languages to adapt to and to keep.
        sources, labels, extra: of the corpus.
        unknown: documents under labels that name no language.
        notes: what to know.
    """

    codes: list[str]
    kept: list[str]
    sources: dict[str, dict[str, Any]]
    labels: dict[str, str]
    extra: dict[str, Any]
    unknown: dict[str, int]
    notes: list[str]


@dataclass(frozen=True)
class Begun:
    """The files by name, what they rest on, and messages."""

    files: dict[str, str]
    recipe: Recipe
    plan: Plan
    measured: Measured
    choices: Choices
    table: list[str]
    notes: list[str]
    state: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON of `emma init --json`."""
        epochs = {planned.source.key: planned for planned in self.choices.plan.sources}
        rows = [
            {
                **asdict(language),
                **self.measured.costs.get(language.code, {}),
                "epochs": epochs[key].epochs
                if (key := (language.component, language.code)) in epochs
                else 0.0,
                "capped": key in epochs and epochs[key].capped,
            }
            for language in self.measured.languages
        ]
        return {
            "run": self.recipe.name,
            "counted": self.measured.counted,
            "languages": rows,
            "budget": {
                **asdict(self.choices.parts),
                "tokens": self.recipe.total_tokens,
                "steps": self.recipe.schedule.steps,
            },
            "lowered_from": self.choices.lowered,
            "notes": self.notes,
            "plan": self.plan.to_dict(),
        }


def begin(folder: Path, wishes: Wishes, *, workers: int = 1) -> Begun:
    """Measures the text and makes the files.

    Raises:
        UserError: a wish cannot be met; the message names the option.
    """
    model = _model(wishes, folder)
    wanted, keep = (
        read_languages(wishes.languages),
        read_languages(wishes.keep, "--keep") if wishes.keep else [],
    )
    keep = [one for one in keep if one.language not in {own.language for own in wanted}]
    names = list(dict.fromkeys(one.language for one in (*wanted, *keep)))
    sources, labels, extra, notes = _sources(wishes, names)
    notes = [one.note for one in (*wanted, *keep) if one.note] + notes
    corpus = Corpus.model_validate({"sources": sources, "languages": {"labels": labels}, **extra})
    found = survey(corpus, names, workers=workers)
    codes = list(codes_of(found, wanted))
    kept = []
    for one in keep:
        here = {
            c: s for c, s in with_text(found, one.language).items() if one.script in (None, c.split("_")[1])
        }
        if here:
            kept.append(next(iter(here)))
        else:
            notes.append(
                f"no text in {one.language}, which was to be kept: what the base forgets of it is neither counteracted nor "
                "measured. Fix: add some with --text"
            )
    notes += notes_of(found, codes)
    text = Text(codes, kept, sources, labels, extra, dict(found.unknown), notes)
    parent = _parent(wishes, model)
    measured = measure_survey(found, [*codes, *kept], model, sequence_length(parent, model))
    missing = not (base_folder(wishes, model, folder) / "config.json").is_file()
    return _files(folder, wishes, model, parent, text, measured, missing=missing)


def settle(folder: Path) -> tuple[Begun, list[str]]:
    """The files with the store's counts, and what changes.

    Raises:
        UserError: the folder is not `emma init`'s, or the text isn't packed.
    """
    state = read_state(folder)
    wishes, text = Wishes(**state["wishes"]), Text(**state["text"])
    before = load_recipe(folder / "run.yaml")
    raw = Measured.read(state["measured"])
    measured = measure_store(before, raw)
    model = _model(wishes, folder)
    missing = state["missing"]
    begun = _files(folder, wishes, model, _parent(wishes, model), text, measured, missing=missing, raw=raw)
    changes = _changes(before, begun.recipe)
    return begun, changes


def _changes(before: Recipe, after: Recipe) -> list[str]:
    rows = [
        ("steps", before.schedule.steps, after.schedule.steps),
        ("sequences a step", before.batch.global_, after.batch.global_),
        ("tokens", before.total_tokens, after.total_tokens),
        ("learning rate", before.schedule.learning_rate, after.schedule.learning_rate),
    ]
    for name, component in after.data.mix.components.items():
        old = before.data.mix.components.get(name)
        rows.append((f"share of {name}", old.share if old else 0.0, component.share))
    return [
        f"{name}: {f'{old:,}' if isinstance(old, int) else f'{old:g}'} → {f'{new:,}' if isinstance(new, int) else f'{new:g}'}"
        for name, old, new in rows
        if old != new
    ]


def _model(wishes: Wishes, folder: Path) -> Model:
    """The base, with its tokenizer where it will be."""
    model: Model = load_section("model", wishes.base)
    tokenizer = str(tokenizer_folder(wishes, model, folder))
    return model.model_copy(update={"tokenizer": model.tokenizer.model_copy(update={"path": tokenizer})})


def base_folder(wishes: Wishes, model: Model, folder: Path) -> Path:
    """Folder of the base model."""
    if wishes.base_path is not None:
        return Path(wishes.base_path)
    # The demo's model is made of the run's own corpus.
    return folder / "base" if model.huggingface is None else Path(model.tokenizer.path)


def tokenizer_folder(wishes: Wishes, model: Model, folder: Path) -> Path:
    """Folder of its tokenizer."""
    if wishes.base_path is None and model.huggingface is None:
        return folder / "tokenizer"
    return base_folder(wishes, model, folder)


def _parent(wishes: Wishes, model: Model) -> Recipe:
    """The shipped run of this base with translations, or else that of Llama 3 8B; the demo for a model of its size."""
    if model.huggingface is None:
        return load_recipe("demo")
    own = [recipe for name in list_names("runs") if (recipe := load_recipe(name)).model.name == model.name]
    own.sort(
        key=lambda recipe: (
            "bilingual" not in recipe.data.mix.components,
            recipe.total_tokens != 671_088_640_000,
            recipe.name,
        )
    )
    return own[0] if own else load_recipe("emma_llama3_8b_bi")


def _sources(
    wishes: Wishes, languages: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, Any], list[str]]:
    """Sources, labels and further keys of the corpus, and notes."""
    sources: dict[str, dict[str, Any]] = {}
    labels: dict[str, str] = {}
    extra: dict[str, Any] = {}
    notes: list[str] = []
    if wishes.data is not None:
        data: Data = load_section("data", wishes.data)
        if data.corpus is None:
            raise UserError(f"--data: {wishes.data} has no section corpus, which names the sources")
        for name, source in data.corpus.sources.items():
            if source.kind not in ("monolingual", "parallel"):
                notes.append(
                    f"source {name} holds {source.kind}: left out; add a component for it to the data recipe"
                )
                continue
            sources[name] = source.model_dump(mode="json", exclude_defaults=True)
        labels |= data.corpus.languages.labels
        given = data.corpus.model_dump(mode="json", exclude_defaults=True)
        extra = {key: given[key] for key in _SHIPPED_KEYS if key in given}
    if wishes.text:
        found = find_sources(wishes.text, languages, wishes.license)
        for name, values in found.sources.items():
            while name in sources:
                name += "-2"
            sources[name] = values
        notes += [f"passed over: {line}" for line in found.passed_over[:20]]
        if len(found.passed_over) > 20:
            notes.append(f"passed over: {len(found.passed_over) - 20} more files")
    if not sources:
        raise UserError("no text. Fix: name files or folders with --text, or a data recipe with --data")
    for code in {*wishes.labels.values()} - {"und"}:
        LanguageResolver().resolve(code)
    return sources, labels | wishes.labels, extra, notes


def _files(
    folder: Path,
    wishes: Wishes,
    model: Model,
    parent: Recipe,
    text: Text,
    measured: Measured,
    *,
    missing: bool,
    raw: Measured | None = None,
) -> Begun:
    """The files.

    Args:
        missing: whether the base was not there when the run was begun.
        raw: what the raw text held, where `measured` is the store.
    """
    cluster, length = choose_cluster(wishes.cluster, wishes.slurm, folder), sequence_length(parent, model)
    name = _name(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    trial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_text(trial / "cluster.yaml", cluster_yaml(cluster))
        layout, speed, unit = choose_layout(
            parent, model, load_section("cluster", str(trial / "cluster.yaml"))
        )
        tokens = wishes.tokens
        if wishes.gpu_hours is not None:
            if speed is None:
                raise UserError(
                    "--gpu-hours: nothing is published about the speed of this device, so hours say nothing. Fix: give the "
                    "budget in --tokens or --epochs"
                )
            tokens = wishes.gpu_hours * 3600 * speed
        tiny = parent.data.pack.max_tokens is not None
        choices = solve(
            measured.sources,
            text.kept,
            parent,
            unit=unit,
            length=length,
            cap=wishes.max_epochs,
            epochs=wishes.epochs,
            tokens=tokens,
            languages=[one.code for one in measured.of("monolingual") if one.tokens],
            validation_tokens=parent.data.mix.validation.max_tokens if tiny else 2_000_000,
            lower=raw is not None,
        )
        on_cpu = speed is None and layout.parallelism == ALONE
        table = table_lines(measured, choices)
        files = {
            "data.yaml": data_yaml(
                wishes,
                text.codes,
                text.kept,
                text.sources,
                text.labels,
                text.unknown,
                measured,
                choices,
                parent,
                text.extra,
            ),
            "cluster.yaml": cluster_yaml(cluster),
            "run.yaml": run_yaml(
                name,
                folder,
                wishes,
                parent,
                model.tokenizer.path,
                layout,
                choices,
                len(text.codes),
                length,
                on_cpu,
            ),
        }
        for file, content in files.items():
            write_text(trial / file, content)
        recipe = load_recipe(trial / "run.yaml")
        plan = make_plan(recipe)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    notes = [*text.notes, *_of_plan(choices, text.kept)]
    if device(recipe.cluster.device).platform == "rocm":
        notes.append(
            f"training on {recipe.cluster.device} is refused, since it was never compared (docs/clusters.md): a plan only"
        )
    seen = text.kept or [max(measured.of("monolingual"), key=lambda one: one.tokens).code]
    base = base_folder(wishes, model, folder)
    sections = road(folder, recipe, base, model=wishes.base, missing=missing, seen=seen, kept=bool(text.kept))
    files["NEXT.md"] = next_page(name, Path.cwd(), sections, table, notes)
    state = {
        "version": VERSION,
        "wishes": asdict(wishes),
        "text": asdict(text),
        "missing": missing,
        "measured": (raw or measured).to_dict(),
        "files": {file: sha256_text(content) for file, content in files.items()},
    }
    return Begun(files, recipe, plan, measured, choices, table, notes, state)


def _of_plan(choices: Choices, kept: Sequence[str]) -> list[str]:
    """What binds."""
    own = [row for row in choices.plan.sources if row.source.component == "monolingual"]
    capped = [
        f"{row.source.language} ({row.epochs:.2f} epochs)"
        for row in own
        if row.capped and row.source.language not in kept
    ]
    notes = (
        [f"at their caps: {', '.join(capped)}"]
        if capped
        else ["no language is at its cap: the budget binds, not the text"]
    )
    if choices.lowered is not None:
        notes.append(
            f"the budget was lowered from {choices.lowered:,.0f} to {choices.parts.total:,.0f} tokens: at its caps the text "
            "holds no more"
        )
    return notes


def _name(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")
    if not name:
        raise UserError(
            f"{folder}: its name has no letter or digit to name the run by. Fix: name another folder"
        )
    return name
