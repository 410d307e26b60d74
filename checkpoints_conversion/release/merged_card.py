"""The card of a merge, from its own record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emma.checkpoints_conversion.config import model_from_hf
from emma.checkpoints_conversion.release.licenses import hub_identifier, licenses_of
from emma.tools.hub.cards import render_markdown

__all__ = ["OF_A_RECIPE", "RECORD", "merged_card"]

RECORD = "merge.json"
"""File of a release that says what was merged, and how."""
OF_A_RECIPE = (
    "method",
    "average",
    "ema_decay",
    "normalize",
    "scale",
    "density",
    "rescale",
    "seed",
    "t",
    "weights",
)
_SHOWN = {"normalize": None, "scale": 1.0, "rescale": "density", "seed": 1234, "weights": "auto"}


def merged_card(folder: Path, title: str, record: Mapping[str, Any], parity: Mapping[str, Any]) -> str:
    """README.md of a merge: metadata between lines of dashes, then the text.

    Args:
        folder: holds `config.json`.
        title: name of the model.
        record: content of `merge.json`.
        parity: content of `parity.json`.
    """
    from huggingface_hub import ModelCardData

    from emma.tools.arithmetic.parameters import total_parameters
    from emma.tools.charts.scales import number

    licenses = licenses_of(record["licenses"])
    identifier = hub_identifier(licenses)
    parents = record["parents"]
    bases = list(
        dict.fromkeys(p["huggingface"] or p["origin"] for p in parents if p["huggingface"] or p["origin"])
    )
    several = identifier == "other" and len(licenses) > 1
    metadata = ModelCardData(
        base_model=bases or None,
        base_model_relation="merge" if bases else None,
        library_name="transformers",
        license=identifier,
        license_name="-and-".join(one.id for one in licenses) if several else None,
        license_link="README.md" if several else licenses[0].link,
        model_name=title,
        pipeline_tag="text-generation",
        tags=["merge", "multilingual"],
    )
    return render_markdown(
        Path(__file__).with_name("merged_card.md.j2"),
        metadata,
        {"number": number},
        title=title,
        m=record,
        parents=parents,
        licenses=licenses,
        parameters=total_parameters(model_from_hf(folder)),
        settings=[
            (key, record["recipe"][key])
            for key in OF_A_RECIPE
            if record["recipe"][key] not in (None, _SHOWN.get(key))
        ],
        parity=parity,
    )
