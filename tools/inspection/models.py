"""Inspects a Hugging Face folder: weights, tokenizer, and the code that it brings along. Needs no torch.

`transformers` can run code that a folder brings: `auto_map` names classes in Python files, an attention implementation
with a `/` in its name is a program from the Hub, an adapter's description names another model to load. Folders that ask
for any of that are refused before `transformers` sees them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.tools.inspection.checkpoints import read_archive
from emma.tools.inspection.findings import Inspection, TensorFound
from emma.tools.inspection.names import DTYPES
from emma.tools.inspection.tensors import tensor_form
from emma.tools.inspection.trees import PickleError, as_mapping, printable

__all__ = ["check_model", "holds_model", "inspect_model", "loading", "model_options", "tokenizer_options"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_LARGEST_HEADER = 100_000_000
_LARGEST_JSON = 50_000_000
_IMPLEMENTATIONS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
# Lists of words and weights, in which no field means anything.
_DATA = {"tokenizer.json", "vocab.json", "added_tokens.json"}


def holds_model(folder: Path) -> bool:
    """Whether a folder has the files of a Hugging Face model or tokenizer."""
    patterns = ("config.json", "*.safetensors", "pytorch_model*.bin", *_TOKENIZER)
    return any(any(folder.glob(pattern)) for pattern in patterns)


def tokenizer_options(folder: Path) -> dict[str, Any]:
    """Options with which `transformers` loads a folder's tokenizer: nothing from the network, no code.

    Raises:
        UserError: the folder asks for code to be run.
    """
    check_model(folder)
    return {"local_files_only": True, "trust_remote_code": False}


def model_options(folder: Path) -> dict[str, Any]:
    """Options with which `transformers` loads a folder's model: nothing from the network, no code, no pickles.

    Raises:
        UserError: the folder asks for code to be run, or has no weights in safetensors files.
    """
    if not any(folder.glob("*.safetensors")) and (pickled := sorted(folder.glob("pytorch_model*.bin"))):
        raise UserError(
            f"{pickled[0]}: pickled weights, which are never loaded. Fix: convert them to safetensors where you trust "
            f"them (`emma convert inspect {folder}` lists what they refer to)"
        )
    return {**tokenizer_options(folder), "use_safetensors": True}


@contextmanager
def loading(folder: Path, library: str = "transformers") -> Iterator[None]:
    """Turns what a library raises while it loads a folder into one message.

    Raises:
        UserError: with the first line of the library's.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  tokenizers raises plain ones
        # Pydantic, which vLLM checks its settings with, says in its first line only that something is wrong.
        faults = error.errors() if hasattr(error, "errors") else None
        said = str(faults[0]["msg"] if faults else error).strip() or type(error).__name__
        first = printable(said.splitlines()[0])
        raise UserError(f"{folder}: {library} cannot load it: {first}") from None


def check_model(folder: Path) -> None:
    """Refuses a Hugging Face folder that asks for code to be run.

    Raises:
        UserError: names the file and the field.
    """
    for path, field, value in _requests(folder):
        raise UserError(
            f"{path}: {field} asks for {value}: custom code of a model is never run. Fix: use a model of a type that "
            "transformers itself has, without this field"
        )


def inspect_model(folder: Path) -> Inspection:
    """Reads all that a Hugging Face folder says about itself, without its tensors' bytes.

    Raises:
        UserError: the folder holds no such files.
    """
    if not holds_model(folder):
        raise UserError(f"{folder}: no config.json, safetensors, pytorch_model.bin or tokenizer in it")
    found = Inspection(folder, "huggingface")
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    found.size = sum(path.stat().st_size for path in files)
    for path in files:
        if path.suffix == ".safetensors":
            _safetensors(found, path)
        elif path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle"):
            _bin(found, path)
    config = _json(folder / "config.json")
    if config is None:
        found.missing.append("config.json (missing or damaged)")
    else:
        shown = ("model_type", "architectures", "num_hidden_layers", "hidden_size", "vocab_size")
        found.facts.update({key: config[key] for key in shown if key in config})
    found.facts["tokenizer"] = ", ".join(name for name in _TOKENIZER if (folder / name).is_file()) or "none"
    found.missing += _lost_shards(folder)
    found.code += [f"{path.name}: {field} asks for {value}" for path, field, value in _requests(folder)]
    found.code += [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.py"))]
    return found


def _requests(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Where a folder asks for code: file, field, and what for."""
    for path in sorted(folder.glob("*.json")):
        if path.name in _DATA or path.name.endswith(".index.json"):
            continue
        value = _json(path)
        if value is None and path.is_file() and path.stat().st_size > _LARGEST_JSON:
            yield path, "its size", f"{path.stat().st_size} bytes of settings"
        if value is None:
            continue
        if path.name == "adapter_config.json":
            yield (
                path,
                "base_model_name_or_path",
                f"another model ({_short(value.get('base_model_name_or_path'))})",
            )
        for field, asked in _fields(value, 0):
            if field in ("auto_map", "custom_pipelines") and asked:
                yield path, f"`{field}`", f"{_short(asked)}"
            elif field in _IMPLEMENTATIONS and "/" in str(asked):
                yield path, f"`{field}`", f"a program from the Hub ({_short(asked)})"
    if (folder / "custom_generate").is_dir():
        yield folder / "custom_generate", "generate.py", "a way of its own to generate text"


def _fields(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            if depth < 4:
                yield from _fields(item, depth + 1)


def _short(value: Any) -> str:
    text = ", ".join(map(str, value.values())) if isinstance(value, dict) else str(value)
    return printable(text, 80)


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file of settings; None if there is none. Whoever reads it next says what is wrong with it."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_JSON:  # a pipe would wait for a writer
            return None
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _safetensors(found: Inspection, path: Path) -> None:
    """Adds the tensors of a file's header; what is wrong with it counts as missing."""
    if not path.is_file():
        found.missing.append(f"{path.name}: not a file")
        return
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if not 0 < length <= min(_LARGEST_HEADER, size - 8):
                raise ValueError("truncated inside its header")
            header: Mapping[str, Any] = json.loads(handle.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, sizes = _DTYPES.get(entry["dtype"], str(entry["dtype"])), tuple(map(int, entry["shape"]))
            found.tensors.append(TensorFound(name, dtype, sizes, path.name))
            begin, end = entry["data_offsets"]
            if (
                end - begin != math.prod(sizes) * DTYPES.get(dtype, 0)
                or not 0 <= begin <= end <= size - 8 - length
            ):
                found.missing.append(
                    f"{path.name}: bytes of {name}, which its header places at {begin} to {end}"
                )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        struct.error,
        RecursionError,
        OverflowError,
    ) as error:
        found.missing.append(f"{path.name}: a header that can be read ({error})")


def _bin(found: Inspection, path: Path) -> None:
    archive = read_archive(found, path)
    for name, item in (as_mapping(archive.tree) or {}).items() if archive is not None else ():
        try:
            form = tensor_form(item)
        except PickleError:
            continue
        if form is not None:
            found.tensors.append(TensorFound(str(name), form.dtype, form.sizes, path.name))


def _lost_shards(folder: Path) -> list[str]:
    lost = []
    for path in sorted(folder.glob("*.index.json")):
        shards = (_json(path) or {}).get("weight_map")
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        lost += [
            f"{name}, which {path.name} names" for name in sorted(names) if not (folder / name).is_file()
        ]
    return lost
