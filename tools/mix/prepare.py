"""What a mix will be: the settings of a run, its plan from the store's counts, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from emma.base.errors import UserError
from emma.recipes.schema import Recipe
from emma.recipes.schema.data import Mix, Rehydrated
from emma.tools.mix.catalogue import Catalogue, load_catalogues
from emma.tools.mix.layout import FORMAT, ROW, RULES, read_mix
from emma.tools.mix.part import part_of
from emma.tools.mix.plan import MixPlan, make_plan, plan_validation
from emma.tools.mix.rehydrate import rehydration_note
from emma.tools.mix.sources import Source, read_statistics, sources_of_store
from emma.tools.pack.store import Component, open_store
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = [
    "MixSettings",
    "Prepared",
    "expected_fingerprints",
    "fingerprint_of",
    "leaves_out",
    "plan_mix",
    "prepare",
    "rehydrated",
]


@dataclass(frozen=True)
class MixSettings:
    """What `emma mix` works with.

    Args:
        mix: the recipe's `data.mix`.
        name: the mix's name.
        folder: the mix's folder.
        store: the token store.
        samples: sequences of training: steps × global batch.
        sequence_length: input tokens of a sequence.
        recipe_sha256: hash of the resolved recipe, for the manifest.
        tokenizer_sha256: hash of the run's tokenizer, if its file exists; a store packed with another one is
            refused.
    """

    mix: Mix
    name: str
    folder: Path
    store: Path
    samples: int
    sequence_length: int
    recipe_sha256: str
    tokenizer_sha256: str | None = None

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> MixSettings:
        """Settings of a run's recipe."""
        tokenizer = TokenizerFile(recipe.model.tokenizer, recipe.model.vocab_size)
        return cls(
            recipe.data.mix,
            recipe.data.name,
            recipe.mix_folder,
            Path(recipe.paths.store),
            recipe.total_samples,
            recipe.batch.sequence_length,
            recipe.sha256,
            tokenizer.sha256 if tokenizer.path.is_file() else None,
        )

    @property
    def tokens(self) -> int:
        """Budget: samples × sequence length."""
        return self.samples * self.sequence_length


@dataclass(frozen=True)
class Prepared:
    """A planned mix and what it was planned from; `catalogues` only where they had to be read."""

    components: list[Component]
    catalogues: dict[str, Catalogue] | None
    sources: list[Source]
    plan: MixPlan


def plan_mix(settings: MixSettings, statistics: Sequence[Path] = ()) -> MixPlan:
    """Plans a mix from the store's true counts.

    Args:
        settings: what to plan.
        statistics: published word counts that decide the categories; by default they are estimated.

    Raises:
        UserError: the store lacks a component, or its components don't belong together.
    """
    return prepare(settings, statistics).plan


