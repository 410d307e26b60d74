"""An architecture: what transformers and Megatron call its parameters, and which of the known switches its network has.

`recipes/architectures/NAME.yaml` holds one. `base: OTHER` starts from another; a row that is null is deleted.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from emma.base.errors import UserError
from emma.recipes.reading import Composed, read_yaml
from emma.recipes.schema.section import Section

__all__ = [
    "Architecture",
    "Kind",
    "Network",
    "Parameter",
    "Scaling",
    "architecture",
    "architecture_names",
    "read_architecture",
]

FOLDER = Path(__file__).parents[1] / "architectures"

Kind = Literal["full", "sliding", "nope"]
"""Of a layer: each token sees all before it, or a window of them, or all and without a rotary embedding."""

Scaling = Literal["llama3", "linear", "yarn"]

Size = Literal["hidden", "queries", "keys", "channels", "ffn", "vocab"] | int


class Parameter(Section):
    """A parameter: where Megatron keeps it. Nothing but its place changes; what cannot be carried bit for bit is not."""

    key: str
    """Megatron's name in checkpoints; of a layer's parameter, what follows `decoder.layers.`."""
    sizes: list[Size]
    """Sizes in transformers: `hidden`, `queries` (heads × channels), `keys` (groups × channels), `channels` (of a head),
    `ffn`, `vocab`, or a number; none for a single value."""
    part: Literal["query", "key", "value", "gate", "up"] | None = None
    """Which part of a tensor that Megatron fuses: query, key and value by query group; gate, then up."""
    cut: Literal["rows", "columns"] | None = None
    """How tensor parallelism divides it; default: each rank holds it whole."""
    unless: Literal["tied"] | None = None
    """Absent where input and output embedding are one matrix."""


class Network(Section):
    """The switches of a network. The vocabulary is closed: another value is code (`tools/training/network.py`)."""

    qkv_bias: bool = False
    """Whether the query, key and value projections add a bias."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMSNorm of queries and keys: over each head's channels, or over the channels of all heads together."""
    norms: Literal["before", "after", "both"] = "before"
    """Where a block's norms stand: before attention and feed-forward, after them (before the sum), or both."""
    zero_centred: bool = False
    """Whether norms multiply by 1 + weight."""
    activation: Literal["swiglu", "gelu_tanh", "xielu"] = "swiglu"
    """Of the feed-forward layer: SiLU or tanh-GELU times a gate, or xIELU without one."""
    embedding_scale: Literal["none", "sqrt_hidden"] = "none"
    """What embeddings are multiplied by: √hidden_size, rounded to the weights' type."""
    kinds: list[Kind] = Field(default_factory=lambda: list[Kind](["full"]))
    """Kinds of layers that there can be."""
    rope: Literal["shared", "by_kind"] = "shared"
    """Whether sliding layers have rotary frequencies of their own: `rope_theta_sliding`, without scaling."""
    rope_scaling: list[Scaling] = Field(default_factory=list)
    """Kinds of RoPE scaling that there can be."""

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate: then its first product is twice as wide."""
        return self.activation != "xielu"


class TextPart(Section):
    """How a model of images and text is published, of which only the text model is trained."""

    model_type: str
    """Its `model_type`."""
    config: str
    """Key of the text model's settings in `config.json`."""
    names: dict[str, str]
    """Beginnings of the text model's parameters' names → beginnings of the architecture's."""
    left_behind: list[str]
    """Beginnings of the names of all other parameters."""


class HuggingFace(Section):
    """How `config.json` describes the architecture."""

    model_type: str
    architectures: list[str]
    """transformers' class; the first is written."""
    constant: dict[str, Any] = Field(default_factory=dict)
    """Keys that must have this value or be absent, and are written back (null: must be null or absent): another value is
    another network."""
    written: dict[str, Any] = Field(default_factory=dict)
    """Keys that are only written (not with null): they do not change what training computes."""
    defaults: dict[str, Any] = Field(default_factory=dict)
    """transformers' own defaults of keys that `config.json` leaves out."""
    keys: dict[Literal["sliding_window", "layer_kinds", "rope_theta_sliding", "query_scale"], str] = Field(
        default_factory=dict
    )
    """Keys of a model's recipe that not every architecture has → what `config.json` calls them. `layer_kinds` is
    `layer_types`, or `no_rope_layers` (1 where there IS a rotary embedding)."""
    text_part: TextPart | None = None


class Architecture(Section):
    """An architecture, as its file describes it."""

    name: str
    """Name of the file."""
    huggingface: HuggingFace
    network: Network = Field(default_factory=Network)
    layer: dict[str, Parameter]
    """Parameters of a layer: transformers' name after `model.layers.N.` → where Megatron keeps it."""
    outside: dict[str, Parameter]
    """All other parameters."""

    @model_validator(mode="after")
    def _fused(self) -> Architecture:
        parts: dict[str, list[str]] = {}
        for row in self.layer.values():
            parts.setdefault(row.key, []).append(row.part or "whole")
        for key, found in parts.items():
            if found not in (["whole"], ["query", "key", "value"], ["gate", "up"]):
                raise ValueError(
                    f"layer: {key} is {', '.join(found)}; a tensor is one parameter, or query, key and value, or gate "
                    "and up, in this order"
                )
        if self.network.gated != any("gate" in found for found in parts.values()):
            raise ValueError(
                f"network.activation is {self.network.activation}, which does not fit the rows of `layer`"
            )
        return self


def architecture_names() -> list[str]:
    """Names of all architectures, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def architecture(name: str) -> Architecture:
    """The architecture of recipes/architectures that has this name.

    Raises:
        ValueError: there is none.
        UserError: its file is wrong.
    """
    if name not in architecture_names():
        raise ValueError(f"there is no architecture `{name}`; there are {', '.join(architecture_names())}")
    return read_architecture(FOLDER / f"{name}.yaml")


def read_architecture(path: Path) -> Architecture:
    """The architecture in a file.

    Raises:
        UserError: the file, or one that it is based on, is wrong: names file, line and key.
    """
    composed = _composed(path, ())
    try:
        return Architecture.model_validate({"name": path.stem, **composed.values})
    except ValidationError as error:
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    # A union (a size is a word or a number) reports each of its members, which are no keys.
    keys = [part for part in faults[0]["loc"] if not str(part).startswith(("literal[", "int"))]
    message = faults[0]["msg"].removeprefix("Value error, ")
    if faults[0]["type"] == "extra_forbidden":
        message = "unknown key"
    where = ".".join(map(str, keys))
    raise UserError(f"{composed.origin(keys)}: {f'`{where}`: ' if where else ''}{message}; correct the file")


def _composed(path: Path, seen: tuple[Path, ...]) -> Composed:
    if path in seen:
        raise UserError(f"{path}: based on itself, by {' → '.join(one.name for one in seen)}; break the loop")
    own = read_yaml(path)
    base = own.values.pop("base", None)
    if base is None:
        return own
    below = _composed(path.with_name(f"{base}.yaml"), (*seen, path))
    below.merge(own)
    for table in ("layer", "outside"):
        rows = below.values.get(table)
        if isinstance(rows, dict):
            below.values[table] = {name: row for name, row in rows.items() if row is not None}
    return below
