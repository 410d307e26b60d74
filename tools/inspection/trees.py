"""The tree that a pickle describes: plain values, and records of what it asks for. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from emma.tools.inspection.names import NAMES

__all__ = [
    "SCALARS",
    "ForeignNamesError",
    "Global",
    "Persistent",
    "PickleError",
    "Record",
    "as_mapping",
    "children",
    "holds",
    "measure",
    "printable",
    "walk",
]

DEEPEST = 64
"""Levels of nesting. Megatron's have about ten."""
MOST_VALUES = 30_000_000
"""Values of a pickle, counted as often as they are referred to."""

SCALARS = (type(None), bool, int, float, str, bytes)


def printable(text: str, longest: int = 300) -> str:
    """A text from a file as one line that is safe to show: control characters escaped, cut where it is long."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:longest])
    return shown if len(text) <= longest else shown + "…"


class PickleError(ValueError):
    """A pickle that is damaged, or does what no checkpoint needs. The message is one line without control characters,
    whatever the file says."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ForeignNamesError(PickleError):
    """A pickle that refers to names outside the closed list; `names` are those."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        super().__init__(f"it refers to {shown}, which no checkpoint needs")


@dataclass(frozen=True)
class Global:
    """A class, function or dtype that a pickle names."""

    name: str


@dataclass(frozen=True)
class Persistent:
    """A tensor's bytes: their storage type, their key in the archive, where they were, and their number of elements."""

    storage: str
    key: str
    location: str
    count: int


@dataclass(eq=False)
class Record:
    """What a pickle asks for: to call or make `name` with `arguments`, then to fill it with `state` and `items`."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)


def as_mapping(value: Any) -> dict[Any, Any] | None:
    """The items of a dict or an OrderedDict of a tree; None for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Record) and value.name == "collections.OrderedDict":
        return dict(value.items)
    return None


def children(value: Any) -> Iterator[Any]:
    """What a list, table, tuple, set or record of a tree holds."""
    if isinstance(value, Record):
        yield from value.arguments
        yield value.state
        for pair in value.items:
            yield from pair
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield item
    else:
        yield from value


def walk(root: Any) -> Iterator[Any]:
    """Every value of a tree, each container once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if not holds(value):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting.extend(children(value))


def measure(root: Any) -> None:
    """Refuses cycles, deep nesting, and values that are small in the file and endless when followed."""
    if isinstance(root, SCALARS):
        return
    sizes: dict[int, tuple[int, int]] = {}  # id → (depth, values) of what is done; (0, 0) on the way to here
    path: list[tuple[Any, Iterator[Any], list[int]]] = [
        (root, children(root) if holds(root) else iter(()), [0, 1])
    ]
    sizes[id(root)] = (0, 0)
    while path:
        value, rest, sums = path[-1]
        for child in rest:
            if isinstance(child, Global):
                _check_global(child, value)
            if not holds(child):
                sums[1] += 1
                continue
            known = sizes.get(id(child))
            if known is None:
                if len(path) >= DEEPEST:
                    raise PickleError(f"nested more than {DEEPEST} levels deep")
                sizes[id(child)] = (0, 0)
                path.append((child, children(child), [0, 1]))
                break
            if known == (0, 0):
                raise PickleError("a value that contains itself")
            sums[0], sums[1] = max(sums[0], known[0]), sums[1] + known[1]
        else:
            path.pop()
            done = sizes[id(value)] = (sums[0] + 1, sums[1])
            if done[1] > MOST_VALUES:
                raise PickleError(f"more than {MOST_VALUES} values when its references are followed")
            if len(path) + done[0] > DEEPEST:
                raise PickleError(f"nested more than {DEEPEST} levels deep")
            if path:
                above = path[-1][2]
                above[0], above[1] = max(above[0], done[0]), above[1] + done[1]
    if isinstance(root, Global):
        _check_global(root, None)


def holds(value: Any) -> bool:
    """Whether a value of a tree has children."""
    return isinstance(value, Record | dict | list | tuple | set | frozenset)


def _check_global(value: Global, holder: Any) -> None:
    entry = NAMES.get(value.name)
    if entry is None or entry.kind == "dtype":
        return
    array = isinstance(holder, Record) and holder.name.endswith("multiarray._reconstruct")
    if entry.kind != "argument" or not array:
        raise PickleError(f"it passes {value.name} as a value")
