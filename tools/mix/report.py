"""A plan in readable form: a table by component and resource category, and a plot of every source's epochs."""

from __future__ import annotations

from collections.abc import Iterator

from emma.tools.charts.svg import Mark, log_scatter
from emma.tools.mix.plan import MixPlan, by_category

__all__ = ["plan_lines", "plan_svg", "plan_summary"]


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
