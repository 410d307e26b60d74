"""Pickles and checkpoints that would run code, for the tests that see them refused.

What each would run is `os.mkdir(marker)`, or something that fails the test louder.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["FOLDERS", "MODELS", "Call", "archive", "payloads", "poison_block", "seal"]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _stack_global(module: str, name: str) -> bytes:
    return b"\x80\x04" + _text(module) + _text(name) + b"\x93"


def payloads(marker: Path) -> dict[str, bytes]:
    """Name → a pickle that creates `marker` with Python's own unpickler, or does something else it must not."""
    import functools
    import operator

    where = _text(str(marker))
    call = where + b"\x85R"
    size = b"ctorch\nSize\n"
    return {
        "os.mkdir": pickle.dumps(Call(os.mkdir, str(marker)), 2),
        "os.mkdir, protocol 5": pickle.dumps(Call(os.mkdir, str(marker)), 5),
        "os.mkdir, protocol 0": pickle.dumps(Call(os.mkdir, str(marker)), 0),
        "os.system": pickle.dumps(Call(os.system, f"mkdir {marker}")),
        "eval": pickle.dumps(Call(eval, f"__import__('os').mkdir({str(marker)!r})")),
        "exec": pickle.dumps(Call(exec, f"import os; os.mkdir({str(marker)!r})")),
        "Python 2's name of eval": b"c__builtin__\neval\n"
        + _text(f"__import__('os').mkdir({str(marker)!r})")
        + b"\x85R.",
        "INST": b"(S'" + str(marker).encode() + b"'\nios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + where + b"o.",
        "EXT1": b"\x82\x01" + call + b".",
        "NEWOBJ_EX": _stack_global("os", "mkdir") + where + b"\x85}\x92.",
        "PERSID": b"Pos.mkdir\n.",
        "a name from the stack": _stack_global("os", "mkdir") + call + b".",
        "a name with a dot": _stack_global("pathlib", "Path.mkdir")
        + _stack_global("pathlib", "Path")
        + call
        + b"\x85R.",
        "a dotted name that begins on the list": _stack_global("torch", "Size.__class__") + call + b".",
        "a name from the memo": _text("os")
        + b"q\x00"
        + _text("mkdir")
        + b"q\x01h\x00h\x01\x93"
        + call
        + b".",
        "functools.partial": pickle.dumps(Call(functools.partial(os.mkdir, str(marker)))),
        "operator.methodcaller": pickle.dumps(Call(operator.methodcaller("mkdir"), marker)),
        "getattr": b"cbuiltins\ngetattr\ncargparse\nNamespace\n" + _text("__init__") + b"\x86R.",
        "copyreg": b"ccopyreg\n_reconstructor\ncargparse\nNamespace\ncbuiltins\nobject\nN\x87R.",
        "importlib": b"cimportlib\nimport_module\n" + _text("os") + b"\x85R.",
        "torch.load": b"ctorch.serialization\nload\n" + call + b".",
        "torch.jit.load": b"ctorch.jit\nload\n" + call + b".",
        "a tensor of a class": b"ctorch._tensor\n_rebuild_from_type_v2\n" + call + b".",
        "a wrapper subclass": b"ctorch._utils\n_rebuild_wrapper_subclass\n" + call + b".",
        "a reader with a connection": b"\x80\x02ctorch.distributed.checkpoint._fsspec_filesystem\nFsspecReader\n"
        + call
        + b".",
        "a reader of the list's module": b"\x80\x02ctorch.distributed.checkpoint.filesystem\nFileSystemReader\n)\x81.",
        "attributes of a class": b"\x80\x02cargparse\nNamespace\n}" + _text("__init__") + size + b"sb.",
        "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}"
        + _text("__defaults__")
        + b"Ns\x86b.",
        "a dunder of an object": b"\x80\x02cargparse\nNamespace\n)\x81}" + _text("__class__") + b"Nsb.",
        "a method of an object": b"\x80\x02ctorch.distributed.checkpoint.metadata\nTensorProperties\n)\x81N}"
        + _text("__setstate__")
        + b"Ns\x86b.",
        "a class as a value": b"\x80\x02]cargparse\nNamespace\na.",
        "a function as a value": b"\x80\x02]ctorch._utils\n_rebuild_tensor_v2\na.",
        "a call of a class that is only made": b"\x80\x02cargparse\nNamespace\n" + call + b".",
        "a class made from arguments": b"\x80\x02cargparse\nNamespace\n" + where + b"\x85\x81.",
        "a call of a dtype": b"\x80\x02ctorch\nfloat32\n" + call + b".",
        "another encoding": b"\x80\x02c_codecs\nencode\n" + where + _text("punycode") + b"\x86R.",
        "items of a namespace": b"\x80\x02cargparse\nNamespace\n)\x81" + where + b"Ns.",
        "appended to a record": b"\x80\x02ccollections\nOrderedDict\n)RNa.",
        "a list that contains itself": b"]q\x00h\x00a.",
        "a tuple within itself": b"]q\x00h\x00\x85a.",
        "nested a thousand levels": b"]" * 1000 + b"a" * 999 + b".",
        "nested a thousand tuples": b")" + b"\x85" * 1000 + b".",
        "a bomb of references": b"]q\x00"
        + b"".join(
            b"](" + b"h" + bytes([n]) + (b"h" + bytes([n])) * 9 + b"eq" + bytes([n + 1]) for n in range(40)
        )
        + b".",
        "a key that takes forever": b"}("
        + b")q\x00"
        + b"".join(b"h\x00" * 0 + b"\x85" for _ in range(30))
        + b"Nu.",
        "an integer of a gigabyte": b"\x8b\x00\x00\x00\x40" + b"\x01" * 16 + b".",
        "a text longer than the file": b"X\xff\xff\xff\x7fabc.",
        "cut off": pickle.dumps({"a": 1})[:-3],
        "two pickles": pickle.dumps({"a": 1}) + pickle.dumps(Call(os.mkdir, str(marker))),
        "bytes after the end": pickle.dumps({"a": 1}) + b"\0",
        "a later protocol": b"\x80\x06N.",
        "an operation of no protocol": b"\xff.",
        "empty": b"",
        "values left over": b"NN.",
        "a mark left over": b"(.",
        "another object's bytes": b"\x80\x02]" + _text("module") + b"aQ.",
    }


