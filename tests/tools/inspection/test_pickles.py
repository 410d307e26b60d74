"""The one reader of pickles: what it reads as Python's does, and what it refuses."""

from __future__ import annotations

import _compat_pickle
import os
import pickle
import random
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from emma.tools.inspection import objects, pickles
from emma.tools.inspection.names import NAMES
from emma.tools.inspection.trees import ForeignNamesError, PickleError
from tests.hostile import Call, payloads

PLAIN: list[Any] = [
    None,
    True,
    [0, -1, 255, 256, 65536, -(2**31), 2**31, 2**64, -(2**70)],
    [0.0, -1.5, float("inf"), 1e-300],
    ["", "ä", "\ud800", "x" * 70000, "line\nline"],
    [b"", b"\x80\x00", b"x" * 70000, bytearray(b"abc")],
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    {"a": {"b": [1, {2, 3}, frozenset({"c"})]}, 1: None, ("d", 2): ()},
    OrderedDict(a=1, b=OrderedDict()),
    Namespace(layers=4, rates=[1e-3], nested=Namespace(x=None)),
]


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", PLAIN, ids=[str(value)[:20] for value in PLAIN])
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    made = objects.make(pickles.read(pickle.dumps(value, protocol)).value)
    expected = [b"", b"\x80\x00", b"x" * 70000, b"abc"] if value == PLAIN[5] else value
    assert made == expected and type(made) is type(expected)


def test_shared_parts_stay_shared() -> None:
    shared = [1]
    made = objects.make(pickles.read(pickle.dumps([shared, shared, {"a": shared}])).value)
    assert made[0] is made[1] is made[2]["a"]


@pytest.mark.parametrize("name", payloads(Path("marker")))
def test_nothing_hostile_is_read(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "attacked"
    before = Namespace.__init__
    data = payloads(marker)[name]
    with pytest.raises(PickleError) as refused:
        objects.make(pickles.read(data).value)
    assert not marker.exists() and len(str(refused.value)) < 300 and "\n" not in str(refused.value)
    assert Namespace.__init__ is before
    pickles.names_in(data)  # for the inspector, which lists what it can
    assert not marker.exists()


def test_pythons_own_unpickler_would_run_them(tmp_path: Path) -> None:
    """The payloads are no scarecrows."""
    marker = tmp_path / "attacked"
    for name in (
        "os.mkdir",
        "os.mkdir, protocol 0",
        "os.system",
        "eval",
        "INST",
        "OBJ",
        "a name from the stack",
        "a name from the memo",
    ):
        pickle.loads(payloads(marker)[name])
        assert marker.is_dir(), name
        marker.rmdir()


def test_every_foreign_name_is_listed() -> None:
    data = pickle.dumps([Call(os.mkdir, "a"), Call(eval, "b"), Namespace(x=Call(os.getcwd))])
    with pytest.raises(ForeignNamesError) as refused:
        pickles.read(data)
    here = os.mkdir.__module__
    assert refused.value.names == ["builtins.eval", f"{here}.getcwd", f"{here}.mkdir"]
    assert set(pickles.names_in(data)) == {*refused.value.names, "argparse.Namespace"}


def test_no_name_outside_the_list_is_accepted() -> None:
    """Names of everything imported here, of each shape that a pickle can give them."""
    chooser = random.Random(0)
    known = [
        (module, name)
        for module, found in sorted(sys.modules.items())
        if found is not None and module.isidentifier()
        for name in sorted(vars(found))
        if name.isidentifier()
    ]
    for module, name in chooser.sample(known, 1500):
        for data in (
            f"c{module}\n{name}\n)R.".encode(),
            f"\x80\x02c{module}\n{name}\n)\x81.".encode("latin1"),
            b"\x80\x04"
            + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
            + b"\x93.",
        ):
            if f"{module}.{name}" not in NAMES:
                with pytest.raises(PickleError):
                    pickles.read(data)


def test_the_list_is_closed() -> None:
    with pytest.raises(TypeError):
        NAMES["os.system"] = NAMES["torch.Size"]  # type: ignore[index]
    for name, entry in NAMES.items():
        module, _, attribute = name.rpartition(".")
        assert entry.reason and attribute.isidentifier()
        # A name that Python maps to another in old protocols would be another in its own unpickler.
        assert (module, attribute) not in _compat_pickle.NAME_MAPPING or module == "builtins"
        assert module.partition(".")[0] in {
            *("builtins", "_codecs", "collections", "argparse", "signal", "pathlib"),
            *("torch", "numpy", "megatron", "transformer_engine"),
        }
    allowed = {name for name in NAMES if name.startswith("builtins.")}
    assert allowed == {f"builtins.{name}" for name in ("set", "frozenset", "bytes", "bytearray")}


def test_bytes_changed_at_random_never_run_and_never_crash(tmp_path: Path) -> None:
    """Any bytes either read as a tree or raise PickleError."""
    chooser = random.Random(1)
    marker = tmp_path / "attacked"
    seeds = [
        *payloads(marker).values(),
        *(pickle.dumps(value) for value in PLAIN if len(pickle.dumps(value)) < 999),
    ]
    outcomes = set()
    for _ in range(6000):
        data = bytearray(chooser.choice(seeds)[:2000])
        for _ in range(chooser.randint(1, 4)):
            if data:
                data[chooser.randrange(len(data))] = chooser.randrange(256)
        try:
            objects.make(pickles.read(bytes(data)).value)
            outcomes.add("read")
        except PickleError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"} and not marker.exists()
