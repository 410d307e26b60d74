"""A plan in readable form: a table by component and resource category, and a plot of every source's epochs; what a
verification saw, as a page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from emma.tools.charts.svg import Mark, Panel, log_scatter, panels
from emma.tools.mix.layout import MixInfo
from emma.tools.mix.order import FALSE_ALARM, Quantity
from emma.tools.mix.plan import MixPlan, by_category
from emma.tools.mix.verify import Verified

__all__ = ["plan_lines", "plan_summary", "plan_svg", "verified_page"]


def plan_lines(plan: MixPlan) -> Iterator[str]:
    """The plan as a text table: one line per component and category."""
    head = f"{'component':<14}{'category':<14}{'sources':>8}{'tokens held':>20}{'tokens in mix':>20}{'share %':>9}{'epochs':>9}{'highest':>9}{'capped':>8}"
    yield head
    yield "-" * len(head)
    for (component, category), row in _sorted(plan):
        epochs = row["tokens"] / row["store_tokens"] if row["store_tokens"] else 0.0
        yield (
            f"{component:<14}{category or '-':<14}{row['sources']:>8,}{row['store_tokens']:>20,}{row['tokens']:>20,}"
            f"{100 * row['tokens'] / plan.tokens:>9.3f}{epochs:>9.3f}{row['highest_epochs']:>9.3f}{row['capped']:>8,}"
        )
    yield "-" * len(head)
    for component, tokens in plan.component_tokens().items():
        yield (
            f"{component:<14}{'':<14}{'':>8}{'':>20}{tokens:>20,}{100 * tokens / plan.tokens:>9.3f}  "
            f"(share asked for: {100 * plan.shares[component]:.3f} %)"
        )
    yield f"{'total':<14}{'':<14}{len(plan.sources):>8,}{'':>20}{plan.planned_tokens:>20,}  of a budget of {plan.tokens:,}"
    for group in plan.groups:
        yield f"validation {group.name}: {group.tokens:,} tokens of {len(group.targets):,} sources"
    for note in plan.notes:
        yield f"note: {note}"


def _sorted(plan: MixPlan) -> list[tuple[tuple[str, str | None], dict[str, float]]]:
    """Components in the recipe's order, categories from the largest sources to the smallest."""
    smallest: dict[tuple[str, str | None], int] = {}
    for planned in plan.sources:
        key = (planned.source.component, planned.source.category)
        smallest[key] = min(smallest.get(key, planned.source.words), planned.source.words)
    order = list(plan.shares)
    return sorted(by_category(plan).items(), key=lambda item: (order.index(item[0][0]), -smallest[item[0]]))


def plan_summary(plan: MixPlan) -> dict[str, object]:
    """The plan as JSON-ready values: budget, components, categories, groups, notes and faults."""
    return {
        "tokens": plan.tokens,
        "planned_tokens": plan.planned_tokens,
        "components": {
            name: {
                "tokens": tokens,
                "share_percent": 100 * tokens / plan.tokens,
                "share_asked_percent": 100 * plan.shares[name],
            }
            for name, tokens in plan.component_tokens().items()
        },
        "categories": [
            {
                "component": component,
                "category": category,
                **row,
                "epochs": row["tokens"] / row["store_tokens"] if row["store_tokens"] else 0.0,
            }
            for (component, category), row in _sorted(plan)
        ],
        "validation": {group.name: group.tokens for group in plan.groups},
        "notes": plan.notes,
        "faults": plan.faults,
    }


def plan_svg(plan: MixPlan) -> str:
    """A scatter plot of a source's tokens (logarithmic) against its epochs, one colour per component."""
    marks: dict[str, list[Mark]] = {component: [] for component in plan.shares}
    for row in plan.sources:
        source = row.source
        if source.tokens > 0:
            title = (
                f"{source.component} {source.language}: {row.epochs:.3g} epochs, {row.target_tokens:,} tokens"
            )
            marks[source.component].append(Mark(source.tokens, row.epochs, title))
    return log_scatter(marks, x_label="tokens that a source holds", y_label="epochs")


def verified_page(mix: MixInfo, found: Verified) -> str:
    """A standalone HTML page: faults, how the run looks along its way, and what a uniform order allows."""
    state = f"{len(found.faults)} faults" if found.faults else "no faults"
    parts = [
        f"<h1>{escape(mix.name)}</h1>",
        f"<p>{mix.samples:,} samples of {mix.sequence_length:,} tokens, packing {mix.packing}, fingerprint "
        f"{mix.fingerprint[:12]}: {state}.</p>",
        *(f"<p class='fault'>{escape(fault)}</p>" for fault in found.faults),
        *(f"<p>{escape(note)}</p>" for note in found.notes),
    ]
    if found.furthest is not None:
        parts.append(f"<p>Furthest from its plan: {escape(found.furthest)}.</p>")
    if found.order is not None:
        order = found.order
        drawn = [each for each in order.quantities if each.parts]
        parts += [
            "<h2>Along the run</h2>",
            f"<p>{escape(order.summary())}.</p>",
            "<p>Each plot: a quantity in equal parts of the run, from its beginning to its end; the line is its mean over all "
            f"of it, the band what a uniform order leaves with all but {FALSE_ALARM:g} probability over all tests.</p>",
            panels([Panel(each.name, each.parts, each.mean, each.low, each.high) for each in drawn])
            if drawn
            else "",
            "<table><tr><th>quantity</th><th>mean</th><th>trend, standard deviations</th>"
            "<th>steady change that would be seen</th></tr>",
            *map(_quantity_row, order.quantities),
            "</table>",
        ]
    return _PAGE.format(title=escape(mix.name), body="\n".join(parts))


def _quantity_row(each: Quantity) -> str:
    seen = "none: too few" if each.silent else f"{100 * each.least_trend:.1f} %"
    return (
        f"<tr{' class=fault' if each.fault else ''}><td>{escape(each.name)}</td><td>{each.mean:.4g}</td>"
        f"<td>{each.z:+.2f}</td><td>{seen}</td></tr>"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font-family:sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}}
td,th{{text-align:right;padding:.1rem .8rem}}td:first-child,th:first-child{{text-align:left}}.fault{{color:#b00020}}</style>
</head><body>
{body}
</body></html>
"""
