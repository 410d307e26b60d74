"""Makes objects from what `pickles.py` found in a pickle: tensors, and the plain records of the closed list.

A record is made empty and its attributes are set one by one: no constructor, `__setstate__` or `__reduce__` runs. What
torch makes itself, it makes from numbers that have been checked against the bytes at hand.
"""

from __future__ import annotations

import importlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from emma.tools.inspection.archives import Archive
from emma.tools.inspection.names import NAMES, STORAGES
from emma.tools.inspection.pickles import read
from emma.tools.inspection.tensors import TensorForm, extent, tensor_form
from emma.tools.inspection.torch_dist import layout
from emma.tools.inspection.trees import Global, Persistent, PickleError, Record

if TYPE_CHECKING:
    import torch

__all__ = ["load", "make", "read_metadata"]


def make(value: Any, archive: Archive | None = None) -> Any:
    """The objects that a tree describes.

    Args:
        value: what `pickles.read` found, or a part of it.
        archive: holds the bytes of its tensors.

    Raises:
        PickleError: a record has other attributes, or a call other arguments, than those that torch and Megatron write.
    """
    return _Maker(archive, None).make(value)


def load(file: Path | IO[bytes], device: Any = None) -> Any:
    """What `torch.save` wrote into a file or stream; its tensors are on `device`, by default the CPU.

    Raises:
        PickleError: not such a file, or refused.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return load(stream, device)
    archive = Archive(file)
    return _Maker(archive, device).make(archive.tree)


def read_metadata(data: bytes) -> Any:
    """The `torch.distributed.checkpoint.metadata.Metadata` in the bytes of `.metadata`.

    Raises:
        PickleError: it is something else, or refused.
    """
    tree = read(data).value
    layout(tree)
    return make(tree)


class _Maker:
    """Makes each value of a tree once, however often it is referred to."""

    def __init__(self, archive: Archive | None, device: Any) -> None:
        self.archive, self.device = archive, device
        self.made: dict[int, Any] = {}
        self.stored: dict[str, torch.UntypedStorage] = {}

    def make(self, value: Any) -> Any:
        if not isinstance(value, list | dict | tuple | set | frozenset | Record):
            return self.leaf(value)
        if id(value) not in self.made:
            self.made[id(value)] = self.container(value)
        return self.made[id(value)]

    def leaf(self, value: Any) -> Any:
        if isinstance(value, Global):
            import torch

            return getattr(torch, value.name.removeprefix("torch."))
        if isinstance(value, Persistent):
            import torch

            dtype = getattr(torch, STORAGES.get(value.storage, "uint8"))
            return torch.storage.TypedStorage(wrap_storage=self.bytes_of(value), dtype=dtype, _internal=True)
        return value

    def container(self, value: Any) -> Any:
        try:
            return self.filled(value)
        except (TypeError, ValueError, AttributeError, RuntimeError, KeyError, OverflowError) as error:
            if isinstance(error, PickleError):
                raise
            what = value.name if isinstance(value, Record) else f"a {type(value).__name__}"
            raise PickleError(f"{what} cannot be made ({error})") from None

    def filled(self, value: Any) -> Any:
        match value:
            case list():
                return [self.make(item) for item in value]
            case dict():
                return {self.make(key): self.make(item) for key, item in value.items()}
            case tuple():
                return tuple(self.make(item) for item in value)
            case set():
                return {self.make(item) for item in value}
            case frozenset():
                return frozenset(self.make(item) for item in value)
        return self.record(value)

    def record(self, record: Record) -> Any:
        if (form := tensor_form(record)) is not None:
            return self.tensor(form)
        name, kind = record.name, NAMES[record.name].kind
        if name == "torch.Size":
            import torch

            (sizes,) = record.arguments
            return torch.Size([extent(size) for size in sizes])
        if name.endswith("multiarray._reconstruct"):
            return _array(record)
        if name == "collections.OrderedDict":
            return self.ordered(record)
        if kind == "call":
            raise PickleError("it stands on its own")
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        if kind in ("member", "tuple"):
            return found(*self.make(record.arguments))
        return self.attributes(found, object.__new__(found), self.make(record.state))

    def attributes(self, cls: type, made: Any, state: Any) -> Any:
        if cls.__name__ == "TensorProperties":
            state = _properties(state)
        if state is not None and not isinstance(state, dict):
            raise PickleError("its attributes are not a table")
        for key, value in (state or {}).items():
            if not isinstance(key, str) or key.startswith("__") or callable(getattr(cls, key, None)):
                raise PickleError(f"it sets the attribute {key!r}")
            object.__setattr__(made, key, value)
        return made

    def ordered(self, record: Record) -> OrderedDict[Any, Any]:
        made: OrderedDict[Any, Any] = OrderedDict((self.make(k), self.make(v)) for k, v in record.items)
        if record.state is not None:
            # Versions of a module's state dict.
            state = self.make(record.state)
            if not isinstance(state, Mapping) or set(state) - {"_metadata"}:
                raise PickleError(f"it sets the attributes {state!r:.80}")
            for value in state.values():
                made._metadata = value  # type: ignore[attr-defined]
        return made

    def bytes_of(self, place: Persistent, inner: Archive | None = None) -> torch.UntypedStorage:
        """The bytes of a tensor, read once for all tensors that share them."""
        archive = inner or self.archive
        if archive is None:
            raise PickleError("a tensor without bytes")
        if inner is None and place.key in self.stored:
            return self.stored[place.key]
        import torch

        offset, size = archive.span(place)
        content = torch.empty(size, dtype=torch.uint8)
        archive.stream.seek(offset)
        view, filled = memoryview(content.numpy()), 0
        while filled < size:
            if not (count := archive.stream.readinto(view[filled:])):  # type: ignore[attr-defined]
                raise PickleError("the bytes of a tensor are cut off")
            filled += count
        stored = content.to(self.device or "cpu").untyped_storage()
        if inner is None:
            self.stored[place.key] = stored
        return stored

    def tensor(self, form: TensorForm) -> torch.Tensor:
        import torch

        untyped = self.bytes_of(form.storage, form.inner)
        form.check(untyped.nbytes())
        dtype = getattr(torch, form.dtype)
        flat = torch.empty(0, dtype=dtype, device=untyped.device)
        flat.set_(untyped, 0, (untyped.nbytes() // dtype.itemsize,), (1,))
        made = flat.as_strided(form.sizes, form.strides, form.offset)
        if form.parameter:
            return torch.nn.Parameter(made, form.requires_grad)
        return made.requires_grad_() if form.requires_grad else made


def _properties(state: Any) -> dict[str, Any]:
    """Attributes of `TensorProperties`, whose layout and memory format cannot be pickled as they are."""
    import torch

    dtype, _, requires_grad, memory_format, pin_memory = state
    formats = {
        "TORCH_CONTIGUOUS_FORMAT": torch.contiguous_format,
        "TORCH_CHANNELS_LAST": torch.channels_last,
        "TORCH_PRESERVE_FORMAT": torch.preserve_format,
    }
    return {
        "dtype": dtype,
        "layout": torch.strided,
        "requires_grad": requires_grad,
        "memory_format": formats[memory_format.name],
        "pin_memory": pin_memory,
    }


def _array(record: Record) -> Any:
    """A numpy array of numbers from its state (version, shape, dtype, Fortran order, bytes)."""
    import numpy as np

    _, shape, kind, fortran, content = record.state
    if (
        not isinstance(kind, Record)
        or kind.name != "numpy.dtype"
        or not isinstance(content, bytes)
        or fortran
    ):
        raise PickleError("an array that is not plain numbers")
    code, order = kind.arguments[0], kind.state[1] if kind.state is not None else "="
    if not isinstance(code, str) or code not in (
        "u1",
        "u2",
        "u4",
        "u8",
        "i1",
        "i2",
        "i4",
        "i8",
        "f2",
        "f4",
        "f8",
        "b1",
    ):
        raise PickleError(f"an array of type {code!r}")
    dtype = np.dtype(code).newbyteorder(">" if order == ">" else "=")
    sizes = tuple(extent(size) for size in shape)
    if math.prod(sizes) * dtype.itemsize != len(content):
        raise PickleError(f"an array of sizes {list(sizes)} in {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(sizes).copy()