def prepare(settings: MixSettings, statistics: Sequence[Path] = ()) -> Prepared:
    """Opens the store and plans the mix; raises as `plan_mix` does."""
    components = open_store(settings.store, sorted(settings.mix.components))
    if settings.tokenizer_sha256 not in (None, components[0].settings["tokenizer_sha256"]):
        raise UserError(
            f"{settings.store}: was packed with another tokenizer than the run's; pack it again with this "
            "recipe, or give another paths.store"
        )
    words = {}
    for path in statistics:
        kind, counts = read_statistics(path)
        words[kind] = {name: values["words"] for name, values in counts.items()}
    sources = sources_of_store(settings.mix, components, words)
    catalogues = None
    rehydrate = rehydrated(settings.mix)
    if leaves_out(settings.mix) or rehydrate:
        catalogues = load_catalogues(components, settings.mix.exclude_consumed, rehydrate)
    if catalogues is not None and leaves_out(settings.mix):
        catalogues = part_of(catalogues, settings.mix.part_of_store)
        sources = [_without_consumed(source, catalogues[source.component]) for source in sources]
    # Each best-fit sample has its own last label, so it holds one token more than its length.
    tokens = settings.tokens if settings.mix.packing == "concatenate" else settings.tokens + settings.samples
    plan = make_plan(settings.mix, sources, tokens, settings.sequence_length)
    if settings.mix.packing == "concatenate" and sum(row.cap_tokens for row in plan.sources) == tokens:
        plan.faults.append(
            f"the mix holds {tokens:,} tokens at its caps, which is the budget, but the last sample's last label is one more; "
            "raise max_epochs, or lower the budget (schedule.steps × batch.global × batch.sequence_length)"
        )
    if len(plan.sources) > np.iinfo(ROW["source"]).max:
        raise UserError(f"{len(plan.sources):,} sources take part; a mix may have at most 65,535")
    if (shards := sum(len(component.shards) for component in components)) > np.iinfo(ROW["shard"]).max + 1:
        raise UserError(
            f"{settings.store}: its components have {shards:,} shards; a mix may have at most 65,536. Pack them anew with a "
            "larger data.pack.shard_mib"
        )
    for name in rehydrate:
        assert catalogues is not None
        mine = [row for row in plan.sources if row.source.component == name]
        plan.notes.append(rehydration_note(catalogues[name], mine))
    groups, faults, notes = plan_validation(settings.mix, sources)
    plan.groups.extend(groups)
    plan.faults.extend(faults)
    plan.notes.extend(notes)
    return Prepared(components, catalogues, sources, plan)


def rehydrated(mix: Mix) -> dict[str, list[Rehydrated]]:
    """By component, how often repeated documents are read; only components that say so."""
    return {name: component.rehydrate for name, component in mix.components.items() if component.rehydrate}


def leaves_out(mix: Mix) -> bool:
    """Whether training may not see all documents of the store that are for training."""
    return bool(mix.exclude_consumed) or mix.part_of_store < 1


def _without_consumed(source: Source, catalogue: Catalogue) -> Source:
    code = catalogue.languages.index(source.language)
    return Source(
        source.component,
        source.language,
        source.category,
        source.words,
        int(catalogue.counts.documents[code]),
        int(catalogue.counts.tokens[code]),
        source.validation_documents,
        source.validation_tokens,
        source.validation_bytes,
    )


def expected_fingerprints(settings: MixSettings, statistics: Sequence[Path] = ()) -> tuple[str, str]:
    """Fingerprint of the mix that these settings would build from the store as it is, and that of the mix that an
    earlier version's rules made of them.

    Raises:
        UserError: the store lacks a component, or its components don't belong together.
    """
    prepared = prepare(settings, statistics)
    return fingerprint_of(settings, prepared), fingerprint_of(settings, prepared, rules=1)


def fingerprint_of(settings: MixSettings, prepared: Prepared, rules: int = RULES) -> str:
    """SHA-256 over everything that the mix's content depends on."""
    content: dict[str, Any] = {
        "format": FORMAT,
        **({"rules": rules} if rules > 1 else {}),
        "seed": settings.mix.seed,
        "packing": settings.mix.packing,
        "samples": settings.samples,
        "sequence_length": settings.sequence_length,
        "store": {component.name: component.fingerprint for component in prepared.components},
        "sources": [
            [row.source.component, row.source.language, row.target_tokens, row.cap_tokens]
            for row in prepared.plan.sources
        ],
        "groups": [[group.name, sorted(group.targets.items())] for group in prepared.plan.groups],
        "consumed": [
            [read_mix(Path(entry.mix)).fingerprint, entry.samples] for entry in settings.mix.exclude_consumed
        ],
    }
    if rehydrate := rehydrated(settings.mix):
        content["rehydrate"] = {
            name: sorted([entry.copies, entry.times] for entry in entries)
            for name, entries in rehydrate.items()
        }
    if settings.mix.part_of_store < 1:
        content["part_of_store"] = settings.mix.part_of_store
    if settings.mix.validation_seed != settings.mix.seed:
        content["validation_seed"] = settings.mix.validation_seed
    return hashlib.sha256(orjson.dumps(content)).hexdigest()
