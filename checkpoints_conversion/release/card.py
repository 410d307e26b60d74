"""The model card: Hub metadata and text, and its validation without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.checkpoints_conversion.release.facts import CardFacts
from emma.tools.hub.cards import hub_languages, language_faults, read_card, render_markdown
from emma.tools.hub.licenses import known_licenses

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

__all__ = ["card_faults", "card_metadata", "render_card"]

_METRIC = "bits_per_byte"


def card_metadata(facts: CardFacts) -> ModelCardData:
    """The card's metadata, checked by `huggingface_hub`."""
    from huggingface_hub import ModelCardData

    base = facts.record.recipe.model.huggingface
    return ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        eval_results=_eval_results(facts),
        language=hub_languages([code for code, _, _ in facts.languages]) or None,
        library_name="transformers",
        license=facts.license.id,
        license_link=facts.license.link,
        model_name=facts.title,
        pipeline_tag="text-generation",
        tags=["multilingual", "continual-pretraining", "megatron"],
    )


def _eval_results(facts: CardFacts) -> list[EvalResult] | None:
    from huggingface_hub import EvalResult

    if facts.gains is None:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Language modelling",
            dataset_type=f"heldout-{row['kind']}",
            dataset_name=f"Held-out text, {row['kind']}, {row['group']}, languages: {row['languages']}",
            dataset_split="validation",
            dataset_config=row["group"],
            metric_type=_METRIC,
            metric_name="Bits per byte (lower is better)",
            metric_value=round(row["trained"], 6),
        )
        for row in facts.gains["groups"]
    ]


def render_card(facts: CardFacts, year: str) -> str:
    """README.md: metadata between lines of dashes, then the text.

    Args:
        facts: what it says.
        year: of the citation.
    """
    from emma.checkpoints_conversion.main_weights import release_sentence
    from emma.tools.charts.scales import duration, number
    from emma.tools.report.guard import guard_sentences
    from emma.tools.report.provenance import recipe_facts

    return render_markdown(
        Path(__file__).with_name("card.md.j2"),
        card_metadata(facts),
        {"number": number, "duration": duration, "power_of_ten": _power_of_ten},
        f=facts,
        recipe=facts.record.recipe,
        recipe_facts=recipe_facts(facts.record),
        grown=facts.record.growth,
        environment=facts.record.environment,
        guard=guard_sentences(facts.record),
        year=year,
        key=re.sub(r"[^a-z0-9]+", "-", facts.title.lower()).strip("-"),
        extremes=_extremes(facts),
        weights=release_sentence(facts.parity["released"]) if facts.parity.get("released") else None,
    )


def _power_of_ten(value: float) -> str:
    """`2.3 × 10¹⁰`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10" + str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def _extremes(facts: CardFacts) -> dict[str, Any]:
    """Languages of monolingual text with the largest gains, and those with clear losses."""
    rows = [row for row in facts.gains["languages"] if row["kind"] == "monolingual"] if facts.gains else []
    rows.sort(key=lambda row: row["difference"])
    return {"best": rows[:10], "lost": [row for row in rows[::-1] if row["verdict"] == "loss"]}


def card_faults(folder: Path) -> list[str]:
    """What the Hub would refuse in a card, or what the card lacks.

    Raises:
        UserError: the card is missing, or its metadata is not readable.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    data, text = read_card(folder)
    faults = [
        f"README.md: metadata `{key}` is missing"
        for key in ("license", "library_name", "pipeline_tag")
        if not data.get(key)
    ]
    if data.get("license") and data["license"] not in known_licenses():
        faults.append(f"README.md: metadata `license` is {data['license']!r}, which the Hub does not know")
    faults += language_faults(data)
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        try:
            validate_repo_id(base)
        except HFValidationError:
            faults.append(
                f"README.md: metadata `base_model` is {base!r}, which is not the name of a model on the Hub"
            )
    for entry in data.get("model-index") or []:
        for result in entry["results"]:
            for metric in result["metrics"]:
                if not isinstance(metric.get("value"), int | float):
                    faults.append(f"README.md: a result of {result['dataset']['name']} is not a number")
    if not re.search(r"^# .+", text, re.MULTILINE):
        faults.append("README.md: has no heading with the model's name")
    return faults
