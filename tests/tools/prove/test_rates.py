"""The learning rate by hand."""

from __future__ import annotations

from typing import Any

import pytest

from emma.recipes.schema.training import Schedule
from emma.tools.prove.rates import learning_rate

COMMON: dict[str, Any] = {"steps": 10, "learning_rate": 8.0, "min_learning_rate": 2.0, "warmup_steps": 2}


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({"decay": "linear"}, {0: 0, 1: 4, 2: 8, 3: 7.25, 6: 5, 9: 2.75, 10: 2}),
        ({"decay": "cosine"}, {0: 0, 1: 4, 2: 8, 4: 5 + 3 / 2**0.5, 6: 5, 8: 5 - 3 / 2**0.5, 10: 2}),
        ({"decay": "constant"}, {0: 0, 1: 4, 2: 8, 9: 8}),
        ({"decay": "wsd", "wsd_decay_steps": 3}, {0: 0, 1: 4, 2: 8, 7: 8, 8: 6, 9: 4, 10: 2}),
        ({"decay": "linear", "warmup_steps": 0}, {0: 8, 5: 5, 10: 2}),
        ({"decay": "linear", "warmup_from": 4.0}, {0: 4, 1: 6, 2: 8, 6: 5, 10: 2}),
        ({"decay": "linear", "steps": 6, "offset": 4}, {0: 6.5, 2: 5, 5: 2.75, 6: 2}),
        (
            {"decay": "wsd", "wsd_decay_steps": 4, "wsd_decay_style": "exponential"},
            {6: 8, 8: 2 + 6 * (2**0.5 - 1), 10: 2},
        ),
        ({"decay": "wsd", "wsd_decay_steps": 4, "wsd_decay_style": "minus_sqrt"}, {6: 8, 7: 5, 10: 2}),
        ({"decay": "wsd", "wsd_decay_steps": 4, "wsd_decay_style": "cosine"}, {6: 8, 8: 5, 10: 2}),
        (
            {"decay": "cosine_inf", "constant_learning_rate": 4.0, "cooldown_steps": 2, "anneal_steps": 2},
            {0: 0, 2: 8, 3: 6, 4: 4, 7: 4, 8: 4, 9: 8**0.5, 10: 2},
        ),
        ({"decay": "range_test", "steps": 3, "warmup_steps": 0}, {0: 2, 1: 4, 2: 8}),
    ],
)
def test_the_rate_after_so_many_updates(given: dict[str, Any], rates: dict[int, float]) -> None:
    schedule = Schedule(**{**COMMON, **given})
    assert {updates: learning_rate(schedule, updates) for updates in rates} == pytest.approx(rates)
