"""Headers of safetensors files: what the safetensors library refuses is refused here."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.mapped_file import MappedFile
from emma.checkpoints_conversion.safetensors_files import SafetensorsReader
from emma.checkpoints_conversion.safetensors_header import read_header
from tests.checkpoints_conversion.tiny_models import save_llama

SIZES = {"F32": 4, "BF16": 2, "F16": 2}


def pack(header: bytes, body: int, length: int | None = None) -> bytes:
    """A file with a header and `body` zero bytes."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(body)


def plain(seed: int) -> tuple[dict[str, Any], int]:
    """A valid header and the size of its tensors."""
    pick = random.Random(seed)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if pick.random() < 0.5 else {}
    position = 0
    for number in range(pick.randint(1, 4)):
        dtype = pick.choice(list(SIZES))
        shape = [pick.choice([0, 1, 2, 3]) for _ in range(pick.randint(0, 3))]
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return header, position


def accepted_here(path: Path) -> tuple[bool, str]:
    """Whether the project reads a file; any failure other than its own error escapes."""
    try:
        read_header(MappedFile(path))
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert "\n" not in message
        assert len(message) < 2000
        return False, message
    return True, ""


def accepted_by_the_library(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


ODD: list[Any] = [
    *(-1, 0, 1, 2, 3, 4, 7, 8, 2**31, 2**53, 2**63, 2**64 - 1, 2**64, 2**70, -(2**63)),
    *(
        0.0,
        1.0,
        2.5,
        True,
        False,
        None,
        "",
        "4",
        "F32",
        "F64",
        "I8",
        "F4",
        "f32",
        [],
        [1],
        [0, 4],
        [4, 0],
        [0, 4, 8],
    ),
    *([1.0], [-1], [True], [[1]], {}, {"a": 1}, [2**40, 2**40, 0], [2**62], [0, 2**62, 2**62]),
]


def mutate(header: dict[str, Any], body: int, pick: random.Random) -> bytes:
    """A file near a valid one: wrong values, fields, offsets, lengths, or bytes."""
    names = [name for name in header if name != "__metadata__"]
    length = None
    spoil: tuple[float, bytes] | None = None
    for _ in range(pick.randint(1, 2)):
        name = pick.choice(names)
        entry = header[name]
        kind = pick.randrange(11)
        if kind == 0 and isinstance(entry, dict):
            entry[pick.choice(["dtype", "shape", "data_offsets", "other"])] = pick.choice(ODD)
        elif kind == 1 and isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
            offsets = entry["data_offsets"]
            if offsets:
                offsets[pick.randrange(len(offsets))] = pick.choice(ODD)
        elif kind == 2 and isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
            shift = pick.choice([-4, -1, 1, 4, 8])
            entry["data_offsets"] = [o + shift if type(o) is int else o for o in entry["data_offsets"]]
        elif (
            kind == 3 and isinstance(entry, dict) and isinstance(entry.get("shape"), list) and entry["shape"]
        ):
            entry["shape"][pick.randrange(len(entry["shape"]))] = pick.choice(ODD)
        elif kind == 4:
            other = header[pick.choice(names)]
            if isinstance(other, dict) and "data_offsets" in other:
                header["alias"] = dict(other)  # two tensors on the same bytes
        elif kind == 5 and isinstance(entry, dict) and entry:
            del entry[pick.choice(list(entry))]
        elif kind == 6:
            header[name] = pick.choice(ODD)
        elif kind == 7:
            header["__metadata__"] = pick.choice([*ODD, {"a": "b"}, {"a": None}, {"a": {"b": "c"}}])
        elif kind == 8:
            body = max(0, body + pick.choice([-4, -1, 1, 8]))
        elif kind == 9:
            length = pick.choice([0, 1, 7, 100_000_001, 2**63, 2**64 - 1])
        else:
            spoil = (
                pick.random(),
                pick.choice([b"}", b"{", b",", b'"', b"\x00", b"\xff", b"NaN", b"-0", b" "]),
            )
    text = json.dumps(header).encode()
    if spoil is not None:
        at = int(spoil[0] * len(text))
        text = text[:at] + spoil[1] + text[at + 1 :]
    return pack(text, body, length)


def test_verdicts_are_the_librarys(tmp_path: Path) -> None:
    """Over thousands of hostile headers, nothing is read that the library refuses; what only this project refuses is a
    type that it cannot convert, an unknown field, or a name that is none."""
    pick = random.Random(5)
    path = tmp_path / "model.safetensors"
    counts = {(here, there): 0 for here in (True, False) for there in (True, False)}
    for seed in range(4000):
        header, body = plain(seed)
        content = pack(json.dumps(header).encode(), body) if seed % 20 == 0 else mutate(header, body, pick)
        path.write_bytes(content)
        here, message = accepted_here(path)
        there = accepted_by_the_library(content)
        counts[here, there] += 1
        assert there or not here, content
        if there and not here:
            assert any(
                text in message
                for text in (
                    "has the type",
                    "instead of dtype, shape, and data_offsets",
                    "is no name",
                    "given twice",
                )
            ), (message, content)
    assert counts[True, True] > 200
    assert counts[False, False] > 1000
    assert counts[True, False] == 0


TENSOR = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
SPECIAL = {
    "a name twice": (f"{{{TENSOR},{TENSOR}}}", 4, "'a' is given twice"),
    "a field twice": (
        '{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
        "'dtype' is given twice",
    ),
    "minus zero": (TENSOR.replace("[0,4]", "[-0,4]").join("{}"), 4, "not two whole numbers"),
    "a fraction": (TENSOR.replace("[0,4]", "[0.0,4]").join("{}"), 4, "not two whole numbers"),
    "negative": (TENSOR.replace("[0,4]", "[-4,0]").join("{}"), 4, "not two whole numbers"),
    "backwards": (TENSOR.replace("[0,4]", "[4,0]").join("{}"), 4, "claims -4 bytes"),
    "an alias": (f'{{{TENSOR},"b":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}', 4, "shares bytes"),
    "a gap": (TENSOR.replace("[0,4]", "[4,8]").join("{}"), 8, "follows a gap"),
    "a rest": (f"{{{TENSOR}}}", 5, "1 bytes after its last tensor"),
    "cut": (f"{{{TENSOR}}}", 3, "truncated"),
    "deep": ("{" + '"a":[' + "[" * 200_000, 0, "nested too deeply|is not JSON"),
    "surrogate": ('{"__metadata__":{"a":"\\ud800"}}', 0, "no table of texts"),
    "control": (
        '{"a\\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
        "is no name of a parameter",
    ),
    "long": (
        f'{{"{"a" * 501}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}',
        4,
        "is no name of a parameter",
    ),
    "blank first": (f" {{{TENSOR}}}", 4, "does not begin with"),
    "a list": ("[]", 0, "does not begin with"),
    "zeros": ("\x00\x00\x00\x00", 0, "does not begin with"),
    "overflow": (
        '{"a":{"dtype":"F32","shape":[1099511627776,1099511627776,0],"data_offsets":[0,0]}}',
        0,
        "larger than any",
    ),
}


@pytest.mark.parametrize("kind", list(SPECIAL))
def test_special_cases(tmp_path: Path, kind: str) -> None:
    header, body, message = SPECIAL[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(header.encode(), body))
    with pytest.raises(UserError, match=message):
        read_header(MappedFile(path))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "hf", shard="100KB")


