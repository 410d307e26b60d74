"""Byte streams of plain and compressed files, and their lines, in bounded memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from emma.base.errors import UserError
from emma.base.remote import is_remote, open_remote
from emma.base.system_errors import OF_PROCESSES, OF_WRITES

__all__ = ["BOM", "compression_of", "decode", "lines", "no_json_at_all", "open_bytes"]

BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 20
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz"}


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a zstd file with one or more frames.

    Unlike the library's stream reader, it notices a truncated last frame.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.decompressor, self.pending, self.done = raw, self._frame(), b"", False
        self.fresh = True

    @staticmethod
    def _frame() -> zstandard.ZstdDecompressionObj:
        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self.pending and not self.done:
            self._fill()
        size = min(len(buffer), len(self.pending))
        buffer[:size] = self.pending[:size]
        self.pending = self.pending[size:]
        return size

    def _fill(self) -> None:
        if self.decompressor.eof:
            rest = self.decompressor.unused_data
            self.decompressor, self.fresh = self._frame(), True
        else:
            rest = b""
        # Read little at a time, since the decompressed form is held in memory.
        chunk = rest or self.raw.read(1 << 16)
        if chunk:
            self.pending, self.fresh = self.decompressor.decompress(chunk), False
        elif self.fresh:
            self.done = True
        else:
            raise EOFError("the last frame is truncated")


def compression_of(head: bytes) -> str | None:
    """How a file that begins with `head` is compressed: `gz`, `zst`, `bz2` or `xz`; None if it isn't."""
    if not head.startswith(tuple(_MAGIC)):
        return None
    return next(ending[1:] for magic, ending in _MAGIC.items() if head.startswith(magic))


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """Opens a file, here or on an object store, for reading; gzip, zstd, bzip2 and xz are recognised by their first bytes.

    Raises:
        UserError: no such file, no permission or, possibly only during reading, truncated or damaged
            compressed data.
        OSError: this process has run out of something, or what reads the file cannot write.
    """
    try:
        with open_remote(path) if is_remote(path) else Path(path).open("rb") as raw:
            head = raw.read(6)
            raw.seek(0)
            found = f".{name}" if (name := compression_of(head)) else None
            stated = next((ending for ending in _MAGIC.values() if path.lower().endswith(ending)), None)
            if stated and found != stated:
                state = "is empty" if not head else "is something else"
                raise UserError(f"{path}: named {stated}, but {state}; fetch it again or rename it")
            stream: BinaryIO
            if found == ".gz":
                stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
            elif found == ".bz2":
                stream = cast(BinaryIO, bz2.BZ2File(raw))
            elif found == ".xz":
                stream = cast(BinaryIO, lzma.LZMAFile(raw))  # noqa: SIM115 - it closes with `raw`
            elif found == ".zst":
                stream = cast(BinaryIO, _ZstdReader(raw))
            else:
                stream = raw
            yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER))
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}: its compressed data is truncated or damaged ({error}); fetch the file again or recompress it"
        ) from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno in OF_PROCESSES | OF_WRITES:
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | int]]:
    """Number (from 1) and bytes of each line, without line end; only the length if it exceeds `limit`."""
    number = 0
    while piece := stream.readline(_BUFFER):
        number += 1
        size = len(piece)
        pieces = [piece.removeprefix(BOM) if number == 1 else piece]
        while not piece.endswith(b"\n") and (piece := stream.readline(_BUFFER)):
            size += len(piece)
            # Never hold an overlong line whole; one byte over the limit may be the line feed.
            if size > limit + 1:
                pieces.clear()
            else:
                pieces.append(piece)
        if size - piece.endswith(b"\n") > limit:
            yield number, size
        else:
            yield number, b"".join(pieces).rstrip(b"\r\n")


def no_json_at_all(line: bytes) -> str:
    """What else to try where a line that is to be JSON does not even begin like it; empty where it does."""
    if line.lstrip().startswith((b"{", b"[")):
        return ""
    return "; if the file is CSV, TSV or plain text, name it .csv, .tsv or .txt"


def decode(line: bytes) -> str:
    """Decodes UTF-8 strictly.

    Raises:
        ValueError: invalid UTF-8; the message gives the byte's position.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"invalid UTF-8 at byte {error.start + 1} ({line[error.start : error.end].hex()})"
        ) from None
