"""The dataset card: text, Hub metadata with one configuration per language, and offline validation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.tools.corpus.release.facts import CorpusFacts, natural_languages
from emma.tools.corpus.release.shards import DATA_NAME, SPLITS
from emma.tools.hub.cards import hub_languages, render_markdown
from emma.tools.hub.licenses import OTHER, hub_licenses

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

__all__ = ["SIZES", "card_metadata", "configuration_name", "render_card"]

SIZES = tuple((10**power, name) for power, name in enumerate(
    ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
     "100B<n<1T"), start=3))  # fmt: skip
"""Upper bound of each of the Hub's size categories, in documents."""

_LONGEST_TABLE = 200


def configuration_name(kind: str, language: str | None = None) -> str:
    """Name of the configuration of a kind, or of one of its languages or pairs."""
    return kind if language is None else f"{kind}-{language}"


def _configuration(facts: CorpusFacts, kind: str, language: str | None = None) -> dict[str, Any]:
    there = {split for k, code, split in facts.files if k == kind and language in (None, code)}
    return {
        "config_name": configuration_name(kind, language),
        "data_files": [
            {"split": split, "path": f"{DATA_NAME}/{kind}/{language or '*'}/{split}-*.parquet"}
            for split in SPLITS
            if split in there
        ],
    }


def card_metadata(facts: CorpusFacts) -> DatasetCardData:
    """The card's metadata, checked by `huggingface_hub`."""
    from huggingface_hub import DatasetCardData

    configurations = []
    for kind in facts.kinds:
        configurations.append(_configuration(facts, kind))
        configurations += [_configuration(facts, kind, row["language"]) for row in facts.of_kind(kind)]
    configurations[0]["default"] = True
    languages = hub_languages(natural_languages(facts))
    documents = facts.total("documents")
    license_ = hub_licenses(row["license"] for row in facts.licenses)
    others = OTHER in ([license_] if isinstance(license_, str) else license_)
    parallel = "parallel" in facts.kinds
    return DatasetCardData(
        language=languages or None,
        license=license_,
        license_name="by-source" if others else None,
        license_link="licenses.csv" if others else None,
        multilinguality=[
            *(["multilingual"] if len(languages) > 1 else ["monolingual"]),
            *(["translation"] if parallel else []),
        ],
        pretty_name=facts.title,
        size_categories=[next((name for end, name in SIZES if documents < end), "n>1T")],
        task_categories=["text-generation", *(["translation"] if parallel else [])],
        tags=["pretraining"],
        configs=configurations,
    )


def render_card(facts: CorpusFacts) -> str:
    """README.md: metadata between lines of dashes, then the text."""
    from emma.base.manifest import now
    from emma.tools.charts.scales import number

    return render_markdown(
        Path(__file__).with_name("dataset_card.md.j2"),
        card_metadata(facts),
        {"number": number},
        f=facts,
        manifest=facts.source.manifest,
        longest=_LONGEST_TABLE,
        example=configuration_name(facts.rows[0]["kind"], facts.rows[0]["language"]),
        year=now()[:4],
    )
