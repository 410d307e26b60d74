"""Follows a pickle without executing it: the one reader of pickles of this project. Needs no torch.

What a pickle calls or builds becomes a `Record` of the request, so that reading imports no module, calls no function of
the file's choice, and touches no class. Only names of the closed list (`names.py`) are accepted, each only in the way
that its entry says; so a pickle cannot give attributes to a class, or pass a function as a value. The result is a tree:
no cycles, of limited depth, and not larger than it looks when each reference to it is followed.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from emma.tools.inspection.names import NAMES, STORAGES
from emma.tools.inspection.trees import ForeignNamesError, Global, Persistent, PickleError, Record, measure

__all__ = ["Pickle", "names_in", "read"]

LARGEST = 1 << 26
"""Bytes of a pickle. The metadata of an 8B model's checkpoint has about 140 for each block of a tensor."""
MOST_OPERATIONS = 20_000_000
"""Steps of a pickle; 8,000 blocks take 400,000."""
MOST_NAMES = 10_000
LONGEST_NAME = 300
LONGEST_INTEGER = 1024  # bytes


@dataclass(frozen=True)
class Pickle:
    """What a pickle describes: the tree, the byte after it, and how often it refers to each name."""

    value: Any
    end: int
    names: Mapping[str, int]


_MARK = object()
_FAULTS = (IndexError, struct.error, KeyError, ValueError, TypeError, OverflowError)
"""What reading past the end, an unknown memo entry or a value of the wrong kind raises."""
_HOW = {"value": "call", "member": "call", "call": "call", "mapping": "call", "record": "new", "tuple": "new"}


def read(data: bytes, *, at: int = 0, whole: bool = True) -> Pickle:
    """Follows a pickle.

    Args:
        data: holds the pickle.
        at: its first byte.
        whole: refuse bytes after it.

    Raises:
        ForeignNamesError: names outside the closed list.
        PickleError: damaged, or not such a tree; the message completes "… cannot be read: ".
    """
    machine = _Machine(data, at)
    fault: PickleError | None = None
    try:
        machine.run()
        if whole and machine.at != len(data):
            raise PickleError(f"{len(data) - machine.at} bytes follow its end")
        measure(machine.result)
    except PickleError as error:
        fault = error
    except _FAULTS as error:
        fault = PickleError(f"damaged at byte {machine.at} ({type(error).__name__}: {error})")
    if foreign := sorted(name for name in machine.names if name not in NAMES):
        raise ForeignNamesError(foreign)
    if fault is not None:
        raise fault
    return Pickle(machine.result, machine.at, machine.names)


def names_in(data: bytes) -> Mapping[str, int]:
    """How often a pickle refers to each name, as far as it can be followed; `read` says why no further."""
    machine = _Machine(data, 0)
    with contextlib.suppress(*_FAULTS):  # PickleError is a ValueError
        machine.run()
    return machine.names


