"""Text that reaches scripts is one line: newlines and control characters are refused with key and fix."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from emma.base.errors import RecipeError
from emma.recipes.limits import check_limits
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from tests.small_recipe import write_small_run


def texts(kind: Any, key: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every key of a schema that takes any text; `mix` stands for an entry, `NAME` for a name of one's own."""
    origin = typing.get_origin(kind)
    if kind is str:
        yield key
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from texts(field.annotation, (*key, field.alias or name))
    elif origin in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(kind):
            yield from texts(part, key)
    elif origin is list:
        yield from texts(typing.get_args(kind)[0], (*key, "0"))
    elif origin is dict:
        names, values = typing.get_args(kind)
        if names is str:
            yield (*key, "NAME")
        yield from texts(values, (*key, "mix"))


def nested(key: tuple[str, ...], text: str) -> Any:
    """Plain values with `text` at a key."""
    if not key:
        return text
    if key[0] == "0":
        return [nested(key[1:], text)]
    return {text: "1"} if key[0] == "NAME" else {key[0]: nested(key[1:], text)}


KEYS = sorted(set(texts(Recipe, ())))


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_every_key_that_reaches_a_script_is_one_line(key: tuple[str, ...]) -> None:
    for text in ("a\nrm -rf b", "a\rb", "a\0b", "a\x1b[2J", "a\u2028b"):
        try:
            check_limits(nested(key, text), lambda key: "here")
        except RecipeError as error:
            assert error.fix and error.key.split(".")[0] == key[0] and error.origin == "here"
        else:
            assert key[0] not in (
                "name",
                "cluster",
                "environment",
                "paths",
                "start",
                "megatron_args",
                "logging",
            )
            assert "\n" in text, "only line breaks are allowed anywhere"
    check_limits(nested(key, "plain_text"), lambda key: None)


def test_the_walk_finds_the_keys() -> None:
    assert len(KEYS) > 70 and ("cluster", "slurm", "stages", "mix", "arguments", "0") in KEYS
    assert ("environment", "NAME") in KEYS and ("cluster", "environment", "mix") in KEYS


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            r'cluster.slurm.partition="gpu\nrm"',
            r"command line: cluster\.slurm\.partition: .* line break .*Fix: ",
        ),
        (r'cluster.slurm.account="a\e[2J"', r"cluster\.slurm\.account"),
        (r'cluster.slurm.setup=["module load a\nb"]', r"cluster\.slurm\.setup\.0"),
        (r'environment={"A\nB": "1"}', "environment: .* is not a name"),
        ("cluster.environment={2A: '1'}", r"cluster\.environment: '2A' is not a name"),
        (
            "cluster.slurm.gpu_option='--gres=gpu:4 --requeue'",
            r"cluster\.slurm\.gpu_option: .* is not one option",
        ),
        ("cluster.slurm.sbatch=['--mail-user me']", r"cluster\.slurm\.sbatch: .* is not one option"),
        ("cluster.slurm.sbatch=[rm]", "is not one option"),
        ("cluster.slurm.mounts=['/a,/b']", "is not a mount"),
    ],
)
def test_the_message_names_key_and_fix(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_small_run(tmp_path), [override])
