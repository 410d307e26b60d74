"""The documentation of keys."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from emma.base.errors import UserError
from emma.recipes.explain import KeyDocumentation, explain
from tests.command_line import emma


def _all(key: str = "") -> Iterator[KeyDocumentation]:
    """Every key of the schema, depth first."""
    for entry in explain(key):
        if entry.key == key:
            continue
        yield entry
        if "section" in entry.type:
            yield from _all(entry.key)


def test_every_key_is_documented() -> None:
    entries = list(_all())
    keys = {entry.key for entry in entries}
    assert {
        "parallelism.tensor",
        "batch.global",
        "data.mix.components.<name>.share",
        "cluster.slurm.partition",
        "start.mode",
    } <= keys
    assert [entry.key for entry in entries if len(entry.description) < 5] == []


def test_a_key_says_type_default_and_meaning() -> None:
    (entry,) = explain("schedule.decay")
    assert entry.type == "one of cosine, linear, constant, wsd, cosine_inf, range_test"
    assert entry.default == "cosine"
    assert "decay" in entry.description
    (entry,) = explain("data.mix.components.code.share")
    assert (entry.key, entry.type, entry.default) == (
        "data.mix.components.<name>.share",
        "number",
        "required",
    )
    (entry,) = explain("checkpoint.keep")
    assert (entry.type, entry.default) == ("whole number or none", "none")


def test_a_wrong_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"`schedule` has no key `step`; did you mean `steps`"):
        explain("schedule.step")
    with pytest.raises(UserError, match="`seed` has no keys below it"):
        explain("seed.a")


def test_command() -> None:
    answer = emma("recipe", "explain", "optimizer", "--json")
    assert answer.code == 0
    entries = json.loads(answer.out)
    assert entries[0]["key"] == "optimizer"
    assert {entry["key"] for entry in entries} >= {"optimizer.beta1", "optimizer.weight_decay"}
    text = emma("recipe", "explain", "optimizer.beta2").out
    assert text.startswith("optimizer.beta2: number (default: 0.95)")
    assert emma("recipe", "explain", "optimiser").code == 2