class _Machine:
    """Stack, memo and place of one pickle."""

    def __init__(self, data: bytes, at: int) -> None:
        if len(data) - at > LARGEST:
            raise PickleError(f"{len(data) - at} bytes, more than the {LARGEST} of any checkpoint")
        self.data, self.at, self.protocol = data, at, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: Counter[str] = Counter()
        self.result: Any = None

    def run(self) -> None:
        for _ in range(MOST_OPERATIONS):
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                self.result = self.pop()
                if self.stack:
                    raise PickleError("it ends with values left over")
                return
            action = _ACTIONS.get(code)
            if action is None:
                raise PickleError(
                    f"operation {bytes([code])!r} at byte {self.at - 1}, which no checkpoint needs"
                )
            action(self)
        raise PickleError(f"more than {MOST_OPERATIONS} steps")

    # Bytes.

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise PickleError("it is cut off")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def line(self) -> bytes:
        end = self.data.index(b"\n", self.at, self.at + 4 * LONGEST_NAME)
        part = self.data[self.at : end]
        self.at = end + 1
        return part

    # Values.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("a mark where a value should be")
        return value

    def pop_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise PickleError("a mark is missing")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > LONGEST_NAME:
            raise PickleError("a name that is not a text, or a very long one")
        if not f"{module}.{name}".isprintable() or len(self.names) > MOST_NAMES:
            raise PickleError("a name that is none, or very many of them")
        if self.protocol < 3:  # Python 2's names, which pickles of these protocols use
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            else:
                module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        # A dot inside the name reaches for an attribute; no entry has one.
        self.names[f"{module}.{name}"] += 1
        self.push(Global(f"{module}.{name}"))

    def request(self, how: str) -> None:
        arguments, target = self.pop(), self.pop()
        if not isinstance(target, Global) or not isinstance(arguments, tuple):
            raise PickleError(f"a {how} of something that is not a name")
        entry = NAMES.get(target.name)
        if entry is not None and _HOW.get(entry.kind) != how:
            raise PickleError(f"it uses {target.name} in a way that no checkpoint needs")
        if entry is not None and entry.kind == "value":
            self.push(_value(target.name, arguments))
            return
        if entry is not None and entry.kind == "member" and len(arguments) != 1:
            raise PickleError(f"it makes a new class like {target.name}")
        if entry is not None and entry.kind in ("record", "mapping") and arguments and arguments != ([],):
            raise PickleError(f"it makes {target.name} from arguments, which no checkpoint needs")
        self.push(Record(target.name, arguments))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        kind = NAMES[target.name].kind if isinstance(target, Record) and target.name in NAMES else None
        foreign = isinstance(target, Record) and target.name not in NAMES
        array = isinstance(target, Record) and target.name.startswith("numpy.")
        if not (foreign or array or kind in ("record", "mapping")) or target.state is not None:
            raise PickleError("it sets attributes of something that has none")
        target.state = state

    def add_items(self, pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise PickleError("a key without a value")
        target = self.stack[-1]
        both = list(zip(pairs[::2], pairs[1::2], strict=True))
        for key, _ in both:
            _check_key(key)
        if isinstance(target, dict):
            target.update(both)
        elif isinstance(target, Record) and (
            target.name not in NAMES or NAMES[target.name].kind == "mapping"
        ):
            target.items += both
        else:
            raise PickleError("it adds items to something that holds none")

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickleError("it appends to something that is not a list")
        target += values

    def add(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise PickleError("it adds to something that is not a set")
        target |= _set(values)

    def dictionary(self) -> None:
        pairs = self.pop_mark()
        self.push({})
        self.add_items(pairs)

    def persistent(self) -> None:
        match self.pop():
            case ("storage", Global(name), str(key), str(location), int(count), *view):
                kind = name.rpartition(".")[2]
                if (kind in STORAGES or kind == "UntypedStorage") and count >= 0 and view in ([], [None]):
                    self.push(Persistent(kind, key, location, count))
                    return
        raise PickleError("it refers to something outside of it that is not a tensor's bytes")

    def remember(self, index: int) -> None:
        value = self.stack[-1]
        if value is _MARK:
            raise PickleError("a mark where a value should be")
        self.memo[index] = value


def _value(name: str, arguments: tuple[Any, ...]) -> Any:
    """What the few functions return whose results are plain values."""
    match name, arguments:
        case "_codecs.encode", (str(text), "latin1"):
            return text.encode("latin1")
        case (("builtins.bytes" | "builtins.bytearray"), ()):
            return b""
        case (("builtins.bytes" | "builtins.bytearray"), (bytes(content),)):
            return content
        case ("builtins.bytearray", (str(text), "latin-1" | "latin1")):
            return text.encode("latin1")
        case ("builtins.set", (list(values),)):
            return _set(values)
        case ("builtins.frozenset", (list(values),)):
            return frozenset(_set(values))
        case ("torch.serialization._get_layout", ("torch.strided",)):
            return "torch.strided"
    if name.startswith("pathlib") and all(isinstance(part, str) for part in arguments):
        return str(PurePosixPath(*arguments))
    raise PickleError(f"it calls {name} with unusual arguments")


def _set(values: list[Any]) -> set[Any]:
    for value in values:
        _check_key(value)
    return set(values)


def _check_key(key: Any) -> None:
    """Keys are texts, small integers, records, and pairs of those: hashing others could be made to take forever."""
    parts = key if isinstance(key, tuple) and len(key) <= 8 else (key,)
    for part in parts:
        small = isinstance(part, int) and abs(part) < 1 << 60
        if not small and part is not None and not isinstance(part, str | bytes | Record | Global):
            raise PickleError(f"a key of type {type(part).__name__}")


_U1, _U2, _I4, _U4, _U8, _F8 = (struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q", ">d"))


def _integer(machine: _Machine, form: struct.Struct) -> None:
    count = machine.number(form)
    if not 0 <= count <= LONGEST_INTEGER:
        raise PickleError(f"an integer of {count} bytes")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _decimal(machine: _Machine) -> None:
    text = machine.line()
    special = {b"00": False, b"01": True}
    machine.push(special[text] if text in special else int(text.removesuffix(b"L")))


def _text(machine: _Machine, form: struct.Struct) -> None:
    machine.push(machine.take(machine.number(form)).decode("utf-8", "surrogatepass"))


def _bytes(machine: _Machine, form: struct.Struct) -> None:
    machine.push(machine.take(machine.number(form)))


def _global(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.name(module.decode(), name.decode())


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _protocol(machine: _Machine) -> None:
    machine.protocol = machine.number(_U1)
    if machine.protocol > 5:
        raise PickleError(f"protocol {machine.protocol}, which no Python has")


def _tuple(machine: _Machine, count: int) -> None:
    values = [machine.pop() for _ in range(count)]
    machine.push(tuple(reversed(values)))


# Not here, and so refused: INST and OBJ (classes of Python 2), EXT (a registry of the process), PERSID, NEWOBJ_EX,
# STRING (escapes of Python 2), buffers outside of the pickle, and whatever a later protocol adds.
_ACTIONS: Mapping[int, Any] = {
    ord(code): action
    for code, action in {
        "(": lambda m: m.push(_MARK),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.pop_mark(),
        "F": lambda m: m.push(float(m.line())),
        "I": _decimal,
        "L": _decimal,
        "J": lambda m: m.push(m.number(_I4)),
        "K": lambda m: m.push(m.number(_U1)),
        "M": lambda m: m.push(m.number(_U2)),
        "N": lambda m: m.push(None),
        "G": lambda m: m.push(m.number(_F8)),
        "V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
        "X": lambda m: _text(m, _U4),
        "U": lambda m: _text(m, _U1),
        "T": lambda m: _text(m, _I4),
        "B": lambda m: _bytes(m, _U4),
        "C": lambda m: _bytes(m, _U1),
        "Q": lambda m: m.persistent(),
        "R": lambda m: m.request("call"),
        "b": lambda m: m.build(),
        "c": _global,
        "a": lambda m: m.append([m.pop()]),
        "e": lambda m: m.append(m.pop_mark()),
        "d": lambda m: m.dictionary(),
        "}": lambda m: m.push({}),
        "]": lambda m: m.push([]),
        "l": lambda m: m.push(m.pop_mark()),
        "g": lambda m: m.push(m.memo[int(m.line())]),
        "h": lambda m: m.push(m.memo[m.number(_U1)]),
        "j": lambda m: m.push(m.memo[m.number(_U4)]),
        "p": lambda m: m.remember(int(m.line())),
        "q": lambda m: m.remember(m.number(_U1)),
        "r": lambda m: m.remember(m.number(_U4)),
        "s": lambda m: m.add_items([m.pop(), m.pop()][::-1]),
        "u": lambda m: m.add_items(m.pop_mark()),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        ")": lambda m: m.push(()),
        "\x80": _protocol,
        "\x81": lambda m: m.request("new"),
        "\x85": lambda m: _tuple(m, 1),
        "\x86": lambda m: _tuple(m, 2),
        "\x87": lambda m: _tuple(m, 3),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "\x8a": lambda m: _integer(m, _U1),
        "\x8b": lambda m: _integer(m, _I4),
        "\x8c": lambda m: _text(m, _U1),
        "\x8d": lambda m: _text(m, _U8),
        "\x8e": lambda m: _bytes(m, _U8),
        "\x8f": lambda m: m.push(set()),
        "\x90": lambda m: m.add(m.pop_mark()),
        "\x91": lambda m: m.push(frozenset(_set(m.pop_mark()))),
        "\x93": _stack_global,
        "\x94": lambda m: m.remember(len(m.memo)),
        "\x95": lambda m: m.number(_U8),
        "\x96": lambda m: _bytes(m, _U8),
    }.items()
}
