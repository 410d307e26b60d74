"""What may change between launches of one run: the table, and how a change is told."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from emma.recipes import may_change as module
from emma.recipes.checks import REFUSED_MEGATRON_ARGS
from emma.recipes.may_change import changed_keys, may_change
from tests.ranks import run_ranks
from tests.small_recipe import small_recipe

TABLE = YAML(typ="safe").load(Path(module.__file__).with_suffix(".yaml").read_text())


def options() -> list[str]:
    """In a rank: the names of Megatron's arguments."""
    from megatron.training.arguments import add_megatron_arguments

    parser = argparse.ArgumentParser()
    add_megatron_arguments(parser)
    return [
        option[2:] for action in parser._actions for option in action.option_strings if option[:2] == "--"
    ]


def test_each_name_of_the_table_exists(tmp_path: Path) -> None:
    """In Megatron, and in a recipe; none is one that a recipe must not pass through at all."""
    (known,) = run_ranks(options, 1)
    for pattern in TABLE["megatron_args"]:
        assert any(fnmatchcase(name, pattern) for name in known), pattern
        assert not any(fnmatchcase(name, pattern) for name in REFUSED_MEGATRON_ARGS), pattern
    keys = small_recipe(tmp_path, ["guard={groups: {a: 0.1}, base: b}"]).to_dict()
    for key in TABLE["recipe"]:
        section, _, name = key.partition(".")
        value = keys[section]
        for part in name.split(".") if name else ():
            value = value[part]
    assert all(len(reason) > 3 for table in TABLE.values() for reason in table.values())


# Arguments that decide which numbers are computed, or that read or write what this project guards. A pattern of the
# table that grew too wide would take one of them in.
DECIDE = (
    "adam-beta2 attention-dropout attention-softmax-in-fp32 bf16 calculate-per-token-loss clip-grad "
    "ddp-average-in-collective deterministic-mode disable-bias-linear embedding-init-method-std eod-mask-loss "
    "fp32-residual-connection hidden-dropout init-method-std load-main-params-from-ckpt lr-decay-style lr-warmup-iters "
    "moe-layer-freq mtp-num-layers no-load-rng no-rope-fusion no-save-optim norm-epsilon normalization "
    "num-layers override-ckpt-iteration reset-attention-mask rotary-base seed swiglu transformer-impl "
    "use-distributed-optimizer use-precision-aware-optimizer weight-decay weight-decay-incr-style"
).split()


def test_what_decides_the_weights_is_not_in_the_table() -> None:
    (known,) = run_ranks(options, 1)
    assert set(DECIDE) <= set(known)
    assert [name for name in DECIDE if may_change(f"megatron_args.{name}")] == []
    assert may_change("optimizer.beta2") is None and may_change("batch.global") is None
    assert may_change("batch.micro") and may_change("logging.interval") and may_change("logging")
    assert may_change("loggings") is None and may_change("checkpointer") is None


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"a": {}}, {"a": {"b": True}}, {"a.b": ("not set", "True")}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a.c": ("2", "not set")}),
        ({"a": {"b": None}}, {"a": {}}, {"a.b": ("None", "not set")}),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, {"a.b": ("[1]", "[2]")}),
        ({"a": 1}, {"a": 1}, {}),
    ],
)
def test_a_change_names_the_old_and_the_new_value(
    before: dict[str, object], after: dict[str, object], changes: dict[str, tuple[str, str]]
) -> None:
    assert changed_keys(before, after) == changes
