"""The page of a single run: `RUN/report/index.html`, self-contained."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from emma.base.manifest import now
from emma.tools.charts.figures import markup
from emma.tools.charts.scales import number
from emma.tools.languages.codes import language
from emma.tools.languages.labels import language_name
from emma.tools.report.benchmarks import benchmark_views, checkpoint_figures
from emma.tools.report.forgetting import forgetting_rows
from emma.tools.report.gains import gain_sections, headline, other_rows, progress_chart, score_rows
from emma.tools.report.guard import guard_view
from emma.tools.report.mix import mix_view
from emma.tools.report.provenance import (
    environment_facts,
    key_figures,
    launches,
    recipe_facts,
    recipe_yaml,
)
from emma.tools.report.records import RunRecord
from emma.tools.report.training import training_charts, validation_charts
from emma.tools.report.verdicts import Judged, judge_page
from emma.tools.runs.goodput import goodput
from emma.tools.runs.run_folder import RunFolder

__all__ = ["Figure", "render", "run_page"]

_HERE = Path(__file__).parent

Figure = tuple[str, str, str]
"""A figure for the top of a page: value, label, and tone (`good`, `bad`, or empty)."""


def render(
    template: str,
    *,
    folder: Path = _HERE,
    scripts: Sequence[str] = ("sort.js", "filter.js", "scroll.js"),
    styles: Sequence[str] = ("style.css",),
    **context: Any,
) -> str:
    """Renders a template with `context`, style sheets, and scripts.

    Args:
        template: name of the template.
        folder: where it is; what it includes may be in this folder, too.
        scripts, styles: files beside this module, joined in this order.
        context: its variables; a missing one is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["markup"] = markup
    environment.filters["name"] = _name
    environment.filters["category"] = lambda code: language(code).category
    environment.filters["script"] = lambda code: language(code).script or ""
    return environment.get_template(template).render(
        style=Markup("".join((_HERE / name).read_text(encoding="utf-8") for name in styles)),
        script=Markup("".join((_HERE / name).read_text(encoding="utf-8") for name in scripts)),
        written=now()[:16].replace("T", " ") + " UTC",
        version=metadata.version("emma-recipes"),
        **context,
    )


def _name(code: str) -> str:
    """English name of a language, or of both of a pair; empty if it has none."""
    names = [language_name(part) for part in code.split("-")]
    return "" if names == code.split("-") else " – ".join(names)


def run_page(run: RunRecord, judged: Judged | None = None, atlas: str | None = None) -> str:
    """A run's page as HTML.

    Args:
        run: the run.
        judged: `judge_page([run])`, if already computed.
        atlas: relative address of the atlas, if there is one.
    """
    judged = judged or judge_page([run])
    run = judged.runs[0]
    views = benchmark_views(judged)
    return render(
        "run.html.j2",
        run=run,
        atlas=atlas,
        runs=[run],
        views=views,
        verdicts=judged.tally,
        field=[],
        forgetting=forgetting_rows([run], views),
        checkpoints=checkpoint_figures([run], views),
        figures=_figures(run),
        gains=run.gains,
        sections=gain_sections(run.gains, run) if run.gains else [],
        others=other_rows(run.gains) if run.gains else [],
        progress=progress_chart(run),
        scores=score_rows(run),
        training=training_charts(run),
        validation=validation_charts(run),
        guard=guard_view(run),
        mix=mix_view(run),
        parity=run.parity,
        parity_figures=_parity_figures(run.parity),
        recipe_facts=recipe_facts(run),
        recipe_yaml=recipe_yaml(run),
        environment_facts=environment_facts(run),
        launches=launches(run),
        goodput=goodput(run.recipe, RunFolder(run.folder)),
    )


def _figures(run: RunRecord) -> list[Figure]:
    figures: list[Figure] = []
    if run.gains:
        figures += _gain_figures(run.gains)
    figures += [(value, label, "") for value, label in key_figures(run)]
    if run.parity:
        passed = bool(run.parity["passed"])
        figures.append(
            ("passed" if passed else "failed", "parity of the export", "good" if passed else "bad")
        )
    return figures


def _gain_figures(gains: dict[str, Any]) -> list[Figure]:
    rows = headline(gains)
    figures: list[Figure] = []
    if rows["all"]:
        group = rows["all"]
        figures.append((_percent(group), "bits per byte, mean over all languages but English", _tone(group)))
        figures.append((f"{group['lower']} / {group['languages']}", "languages with fewer bits per byte", ""))
    if rows["english"]:
        figures.append((_percent(rows["english"]), "bits per byte on English", _tone(rows["english"])))
    return figures


def _percent(group: dict[str, Any]) -> str:
    return f"{100 * group['difference'] / group['base']:+.1f}\u202f%".replace("-", "−")


def _tone(group: dict[str, Any]) -> str:
    return "good" if group["difference"] < 0 else "bad"


def _parity_figures(parity: dict[str, Any] | None) -> list[Figure]:
    if not parity:
        return []
    figures: list[Figure] = []
    if logits := parity.get("logits"):
        figures += [
            (
                number(logits["max_abs_delta"]),
                f"largest logit |Δ|, {number(logits['tolerance'])} allowed",
                "",
            ),
            (number(logits["mean_kl"]), "mean KL, nats", ""),
            (
                f"{100 * logits['top1_agreement']:.2f}\u202f%",
                f"same top token, of {logits['tokens']} tokens",
                "",
            ),
        ]
    if tensors := parity.get("tensors"):
        figures.append((f"{tensors['equal']} / {tensors['compared']}", "parameters bit-identical", ""))
    return figures
