"""Inspects a Megatron checkpoint: `torch_dist`, or the older `torch` with a pickle per rank. Needs no torch."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.tools.inspection import pickles
from emma.tools.inspection.archives import Archive, Window, pickled_bytes
from emma.tools.inspection.findings import Inspection, PickleFound, TensorFound
from emma.tools.inspection.names import DTYPES
from emma.tools.inspection.tensors import read_tensors, tensor_form
from emma.tools.inspection.torch_dist import Layout, Stored, layout
from emma.tools.inspection.trees import PickleError, Record, as_mapping, printable, walk

__all__ = ["check_checkpoint", "holds_checkpoint", "inspect_checkpoint", "inspect_pickle", "read_archive"]

_RANK = re.compile(r"mp_rank_\d{2,}(?:_\d{3,})*")
_MODEL = re.compile(r"model\d*")
_PICKLED = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}
_STEP = re.compile(r"iter_(\d{7,})")
_ARGUMENTS = {
    "layers": "num_layers",
    "hidden": "hidden_size",
    "ffn": "ffn_hidden_size",
    "heads": "num_attention_heads",
    "groups": "num_query_groups",
    "vocab": "padded_vocab_size",
    "length": "seq_length",
    "layout": ("tensor_model_parallel_size", "pipeline_model_parallel_size", "world_size"),
    "samples": "consumed_train_samples",
}
"""What is shown of Megatron's arguments."""


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder is a single checkpoint of Megatron."""
    return (folder / ".metadata").exists() or (folder / "metadata.json").exists() or any(_ranks(folder))


def inspect_checkpoint(folder: Path) -> Inspection:
    """Reads all that a checkpoint says about itself, without its tensors' bytes.

    Raises:
        UserError: the folder is no checkpoint.
    """
    if not holds_checkpoint(folder):
        raise UserError(f"{folder}: no checkpoint: neither .metadata nor mp_rank folders are in it")
    name = _STEP.fullmatch(folder.absolute().name)
    found = Inspection(
        folder, "torch_dist" if not any(_ranks(folder)) else "torch", int(name[1]) if name else None
    )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found.size = sum(path.stat().st_size for path in files)
    if (folder / ".metadata").exists():
        _torch_dist(found)
    elif found.format == "torch_dist":
        found.missing.append(".metadata, which says where each tensor lies")
    for path in files:
        if path != folder / ".metadata" and (path.suffix in _PICKLED or path.name.endswith(".metadata")):
            _pickled_file(found, path)
    return found


def check_checkpoint(folder: Path) -> None:
    """Refuses a checkpoint whose pickles could do more than describe tensors and plain values.

    Raises:
        UserError: names the pickle and what it refers to; nothing of it has been executed.
    """
    refuse(inspect_checkpoint(folder), folder)


def refuse(found: Inspection, folder: Path) -> None:
    """Raises UserError if an inspection found pickles that are refused."""
    if found.refused:
        first, more = found.refused[0], len(found.refused) - 1
        others = f" ({more} more in this folder)" if more else ""
        raise UserError(
            f"{printable(str(folder / first.place))}: refused: {first.fault}{others}. Nothing of it was executed. "
            f"`emma convert inspect {folder}` lists what it holds. Fix: copy it again if it is damaged, or use another checkpoint"
        )


def inspect_pickle(place: str, stream: IO[bytes]) -> tuple[PickleFound, Archive | None]:
    """Follows the pickle of a file that `torch.save` wrote, and those in it that a layer would unpickle later."""
    try:
        archive = Archive(stream)
        names = Counter(archive.names)
        for state in _extra_states(archive.tree, place):
            names.update(_nested(state, archive))
    except PickleError as error:
        return PickleFound(place, _names(stream), str(error)), None
    return PickleFound(place, names), archive


def _names(stream: IO[bytes]) -> Counter[str]:
    try:
        return Counter(pickles.names_in(pickled_bytes(stream)))
    except PickleError:
        return Counter()  # not even an archive; the fault says so


def _extra_states(tree: Any, key: str) -> Iterator[Any]:
    """Values of a tree that Transformer Engine's layers unpickle: byte tensors named `…_extra_state…`."""
    if "_extra_state" in key:
        yield tree
    for value in walk(tree):
        for name, item in (as_mapping(value) or {}).items():
            if isinstance(name, str) and "_extra_state" in name:
                yield item


