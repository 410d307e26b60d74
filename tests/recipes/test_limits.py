"""Values that no recipe and no option has."""

from __future__ import annotations

import click
import pytest

from emma.base.errors import UserError
from emma.commands.amount import Amount
from emma.recipes.load import load_recipe


@pytest.mark.parametrize(
    "override",
    [
        'cluster.environment={A: "1\\nrm -r x"}',
        'cluster.environment={A: "1\\rrm"}',
        'paths.runs="runs\\u0007"',
        'paths.runs="a\\u2028b"',
        "schedule.learning_rate=.nan",
        "schedule.learning_rate=1e300",
        "model.layers=1000000000000000000",
        'model.tokenizer.end_of_text=""',
    ],
)
def test_nonsense_is_refused(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("demo", [override])
    assert override.partition("=")[0].split(".")[0] in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "0", "-1", "1e13"])
def test_an_amount_is_finite_and_within_bounds(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Amount(above=0).convert(text, None, None)
    assert Amount(above=0).convert("2.5", None, None) == 2.5