def archive(value: Any = None, pickled: bytes | None = None, **entries: bytes) -> bytes:
    """What `torch.save(value)` writes, with another pickle and more entries if given."""
    import torch

    stream = io.BytesIO()
    torch.save({} if value is None else value, stream)
    if pickled is None and not entries:
        return stream.getvalue()
    made = io.BytesIO()
    with zipfile.ZipFile(stream) as before, zipfile.ZipFile(made, "w") as after:
        for entry in before.infolist():
            data = before.read(entry)
            after.writestr(
                entry.filename, pickled if pickled and entry.filename.endswith("data.pkl") else data
            )
        for name, data in entries.items():
            after.writestr(f"archive/{name.replace('__', '.')}", data)
    return made.getvalue()


def seal(folder: Path) -> None:
    """Writes the completion mark anew, as someone who changes a checkpoint would."""
    from emma.tools.runs.checkpoints import COMPLETE_MARK, mark_complete

    if (folder / COMPLETE_MARK).is_file():
        facts = json.loads((folder / COMPLETE_MARK).read_text())
        mark_complete(
            folder, **{key: value for key, value in facts.items() if key not in ("files", "checksum")}
        )


def poison_block(folder: Path, key: str, data: bytes) -> None:
    """Makes `data` the stored block of a key of a `torch_dist` checkpoint."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    file = sorted(folder.glob("*.distcp"))[0]
    offset = file.stat().st_size
    with file.open("ab") as handle:
        handle.write(data)
    found = [index for index in metadata.storage_data if index.fqn == key]
    if not found:
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        found = [MetadataIndex(key)]
    metadata.storage_data[found[0]] = _StorageInfo(file.name, offset, len(data))
    path.write_bytes(pickle.dumps(metadata))


def _metadata(change: Callable[[Any, Path], Any]) -> Callable[[Path, Path], None]:
    def poison(folder: Path, marker: Path) -> None:
        path = folder / ".metadata"
        path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()), marker)))

    return poison


def _planner_data(metadata: Any, marker: Path) -> Any:
    metadata.planner_data = [Call(os.mkdir, str(marker))]
    return metadata


def _elsewhere(metadata: Any, marker: Path) -> Any:
    for info in metadata.storage_data.values():
        info.relative_path = "../../../../etc/passwd"
    return metadata


def _transformed(metadata: Any, marker: Path) -> Any:
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["stream.zstd"]
    return metadata


def _block(key: str, make: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    return lambda folder, marker: poison_block(folder, key, make(marker))


def _extra_state(marker: Path) -> bytes:
    import torch

    return archive(
        [torch.frombuffer(bytearray(pickle.dumps(Call(os.mkdir, str(marker)))), dtype=torch.uint8)]
    )


def _extra_state_of_floats(marker: Path) -> bytes:
    import torch

    data = pickle.dumps(Call(os.mkdir, str(marker)))
    return archive([torch.frombuffer(bytearray(data + b"\0" * (-len(data) % 4)), dtype=torch.float32)])


def _common(make: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    return lambda folder, marker: (folder / "common.pt").write_bytes(make(marker)) and None


def _attack(marker: Path) -> bytes:
    return archive({"args": Call(os.mkdir, str(marker))})


def _legacy(marker: Path) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"args": Call(os.mkdir, str(marker))}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _rank_file(folder: Path, marker: Path) -> None:
    (folder / "mp_rank_00").mkdir()
    (folder / "mp_rank_00" / "model_optim_rng.pt").write_bytes(_attack(marker))


def _rank_files_only(folder: Path, marker: Path) -> None:
    for path in [folder / ".metadata", folder / "metadata.json", *folder.glob("*.distcp")]:
        path.unlink()
    _rank_file(folder, marker)


FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    ".metadata is a call": _metadata(lambda _, marker: Call(os.mkdir, str(marker))),
    ".metadata holds a call": _metadata(_planner_data),
    ".metadata is a tuple of metadata and a call": _metadata(
        lambda m, marker: (m, Call(os.mkdir, str(marker)))
    ),
    ".metadata names files elsewhere": _metadata(_elsewhere),
    ".metadata asks for a transformation": _metadata(_transformed),
    "the common state": _block("common_state/shard_0_1", _attack),
    "the common state, older format": _block("common_state/shard_0_1", _legacy),
    "random numbers": _block("rng_state/shard_0.0_1.1", _attack),
    "a tensor's block": _block("decoder.final_layernorm.weight", _attack),
    "extra state": _block("decoder.layers.mlp.linear_fc1._extra_state/shard_0_4", _extra_state),
    "extra state as floats": _block(
        "decoder.layers.mlp.linear_fc1._extra_state/shard_0_4", _extra_state_of_floats
    ),
    "common.pt": _common(_attack),
    "common.pt, older format": _common(_legacy),
    "common.pt, a TorchScript program": _common(lambda _: archive({}, constants__pkl=b"\x80\x02).")),
    "common.pt, a bare pickle": _common(lambda marker: pickle.dumps(Call(os.mkdir, str(marker)))),
    "a rank's file beside": _rank_file,
    "a rank's file": _rank_files_only,
}
"""What is wrong with a checkpoint's folder → how to make it so; arguments are the folder and the marker."""


def _json(name: str, **fields: Any) -> Callable[[Path, Path], None]:
    def poison(folder: Path, marker: Path) -> None:
        path = folder / name
        value = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(value | fields))
        for module in ("attack.py", "custom_generate/generate.py"):
            (folder / module).parent.mkdir(exist_ok=True)
            (folder / module).write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Attack: pass\n")
        if name != "custom":
            shutil.rmtree(folder / "custom_generate")
        else:
            path.unlink()

    return poison


def _pickled_weights(folder: Path, marker: Path) -> None:
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(_attack(marker))


MODELS: dict[str, Callable[[Path, Path], None]] = {
    "auto_map of the model": _json(
        "config.json", auto_map={"AutoConfig": "attack.Attack", "AutoModelForCausalLM": "attack.Attack"}
    ),
    "auto_map of the tokenizer": _json(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["attack.Attack", None]}
    ),
    "a kernel from the Hub": _json("config.json", attn_implementation="someone/kernel"),
    "an adapter": _json("adapter_config.json", base_model_name_or_path="someone/model", peft_type="LORA"),
    "its own way to generate": _json("custom"),
    "pytorch_model.bin": _pickled_weights,
}
"""What is wrong with a Hugging Face folder → how to make it so."""
