"""What `torch.save` writes, opened without torch: the tree of its pickle, and where in it each tensor's bytes lie.

Two layouts: a zip archive whose entries are stored as they are (`<name>/data.pkl`, `<name>/data/<key>`), and the older
one of five pickles and the tensors' bytes, in which torch still pickles single storages.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from emma.tools.inspection import pickles
from emma.tools.inspection.names import DTYPES, STORAGES
from emma.tools.inspection.trees import Persistent, PickleError, walk

__all__ = ["Archive", "Window", "open_archive", "pickled_bytes"]

_LOCAL_HEADER = struct.Struct("<26xHH")
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LARGEST_LEGACY = 1 << 28
_COUNT = struct.Struct("<q")


class Window(io.RawIOBase):
    """A range of a file as a seekable stream of its own.

    Args:
        read_at: reads a number of bytes at a place of the file.
        offset: first byte of the range.
        size: bytes of the range.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], offset: int, size: int) -> None:
        self._read_at, self._offset, self._size, self._position = read_at, offset, size, 0

    @classmethod
    def of(cls, file: IO[bytes], offset: int, size: int) -> Window:
        """A range of an open file."""

        def read_at(place: int, count: int) -> bytes:
            file.seek(place)
            return file.read(count)

        return cls(read_at, offset, size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + position)
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._position))
        part = self._read_at(self._offset + self._position, size)
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


class Archive:
    """An open archive.

    Args:
        stream: a seekable stream of it, from its first byte to its last; it must stay open.

    Attributes:
        tree: what the pickle describes.
        names: how often the pickle refers to each name.
        spans: key of a tensor's bytes → first byte in the stream, number of bytes.

    Raises:
        PickleError: not such an archive, damaged, or its pickle is refused.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        stream.seek(0)
        start = stream.read(4)
        if start == b"PK\x03\x04":
            pickled, self.spans = _open_zip(stream)
            found = pickles.read(pickled)
            self.tree, self.names = found.value, found.names
        elif start[:1] == b"\x80":
            stream.seek(0)
            self.tree, self.names, self.spans = _open_legacy(stream)
        else:
            raise PickleError("it is neither a zip archive nor a pickle of torch.save")

    def span(self, place: Persistent) -> tuple[int, int]:
        """First byte and number of bytes of a tensor's bytes; raises PickleError if they are not all there."""
        width = DTYPES[STORAGES.get(place.storage, "uint8")]
        offset, size = self.spans.get(place.key, (0, -1))
        if size < 0 or size != place.count * width:
            raise PickleError(f"the bytes {place.key!r} of a tensor are missing or too few")
        return offset, size

    def bytes_of(self, place: Persistent) -> bytes:
        """A copy of a tensor's bytes."""
        offset, size = self.span(place)
        self.stream.seek(offset)
        return self.stream.read(size)


def pickled_bytes(stream: IO[bytes]) -> bytes:
    """The pickle of a zip archive or of a file that is one, for a list of its names."""
    stream.seek(0)
    if stream.read(4) == b"PK\x03\x04":
        return _open_zip(stream)[0]
    stream.seek(0)
    return stream.read(pickles.LARGEST)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a file that `torch.save` wrote; see `Archive`."""
    with path.open("rb") as stream:
        yield Archive(stream)


def _open_zip(stream: IO[bytes]) -> tuple[bytes, Mapping[str, tuple[int, int]]]:
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            _check_entries(entries, stream.seek(0, io.SEEK_END))
            names = {entry.filename: entry for entry in entries}
            (main,) = (name for name in names if name.endswith("/data.pkl") and name.count("/") == 1)
            root = main.removesuffix("data.pkl")
            if names[main].file_size > pickles.LARGEST:
                raise PickleError(f"a pickle of {names[main].file_size} bytes, more than any checkpoint's")
            order = names.get(f"{root}byteorder")
            if order is not None and archive.read(order) != b"little":
                raise PickleError("its numbers are not little-endian")
            pickled = archive.read(main)
        spans = {
            name.removeprefix(f"{root}data/"): _span(stream, entry)
            for name, entry in names.items()
            if name.startswith(f"{root}data/")
        }
    except PickleError:
        raise
    except (
        *(zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, zlib.error, ValueError, EOFError, OSError),
        *(NotImplementedError, RuntimeError, IndexError, KeyError, OverflowError),
    ) as error:
        # What zipfile raises for archives that are damaged or made to be.
        raise PickleError(f"its archive is damaged ({error})") from None
    return pickled, spans


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len({entry.filename for entry in entries}) != len(entries):
        raise PickleError("its archive has two entries of one name")
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise PickleError("it is a TorchScript program, not a checkpoint")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise PickleError("its archive is compressed or encrypted, as torch.save never does")
    # Entries that share bytes would otherwise fill the memory from a small file.
    if sum(entry.file_size for entry in entries) > size:
        raise PickleError("its archive promises more bytes than it has")


def _span(stream: IO[bytes], entry: zipfile.ZipInfo) -> tuple[int, int]:
    stream.seek(entry.header_offset)
    names, extra = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    start = entry.header_offset + _LOCAL_HEADER.size + names + extra
    if start + entry.file_size > stream.seek(0, io.SEEK_END):
        raise PickleError("its archive is cut off")
    return start, entry.file_size


def _open_legacy(stream: IO[bytes]) -> tuple[Any, Mapping[str, int], Mapping[str, tuple[int, int]]]:
    """Magic number, protocol, system, object, keys; then for each key the number of elements and their bytes."""
    data = stream.read(_LARGEST_LEGACY + 1)
    if len(data) > _LARGEST_LEGACY:
        raise PickleError(
            f"more than {_LARGEST_LEGACY} bytes in torch's older format; save it with a newer torch"
        )
    magic = pickles.read(data, whole=False)
    if magic.value != _MAGIC:
        raise PickleError("it is a bare pickle, which torch.save does not write")
    protocol = pickles.read(data, at=magic.end, whole=False)
    system = pickles.read(data, at=protocol.end, whole=False)
    if (
        protocol.value != _LEGACY_PROTOCOL
        or not isinstance(system.value, dict)
        or system.value.get("little_endian") is not True
    ):
        raise PickleError("it is not in torch's older format")
    found = pickles.read(data, at=system.end, whole=False)
    keys = pickles.read(data, at=found.end, whole=False)
    if not isinstance(keys.value, list) or not all(isinstance(key, str) for key in keys.value):
        raise PickleError("it is not in torch's older format")
    widths: dict[str, int] = {}
    _collect_widths(found.value, widths)
    spans, at = {}, keys.end
    for key in keys.value:
        (count,) = _COUNT.unpack(data[at : at + _COUNT.size].ljust(_COUNT.size, b"\xff"))
        size = count * widths.get(key, 0)
        at += _COUNT.size
        if count < 0 or not widths.get(key) or at + size > len(data):
            raise PickleError("the bytes of a tensor are cut off")
        spans[key] = (at, size)
        at += size
    return found.value, found.names, spans


def _collect_widths(value: Any, widths: dict[str, int]) -> None:
    """Bytes of an element of each storage that a tree refers to."""
    for item in walk(value):
        if isinstance(item, Persistent):
            widths[item.key] = DTYPES[STORAGES.get(item.storage, "uint8")]
