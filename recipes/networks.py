"""What each kind of network needs in the environment of the ranks (`networks.yaml`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from emma.recipes.reading import read_yaml
from emma.recipes.schema.section import Section

__all__ = ["Network", "network", "network_names"]


class Network(Section):
    """A kind of network."""

    description: str
    """What it is, in words."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every rank."""


@cache
def _table() -> dict[str, Network]:
    rows = read_yaml(Path(__file__).with_name("networks.yaml")).values
    return {name: Network.model_validate(row) for name, row in rows.items()}


def network_names() -> list[str]:
    """Known kinds, in the order of the table."""
    return list(_table())


def network(name: str | None) -> Network:
    """The kind of that name; one without settings for None."""
    return _table()[name] if name is not None else Network(description="not named")
