"""A plan for people: a table by component and resource category, and a plot of every source's epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from emma.tools.mix.plan import MixPlan, by_category

__all__ = ["plan_lines", "plan_svg", "plan_summary"]

_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#5b5b5b", "#0f8b8d", "#a23b72")


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
    """The plan for scripts: budget, components, categories, groups, notes and faults."""
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


def plan_svg(plan: MixPlan, width: int = 960, height: int = 480) -> str:
    """A scatter plot of a source's tokens (logarithmic) against its epochs, one colour per component."""
    points = [row for row in plan.sources if row.source.tokens > 0]
    left, right, top, bottom = 64, 16, 32, 48
    low = min(math.log10(row.source.tokens) for row in points)
    high = max(math.log10(row.source.tokens) for row in points)
    low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    tallest = max(max(row.epochs for row in points) * 1.05, 1e-3)

    def x(tokens: float) -> float:
        return left + (math.log10(tokens) - low) / (high - low) * (width - left - right)

    def y(epochs: float) -> float:
        return height - bottom - epochs / tallest * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">tokens that a source holds</text>',
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">epochs</text>',
    ]
    for power in range(low, high + 1):
        at = x(10**power)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - bottom + 16}" text-anchor="middle">1e{power}</text>')
    for step in range(5):
        value = tallest * step / 4
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for number, component in enumerate(plan.shares):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<circle cx="{left + 8 + 150 * number}" cy="16" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 16 + 150 * number}" y="20">{escape(component)}</text>')
        parts += [
            f'<circle cx="{x(row.source.tokens):.1f}" cy="{y(row.epochs):.1f}" r="2.5" fill="{colour}" fill-opacity="0.6">'
            f"<title>{escape(component)} {escape(row.source.language)}: {row.epochs:.3g} epochs, "
            f"{row.target_tokens:,} tokens</title></circle>"
            for row in points
            if row.source.component == component
        ]
    return "\n".join([*parts, "</svg>\n"])