def _change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


INDEX: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another folder": (
        lambda m: m.update({"model.norm.weight": "../x.safetensors"}),
        "not the name of a file beside",
    ),
    "an absolute path": (
        lambda m: m.update({"model.norm.weight": "/etc/passwd"}),
        "not the name of a file beside",
    ),
    "a number": (lambda m: m.update({"model.norm.weight": 3}), "not the name of a file beside"),
    "no file": (lambda m: m.update({"model.norm.weight": "none.safetensors"}), "1 are missing"),
    "the wrong file": (
        lambda m: m.update({"model.norm.weight": min(v for v in m.values() if v != m["model.norm.weight"])}),
        "from different models",
    ),
    "not listed": (
        lambda m: m.pop("model.norm.weight"),
        r"model\.norm\.weight is in .* according to the index nowhere",
    ),
    "a name of lines": (lambda m: m.update({"a\nb": "x.safetensors"}), "is no name of a parameter"),
    "not there": (
        lambda m: m.update({"model.more.weight": m["model.norm.weight"]}),
        r"model\.more\.weight should be in",
    ),
}


@pytest.mark.parametrize("kind", list(INDEX))
def test_index(sharded: Path, kind: str) -> None:
    change, message = INDEX[kind]
    SafetensorsReader(sharded)
    _change_index(sharded, change)
    with pytest.raises(UserError, match=message):
        SafetensorsReader(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = min(sharded.glob("*.safetensors"))
    tensors = load_file(path) | {"model.norm.weight": torch.zeros(64)}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"model\.norm\.weight is in .*, but according to the index in model-"
    ):
        SafetensorsReader(sharded)


def test_two_models_in_one_folder(sharded: Path, tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other")
    (other / "model.safetensors").rename(sharded / "model.safetensors")
    with pytest.raises(UserError, match="has both"):
        SafetensorsReader(sharded)
