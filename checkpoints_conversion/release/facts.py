"""The content of a model card, from the run's own records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.checkpoints_conversion.release.evaluation import step_files
from emma.checkpoints_conversion.release.licenses import License, fitting_name, license_of

if TYPE_CHECKING:
    from emma.tools.report.mix import MixView
    from emma.tools.report.records import RunRecord

__all__ = ["CardFacts", "Compute", "card_facts"]


@dataclass(frozen=True)
class Compute:
    """What training up to the released step took.

    `hardware` is the number and kind of devices; `device_hours` is measured over the logged steps.
    `megawatt_hours` and `co2_tonnes` follow from it, with the boards at maximum power and the stated
    assumptions (None if the table of devices has no power for this kind).
    """

    tokens: int
    device_hours: float | None
    hardware: str
    flop: float
    megawatt_hours: float | None
    co2_tonnes: float | None
    watts: float | None
    pue: float
    grid_g_per_kwh: float


@dataclass(frozen=True)
class CardFacts:
    """Everything the card's template prints."""

    title: str
    record: RunRecord
    step: int
    parameters: int
    license: License
    mix: MixView | None
    languages: list[tuple[str, str, str]]
    """Code, English name, and category of every natural language in the mix."""
    pairs: list[str]
    sources: list[tuple[str, str, str, str]]
    """Name, kind, licence, and address of every text source."""
    compute: Compute
    gains: dict[str, Any] | None
    """Content of gains.json, if it covers this step."""
    parity: dict[str, Any]
    samples: int
    """Number of files with this step's outputs, document by document."""


def card_facts(record: RunRecord, step: int, parity: dict[str, Any], name: str | None = None) -> CardFacts:
    """Collects the facts.

    Args:
        record: the run.
        step: exported step.
        parity: the export's parity report.
        name: name of the model; by default, the run's name, with the prefix that the licence requires.

    Raises:
        UserError: the licence does not allow the given name.
    """
    from emma.tools.arithmetic.parameters import total_parameters
    from emma.tools.report.mix import mix_view

    recipe = record.recipe
    licence = license_of(recipe.model.license)
    if name is not None and fitting_name(name, licence) != name:
        raise UserError(
            f"--name {name}: the {licence.name} requires a name that begins with “{licence.name_prefix}”"
        )
    about_step = record.gains is not None and record.gains["trained"] == f"{recipe.name}/step-{step}"
    return CardFacts(
        name or fitting_name(recipe.name, licence),
        record,
        step,
        total_parameters(recipe.model),
        licence,
        mix_view(record),
        _languages(record),
        sorted({p.language for p in record.mix if p.tokens and "-" in p.language and "_" in p.language}),
        _sources(record),
        _compute(record, step),
        record.gains if about_step else None,
        parity,
        len(step_files(record.folder / "evaluation", step)),
    )


def _languages(record: RunRecord) -> list[tuple[str, str, str]]:
    from emma.tools.languages.labels import language_name

    found: dict[str, str] = {}
    for part in record.mix:
        if part.tokens and "_" in part.language and "-" not in part.language:
            found[part.language] = found.get(part.language) or part.category or ""
    return [(code, language_name(code), category) for code, category in sorted(found.items())]


def _sources(record: RunRecord) -> list[tuple[str, str, str, str]]:
    corpus = record.recipe.data.corpus
    if corpus is None:
        return []
    return [
        (name, source.kind, source.license + (", by document" if source.license_column else ""), source.url)
        for name, source in corpus.sources.items()
    ]


def _compute(record: RunRecord, step: int) -> Compute:
    from emma.recipes.devices import device
    from emma.tools.arithmetic.cost import Assumptions
    from emma.tools.arithmetic.flops import flops_per_token
    from emma.tools.report.provenance import device_hours

    recipe, assumptions = record.recipe, Assumptions()
    kind = device(recipe.cluster.device)
    hours = device_hours(record, step)
    tokens = step * recipe.tokens_per_step
    watts = None
    if kind.power_w is not None and kind.host_power_w is not None:
        watts = kind.power_w + kind.host_power_w
    energy = hours * watts * assumptions.pue / 1e6 if hours and watts else None
    return Compute(
        tokens,
        hours,
        f"{recipe.cluster.world_size} {'' if kind.name == 'cpu' else '× '}{kind.description}",
        tokens * flops_per_token(recipe.model, recipe.batch.sequence_length),
        energy,
        energy * assumptions.grid_g_per_kwh / 1000 if energy else None,
        watts,
        assumptions.pue,
        assumptions.grid_g_per_kwh,
    )