def _nested(value: Any, archive: Archive) -> Mapping[str, int]:
    """Names in the pickle that a byte tensor's bytes are; objects are saved as lists of one."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    form = tensor_form(value)
    if form is None or not all(form.sizes):
        return {}
    if form.strides != (1,):
        raise PickleError("an extra state that is not a row of bytes")
    first, width = form.offset * DTYPES[form.dtype], DTYPES[form.dtype]
    content = (form.inner or archive).bytes_of(form.storage)
    return read_tensors(content[first : first + form.sizes[0] * width]).names


def _torch_dist(found: Inspection) -> None:
    path = found.folder / ".metadata"
    data = b""
    if path.is_file():
        with path.open("rb") as handle:
            data = handle.read(pickles.LARGEST + 1)
    try:
        read = pickles.read(data)
        found.pickles.append(PickleFound(path.name, read.names))
        described = layout(read.value)
    except PickleError as error:
        found.pickles[:] = [PickleFound(path.name, pickles.names_in(data), str(error))]
        return
    for key, tensor in described.tensors.items():
        if key.startswith("optimizer"):
            found.others["tensor of the optimizer"] += 1
        else:
            found.tensors.append(TensorFound(key, tensor.dtype, tensor.sizes))
    found.others.update(key.partition("/")[0].rpartition(".")[2] for key in described.objects)
    found.missing += described.missing()
    _check_metadata_json(found)
    by_file: dict[str, list[tuple[tuple[str, Any], Stored]]] = {}
    for block, stored in described.stored.items():
        by_file.setdefault(stored.file, []).append((block, stored))
    for file, blocks in sorted(by_file.items()):
        _blocks(found, file, sorted(blocks, key=lambda block: block[1].offset), described)


def _check_metadata_json(found: Inspection) -> None:
    path = found.folder / "metadata.json"
    if not path.is_file():
        found.missing.append("metadata.json")
        return
    try:
        backend = read_json(path)["sharded_backend"]
    except (UserError, TypeError, KeyError):
        found.missing.append("metadata.json (damaged)")
        return
    if backend != "torch_dist":
        found.facts["backend"] = backend


def _blocks(
    found: Inspection, file: str, blocks: list[tuple[tuple[str, Any], Stored]], described: Layout
) -> None:
    """Follows the pickle of each block in one file; those that are inert are reported together."""
    path = found.folder / file
    if not path.is_file():
        found.missing.append(f"{file}, with {len(blocks)} blocks")
        return
    size, names, inert = path.stat().st_size, Counter[str](), 0
    with path.open("rb", buffering=0) as handle:
        for (key, offset), stored in blocks:
            if stored.offset + stored.length > size:
                found.missing.append(f"{file}: {key} lies beyond its {size} bytes; it is cut off")
                continue
            window = io.BufferedReader(Window.of(handle, stored.offset, stored.length), 1 << 12)
            place = printable(f"{file}: {key}")
            one, archive = inspect_pickle(place, window)
            if archive is not None and (fault := _mismatch(archive, key, offset, described)):
                one = PickleFound(place, one.names, fault)
            if one.fault is not None:
                found.pickles.append(one)
                continue
            inert += 1
            names.update(one.names)
            if archive is not None and key.startswith("common_state"):
                _common_state(found, archive.tree)
    if inert:
        found.pickles.append(PickleFound(f"{file}: {inert} blocks", names))


def _mismatch(archive: Archive, key: str, offset: Any, described: Layout) -> str | None:
    """Why a tensor's block is not what the metadata says."""
    tensor = described.tensors.get(key)
    if tensor is None or offset is None:
        return None
    sizes = dict(tensor.chunks).get(offset)
    try:
        form = tensor_form(archive.tree)
        if form is None:
            return "it holds something else than a tensor"
        form.check(archive.span(form.storage)[1])
    except PickleError as error:
        return str(error)
    if form.dtype != tensor.dtype or sizes is None or form.sizes != sizes:
        return f"its type {form.dtype} and sizes {list(form.sizes)} are not those of the metadata"
    return None


def _common_state(found: Inspection, tree: Any) -> None:
    value = tree[0] if isinstance(tree, list) and tree else tree
    state = as_mapping(value) or {}
    if isinstance(state.get("iteration"), int):
        found.step = state["iteration"]
    arguments = state.get("args")
    if not isinstance(arguments, Record) or not isinstance(arguments.state, dict):
        return
    for name, key in _ARGUMENTS.items():
        values = [arguments.state.get(part) for part in ((key,) if isinstance(key, str) else key)]
        if values != [None] * len(values):
            found.facts[name] = values[0] if len(values) == 1 else " · ".join(map(str, values))


def _ranks(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("mp_rank_*") if _RANK.fullmatch(path.name))


def read_archive(found: Inspection, path: Path) -> Archive | None:
    """Adds the pickle of a file to the findings; returns its archive (closed) if it is inert."""
    place = str(path.relative_to(found.folder))
    if not path.is_file():
        found.missing.append(f"{place}: not a file")
        return None
    with path.open("rb") as stream:
        one, archive = inspect_pickle(place, stream)
    found.pickles.append(one)
    return archive


def _pickled_file(found: Inspection, path: Path) -> None:
    archive = read_archive(found, path)
    state = None if archive is None else as_mapping(archive.tree)
    if state is None:
        return
    _common_state(found, state)
    for key, value in state.items():
        if not isinstance(key, str) or not _MODEL.fullmatch(key):
            continue
        for name, item in (as_mapping(value) or {}).items():
            try:
                form = tensor_form(item)
            except PickleError as error:
                place = str(path.relative_to(found.folder))
                found.pickles.append(PickleFound(f"{place}: {name}", {}, str(error)))
                continue
            if form is not None and isinstance(name, str) and "_extra_state" not in name:
                found.tensors.append(TensorFound(name, form.dtype, form.sizes, f"{path.parent.name} {key}"))
